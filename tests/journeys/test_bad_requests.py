"""Bad requests at the front doors of the real house: each one a typed error in the protocol's own shape, the replica's
process untouched, and the next good request answered. Rows 19 and 20 of the fault matrix, and the rights of keys.
"""

from __future__ import annotations

import gzip
import json
import random
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psutil
import pytest

from tests.journeys.conftest import ECHO_BODY
from tests.support import artifacts
from tests.support.bad_requests import (
    MUTATIONS,
    SEED,
    VALUES,
    Change,
    asks,
    binary,
    changed,
    mutated,
    new_key,
    unshaken,
)
from tests.support.house import House, until
from tests.support.hygiene import LEAKS, check_refusal
from tests.support.rawhttp import Answer, exchange

pytestmark = pytest.mark.timeout(180)
MAX_BODY_BYTES = 64 << 20
TORCH_BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 6], "data": [1, 2, 3, 4, 5, 6]}]}


@pytest.fixture(scope="module")
def models(house: House, echo: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Endpoint -> a good request for it: our own model, and a torch program that validation has checked."""
    folder = tmp_path_factory.mktemp("torch")
    artifacts.torch_export(folder / "m")
    version = house.upload("badtorch", folder / "m")
    house.deploy("badtorch", version["number"])
    house.serves("badtorch", TORCH_BODY)
    return {echo: ECHO_BODY, "badtorch": TORCH_BODY}


@pytest.fixture(autouse=True)
def watched(house: House, models: dict[str, dict[str, Any]]) -> Iterator[None]:
    with unshaken(house, models):
        yield


def post(house: House, endpoint: str, content: bytes, **headers: str) -> httpx.Response:
    given = {"Authorization": f"Bearer {house.key}"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    return httpx.post(f"{house.gateway_url}/v2/models/{endpoint}/infer", content=content, headers=given, timeout=60)


# --- what a JSON request may get wrong ---------------------------------------------------------------------------------


def with_inputs(make: Callable[[dict[str, Any]], list[Any]]) -> Change:
    return lambda body: {"inputs": make(body["inputs"][0])}


BAD_JSON: dict[str, Change] = {
    "wrong dtype": changed(datatype="INT64"),
    "unknown dtype": changed(datatype="FLOAT"),
    "half float as JSON": changed(datatype="FP16"),
    "texts where numbers belong": changed(datatype="BYTES", data=["a"] * 6),
    "texts in a number's place": changed(data=["1"] * 6),
    "null as a number": changed(data=[None] * 6),
    "wrong width": changed(shape=[1, 3], data=[1, 2, 3]),
    "wrong rank": changed(shape=[6]),
    "seventeen dimensions": changed(shape=[1] * 17),
    "negative dimension": changed(shape=[-1, 4]),
    "no batch": changed(shape=[0, 4], data=[]),
    "dimension beyond 64 bits": changed(shape=[2**63, 2**63]),
    "product overflow": changed(shape=[2**32, 2**31, 2**31]),
    "product that wraps to the right size": changed(shape=[2**62, 8]),
    "fractional dimension": changed(shape=[1.5, 4]),
    "too few values": changed(data=[1]),
    "too many values": changed(data=[0] * 1000),
    "ragged values": changed(data=[[1, 2], [3]]),
    "values too deep": changed(data=json.loads("[" * 50 + "]" * 50)),
    "no values": changed(data=...),
    "no name": changed(name=...),
    "no shape": changed(shape=...),
    "wrong name": changed(name="nope"),
    "NUL in the name": changed(name="x\0y"),
    "shared memory": changed(data=..., parameters={"shared_memory_region": "r", "shared_memory_byte_size": 24}),
    "size without bytes": changed(data=..., parameters={"binary_data_size": 24}),
    "negative size": changed(data=..., parameters={"binary_data_size": -1}),
    "fractional size": changed(data=..., parameters={"binary_data_size": 1.5}),
    "nested parameters": changed(parameters={"a": {"b": 1}}),
    "batch too large": lambda body: changed(
        shape=[1000, body["inputs"][0]["shape"][1]], data=[0] * (1000 * body["inputs"][0]["shape"][1])
    )(body),
    "missing input": with_inputs(lambda one: []),
    "extra input": with_inputs(lambda one: [one, one | {"name": "more"}]),
    "the same input twice": with_inputs(lambda one: [one, one]),
    "a hundred inputs": with_inputs(lambda one: [one | {"name": f"n{i}"} for i in range(100)]),
    "inputs are no list": lambda body: {"inputs": {"a": 1}},
    "no object": lambda body: [1, 2],
    "null": lambda body: None,
    "unknown output": lambda body: body | {"outputs": [{"name": "nope"}]},
    "output twice": lambda body: body | {"outputs": [{"name": "y"}, {"name": "y"}]},
    "id is a number": lambda body: body | {"id": 7},
    "id too long": lambda body: body | {"id": "i" * 300},
    "timeout is a text": lambda body: body | {"parameters": {"timeout": "soon"}},
    "timeout is negative": lambda body: body | {"parameters": {"timeout": -5}},
    "parameter beyond 64 bits": lambda body: body | {"parameters": {"huge": 2**80}},
}


@pytest.mark.parametrize("kind", BAD_JSON)
def test_a_bad_request_in_json_is_a_typed_error(house: House, models: dict[str, Any], kind: str) -> None:
    for name, body in models.items():
        answer = post(house, name, json.dumps(BAD_JSON[kind](body)).encode())
        check_refusal(answer, 501 if kind == "shared memory" else 400)


GOOD = json.dumps(ECHO_BODY).encode()
BROKEN: dict[str, bytes] = {
    "nothing": b"",
    "cut off": GOOD[:-3],
    "something after it": GOOD + b"}",
    "not text": b"\xff\xfe\x00\x01",
    "bad UTF-8 in the name": GOOD.replace(b'"input"', b'"inp\xc3\x28t"'),
    "lone surrogate": GOOD.replace(b'"input"', rb'"inp\ud800ut"'),
    "NaN": GOOD.replace(b"[1, 2, 3, 4]", b"[NaN, 2, 3, 4]"),
    "a number of 5,000 digits": GOOD.replace(b"[1, 2, 3, 4]", b"[" + b"9" * 5000 + b", 2, 3, 4]"),
    "an exponent without end": GOOD.replace(b'"data"', b'"parameters": {"a": 1e99999}, "data"'),
    "10,000 lists deep": b'{"inputs": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "10,000 objects deep": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "10,000 deep in a field that nobody reads": GOOD[:-1] + b', "extra": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "10,000 deep in the data": GOOD.replace(b"[1, 2, 3, 4]", b"[" * 10_000 + b"1" + b"]" * 10_000),
    "a form": b"a=b&c=d",
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94.",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_json_is_a_typed_error(house: House, echo: str, kind: str) -> None:
    check_refusal(post(house, echo, BROKEN[kind]), 400)


def test_a_name_that_is_there_twice_means_one_of_the_two_and_never_a_crash(house: House, echo: str) -> None:
    """JSON lets a reader choose. What is checked and what is run must be the same choice."""
    twice = GOOD.replace(b'"shape": [1, 4]', b'"shape": [7, 4], "shape": [1, 4]')
    assert post(house, echo, twice).json()["outputs"][0]["data"] == [2, 4, 6, 8]
    check_refusal(post(house, echo, GOOD.replace(b'"shape": [1, 4]', b'"shape": [1, 4], "shape": [7, 4]')), 400)
    check_refusal(post(house, echo, GOOD[:-1] + b', "inputs": []}'), 400)


# --- the binary extension ----------------------------------------------------------------------------------------------


SIZE = str(len(binary()))
BAD_BINARY: dict[str, tuple[str, bytes]] = {
    "header longer than the body": ("100000", binary() + VALUES),
    "header longer by one": (str(len(binary()) + 1), binary() + VALUES),
    "header shorter by one": (str(len(binary()) - 1), binary() + VALUES),
    "header negative": ("-5", binary() + VALUES),
    "header is no number": ("abc", binary() + VALUES),
    "header is a fraction": ("12.5", binary() + VALUES),
    "header is empty": ("", binary() + VALUES),
    "header beyond 64 bits": ("9" * 30, binary() + VALUES),
    "header in other digits": ("\xb2", binary() + VALUES),
    "bytes short by one": (SIZE, binary() + VALUES[:-1]),
    "bytes long by one": (SIZE, binary() + VALUES + b"\0"),
    "size short by one": (str(len(binary(15))), binary(15) + VALUES),
    "size long by one": (str(len(binary(17))), binary(17) + VALUES),
    "size is zero": (str(len(binary(0))), binary(0)),
    "size beyond 64 bits": (str(len(binary(2**70))), binary(2**70) + VALUES),
    "size is a flag": (str(len(binary(True))), binary(True) + VALUES[:1]),
    "shape that wraps to the size": (
        str(len(binary(16, shape=[2**62 + 1, 4]))), binary(16, shape=[2**62 + 1, 4]) + VALUES),
    "negative shape": (str(len(binary(16, shape=[-1, -4]))), binary(16, shape=[-1, -4]) + VALUES),
    "text lengths that lie": (
        str(len(binary(16, datatype="BYTES"))), binary(16, datatype="BYTES") + b"\xff\xff\xff\xff" + bytes(12)),
    "another datatype of the same size": (str(len(binary(16, datatype="INT32"))), binary(16, datatype="INT32") + VALUES),
    "raw bytes that fit nothing": ("0", VALUES[:-1]),
    "raw bytes for many": ("0", VALUES * 2),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_BINARY)
def test_a_broken_binary_request_is_a_typed_error(house: House, echo: str, kind: str) -> None:
    header, body = BAD_BINARY[kind]
    found = exchange(
        house.http_port,
        [
            head(house, echo, f"Content-Length: {len(body)}", f"Inference-Header-Content-Length: {header}"),
            body,
        ],
    )
    check_refusal(found, 400)


def head(house: House, endpoint: str, *lines: str, path: str = "", method: str = "POST", key: str = "") -> bytes:
    target = path or f"/v2/models/{endpoint}/infer"
    own = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {key or house.key}", *lines]
    return "\r\n".join([*own, "", ""]).encode("latin1")


# --- bodies that are too large, compressed, or lie about themselves (row 19) -------------------------------------------


def grown(house: House, run: Callable[[], Any]) -> tuple[Any, int]:
    """What `run` gives, and by how many bytes the gateway grew meanwhile."""
    process = psutil.Process(house.pid("gateway"))
    before = process.memory_info().rss
    found = run()
    return found, process.memory_info().rss - before


def test_a_body_that_says_it_is_too_large_is_refused_unread(house: House, echo: str) -> None:
    began = time.monotonic()
    found, growth = grown(
        house, lambda: exchange(house.http_port, [head(house, echo, "Content-Length: 1073741824"), b"{"])
    )
    check_refusal(found, 413)
    assert found.headers["connection"] == "close"
    assert time.monotonic() - began < 2
    assert growth < 16 << 20


def test_an_endless_body_is_cut_at_the_limit(house: House, echo: str) -> None:
    chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    parts = [head(house, echo, "Transfer-Encoding: chunked"), *[chunk] * 80]
    found, growth = grown(house, lambda: exchange(house.http_port, parts, timeout_s=30))
    if found.status_code:
        check_refusal(found, 413)
    assert growth < 2 * MAX_BODY_BYTES


def test_a_body_in_too_many_pieces_is_refused(house: House, echo: str) -> None:
    parts = [head(house, echo, "Transfer-Encoding: chunked"), b"1\r\n \r\n" * 65_540 + b"0\r\n\r\n"]
    found, growth = grown(house, lambda: exchange(house.http_port, parts, timeout_s=30))
    check_refusal(found, 400, 413)
    assert growth < 64 << 20


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, identity"])
def test_compressed_bodies_are_bounded_and_unknown_encodings_refused(house: House, echo: str, encoding: str) -> None:
    bomb = gzip.compress(bytes(10 << 20))
    answer, growth = grown(house, lambda: post(house, echo, bomb, Content_Encoding=encoding))
    check_refusal(answer, 400 if encoding in {"gzip", "deflate"} else 415)  # 10 MiB of zeros are no JSON
    assert growth < 32 << 20


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_bomb_is_cut_at_the_limit(house: House, echo: str, encoding: str, pack: Callable[[bytes], bytes]) -> None:
    """256 MiB in less than one, and the same packed twice."""
    bomb = pack(bytes(256 << 20))
    assert len(bomb) < 1 << 20
    for content in (bomb, pack(bomb)):
        answer, growth = grown(house, lambda content=content: post(house, echo, content, Content_Encoding=encoding))
        check_refusal(answer, 413 if content is bomb else 400)
        assert growth < 2 * MAX_BODY_BYTES


def test_a_body_shorter_than_it_says_ends_with_its_connection(house: House, echo: str) -> None:
    found = exchange(house.http_port, [head(house, echo, "Content-Length: 5000"), GOOD], end=True)
    assert found.status_code in {0, 400}, found.text


def test_a_body_longer_than_it_says_is_cut_and_never_another_request(house: House, echo: str) -> None:
    smuggled = head(house, echo, path="/metrics", method="GET")
    found = exchange(house.http_port, [head(house, echo, "Content-Length: 10"), GOOD, smuggled])
    check_refusal(found, 400)


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: 10", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: gzip, chunked",),
        ("Transfer-Encoding: xchunked",),
        ("Content-Length: -1",),
        ("Content-Length: abc",),
        ("Content-Length: 1e3",),
        ("Content-Length: 99999999999999999999999999",),
        ("X-Pad: " + "a" * 60_000,),
        ("X-Request-Timeout-Ms: -1", "Content-Length: 2"),
        ("X-Request-Timeout-Ms: 1e3", "Content-Length: 2"),
        ("X-Request-Timeout-Ms: 99999999999", "Content-Length: 2"),
    ],
    ids=lambda lines: lines[0][:30],
)
def test_headers_that_lie_or_burst_are_refused(house: House, echo: str, lines: tuple[str, ...]) -> None:
    found = exchange(house.http_port, [head(house, echo, *lines), b"{}"], end=True)
    assert found.status_code in {0, 400, 413, 415, 431, 501}, found.text
    assert not LEAKS.search(found.text)


# --- addresses and methods ---------------------------------------------------------------------------------------------

NOWHERE = [
    "/", "/v2/models", "/v2/models/", "/v2/models/ECHO/infer", "/v2/models/nope/infer", "/v2/models/echo/infer/",
    "/v2/models/echo/predict", "/v2/models/echo/versions/infer", "/v2/models/echo/versions/99/infer",
    "/v2/models/echo/versions/-1/infer", "/v2/models/echo/versions/1e1/infer", "/v2/models/echo/versions/0/infer",
    "/v2/models/echo/versions/99999999999999999999/infer", "/v2/models/echo/versions/%C2%B2/infer",
    "//v2/models/echo/infer", "/v2//models/echo/infer", "/v2/./models/echo/infer", "/v2/models/../models/echo/infer",
    "/v2/models/%2e%2e/infer", "/v2/models/..%2f..%2fetc%2fpasswd/infer", "/v2/models/echo%2finfer",
    "/v2/models/echo%00/infer", "/v2/models/echo/infer%00", "/v2/models/echo%0d%0aX-Evil:1/infer", "/V2/models/echo/infer",
    "/v2/models/echo;x=1/infer", "/v2/models/%c0%ae%c0%ae/infer", "/v2/models/\xff\xfe/infer",
    "/v2/models/" + "a" * 10_000 + "/infer", "/v2/models/echo/../../metrics", "/static/../v2", "/admin/", "/api/keys/",
    "/v2/models/__proto__/infer", "/v2/models/*/infer",
]  # fmt: skip


@pytest.mark.parametrize("path", NOWHERE, ids=lambda path: ascii(path)[:40])
def test_an_address_that_is_none_is_a_typed_refusal(house: House, echo: str, path: str) -> None:
    found = exchange(house.http_port, [head(house, echo, f"Content-Length: {len(GOOD)}", path=path), GOOD])
    check_refusal(found, 400 if "\xff" in path else 404)  # with raw bytes it is no request line at all


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "infer"])
def test_only_post_predicts(house: House, echo: str, method: str) -> None:
    found = exchange(house.http_port, [head(house, echo, "Content-Length: 0", method=method)])
    if method == "infer":
        check_refusal(found, 400)  # no method of HTTP
        return
    assert found.status_code == 405, found.text
    assert found.headers["allow"] == "POST"


# --- who may -----------------------------------------------------------------------------------------------------------


def test_no_key_a_wrong_one_and_a_forged_one_look_the_same(house: House, echo: str) -> None:
    key_id, good = new_key(house)
    until("the key is known", lambda: asks(house, echo, good).status_code == 200, 5)
    house.ok("POST", f"/api/keys/{key_id}/revoke/", {"reason": "a test"})
    until("it is refused", lambda: asks(house, echo, good).status_code == 401, 5)
    token = "ser_tok.eyJ1IjoiYSIsImUiOiJlY2hvIiwiZXhwIjo5OTk5OTk5OTk5LCJzIjoicGxheWdyb3VuZCJ9." + "0" * 64
    bad = [None, "x", "ser_", "ser_.", good[:-1], good + "x", good.upper(), "ser_" + "0" * 12 + ".x", good, token,
           "ser_tok.", "ser_tok.!.!", "Bearer", "null", "a" * 8000]  # fmt: skip
    said = {check_refusal(asks(house, name, key), 401) for key in bad for name in (echo, "nope")}
    assert len(said) == 1, "what is there, and why a key is no good, must not show"


def test_a_key_reaches_only_its_endpoints(house: House, echo: str) -> None:
    _, only_torch = new_key(house, endpoints=["badtorch"])
    until("the key is known", lambda: post_torch(house, only_torch).status_code == 200, 5)
    known, unknown = (check_refusal(asks(house, name, only_torch), 403) for name in (echo, "nope"))
    assert known.replace(echo, "nope") == unknown, "a key learns nothing of what it may not use"
    for path in (f"/v2/models/{echo}", f"/v2/models/{echo}/ready", "/metrics"):
        answer = httpx.get(house.gateway_url + path, headers={"Authorization": f"Bearer {only_torch}"})
        check_refusal(answer, 403)


def post_torch(house: House, key: str) -> httpx.Response:
    return house.infer("badtorch", TORCH_BODY, key=key)


def test_a_key_ends_at_its_hour_and_a_revoked_one_within_a_second(house: House, echo: str) -> None:
    ends = datetime.now(UTC) + timedelta(seconds=4)
    _, short = new_key(house, expires_at=ends.isoformat())
    until("the key is known", lambda: asks(house, echo, short).status_code == 200, 3)
    key_id, revoked = new_key(house)
    until("the key is known", lambda: asks(house, echo, revoked).status_code == 200, 3)
    house.ok("POST", f"/api/keys/{key_id}/revoke/", {"reason": "a test"})
    began = time.monotonic()
    until("a gateway refuses it", lambda: asks(house, echo, revoked).status_code == 401, 5, 0.02)
    assert time.monotonic() - began < 1.0
    time.sleep(max(0.0, (ends - datetime.now(UTC)).total_seconds()) + 0.05)
    check_refusal(asks(house, echo, short), 401)


def test_the_key_is_taken_from_a_header_and_from_nowhere_else(house: House, echo: str) -> None:
    for query in (
        f"key={house.key}",
        f"api_key={house.key}",
        f"token={house.key}",
        f"authorization=Bearer%20{house.key}",
    ):
        answer = httpx.post(f"{house.gateway_url}/v2/models/{echo}/infer?{query}", json=ECHO_BODY)
        check_refusal(answer, 401)
    cookies = {"sessionid": "x", "Authorization": house.key, "key": house.key}
    check_refusal(httpx.post(f"{house.gateway_url}/v2/models/{echo}/infer", json=ECHO_BODY, cookies=cookies), 401)


# --- five hundred mutations --------------------------------------------------------------------------------------------


def test_row_20_random_mutations_are_answers_or_typed_errors(house: House, models: dict[str, Any]) -> None:
    rng = random.Random(SEED)
    seen: dict[int, int] = {}
    with httpx.Client(base_url=house.gateway_url, timeout=30) as client:
        for number in range(MUTATIONS):
            name = rng.choice(list(models))
            whole, headers = json.dumps(models[name]).encode(), {"Authorization": f"Bearer {house.key}"}
            if rng.random() < 0.5:
                size = len(binary())
                whole = binary() + VALUES
                headers["Inference-Header-Content-Length"] = str(size + rng.choice([0, 0, 0, 1, -1, 7, 10**6]))
            body = mutated(rng, whole)
            answer = client.post(f"/v2/models/{name}/infer", content=body, headers=headers)
            seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
            if answer.status_code != 200:
                try:
                    check_refusal(answer, 400, 501)
                except AssertionError:
                    raise AssertionError(f"seed {SEED}, mutation {number}: {body!r}") from None
            if number % 50 == 0:
                assert house.infer(name, models[name]).status_code == 200
    assert seen[400] > MUTATIONS * 0.7, seen
    assert "Traceback" not in (house.data_dir / "logs" / "gateway.log").read_text()


def test_an_answer_is_an_object_of_our_own_type() -> None:
    """The raw client reads what the tests above look at."""
    found = Answer(b'HTTP/1.1 400 Bad\r\nContent-Length: 11\r\nX-A: b\r\n\r\n{"error":1}rest')
    assert (found.status_code, found.headers["x-a"], found.json()) == (400, "b", {"error": 1})
    assert Answer(b"").status_code == 0
