"""Every address of the gateway, every method, every kind of caller: generated from the gateway's own table of routes."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import httpx
import pytest

from inference.gateway import feedback_ids
from tests.support.gateway_doors import doors_of_the_gateway
from tests.support.gateway_house import SECRET, Gateway, House, key, until
from tests.support.hygiene import LEAKS, check_refusal
from tests.support.rawhttp import Answer, exchange

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "A")


@dataclass(frozen=True)
class Door:
    """methods: those that it has. public: needs no key. scope: "model" for keys of that endpoint, "all" for keys of
    every endpoint, "any" for any key. changes: whoever POSTs needs a key for every endpoint.
    """

    methods: frozenset[str] = frozenset({"GET", "HEAD"})
    scope: str = "model"
    public: bool = False
    changes: bool = False


READ, POST = Door(), Door(frozenset({"POST"}))
BOTH = frozenset({"GET", "HEAD", "POST"})
ANY, POST_ANY = Door(scope="any"), Door(frozenset({"POST"}), scope="any")
# The expectation: a route of the gateway that is not here fails the first test.
SERVER = {
    "/v2": ANY,
    "/v2/health/live": Door(public=True),
    "/v2/health/ready": Door(public=True),
    "/v2/models/stats": ANY,
    "/v2/logging": Door(BOTH, scope="any", changes=True),
    "/v2/trace/setting": Door(BOTH, scope="any", changes=True),
    "/v2/stream": ANY,
    "/metrics": Door(scope="all"),
}
MODEL = {
    None: READ, "ready": READ, "config": READ, "stats": READ, "trace/setting": Door(BOTH, changes=True),
    "infer": POST, "generate": POST, "generate_stream": POST, "stream": READ,
}  # fmt: skip
SHARED = "sharedmemory"
SCORED = "mlp.1.p.65000000.1"  # an answer of long ago
PATTERNS = {
    "repository index": (POST_ANY, ["/v2/repository/index", "/v2/repository/r/index"]),
    "repository change": (
        POST_ANY,
        [f"/v2/repository{place}/models/mlp/{verb}" for place in ("", "/r") for verb in ("load", "unload")],
    ),
    "feedback": (POST, [f"/v2/feedback/{SCORED}.{feedback_ids.sign(SECRET.encode(), SCORED)}"]),
    **{
        f"{kind} {verb}": (door, [f"/v2/{word}{SHARED}{place}/{verb}" for place in ("", "/region/x")])
        for kind, word in (("shared", "system"), ("cuda", "cuda"))
        for verb, door in (("status", ANY), ("register", POST_ANY), ("unregister", POST_ANY))
    },
}


def walk() -> dict[str, Door]:
    """Path -> what is expected of it, for every route that the gateway's table has."""
    doors = doors_of_the_gateway()
    assert set(doors.paths) == set(SERVER), "add the new route to this table"
    assert set(doors.verbs) == set(MODEL), "add the new verb to this table"
    assert {what for what, _, _ in doors.patterns} == set(PATTERNS), "add the new pattern to this table"
    found = dict(SERVER)
    for (verb, door), number in product(MODEL.items(), ("", "/versions/1")):
        found[f"/v2/models/mlp{number}" + (f"/{verb}" if verb else "")] = door
    for what, pattern, door in doors.patterns:
        expected, paths = PATTERNS[what]
        assert door.methods == expected.methods
        assert all(pattern.fullmatch(path) for path in paths)
        found |= dict.fromkeys(paths, expected)
    return found


ROUTES = dict(sorted(walk().items()))  # the verbs are a set: another order in each process


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    house = House()
    house.replica()
    found = house.gateway()
    keys = [key("all", "s", ["*"]), key("mlp", "s", ["mlp"]), key("other", "s", ["nope"]), key("none", "s", []),
            key("late", "s", ["*"], time.time() - 1)]  # fmt: skip
    house.publish(house.table(keys=keys))
    found.wait_live()
    until(lambda: found.get("/v2/models/mlp/ready", key="ser_all.s").status_code == 200, 15)
    yield found
    house.close()


def call(gateway: Gateway, method: str, path: str, credential: str = "", **headers: str) -> Answer:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Length: 0", "Connection: close"]
    lines += [f"Authorization: Bearer {credential}"] if credential else []
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return exchange(gateway.port, ["\r\n".join([*lines, "", ""]).encode()])


def is_no_method(found: Answer) -> bool:
    """Whether it is the HTTP parser's own refusal of what is no method."""
    return found.status_code == 400 and "is no HTTP/1.1" in found.text


BAD = ("", "ser_all.wrong", "ser_gone.s", "ser_late.s", "nonsense", "ser_tok.e30." + "0" * 64)


@pytest.mark.parametrize("path", ROUTES)
def test_nobody_unknown_gets_in(gateway: Gateway, path: str) -> None:
    door = ROUTES[path]
    for method, credential in product(METHODS, BAD):
        found = call(gateway, method, path, credential)
        if is_no_method(found):
            continue
        if door.public:
            assert found.status_code in {200, 405}, (method, credential)
        elif method in door.methods:
            assert found.status_code == 401, (method, credential, found.status_code)
        else:
            assert found.status_code in {401, 405}, (method, credential, found.status_code)
        assert not LEAKS.search(found.text)


@pytest.mark.parametrize("path", ROUTES)
def test_only_its_own_methods_exist(gateway: Gateway, path: str) -> None:
    door = ROUTES[path]
    for method in METHODS:
        found = call(gateway, method, path, "ser_all.s")
        if is_no_method(found):
            assert method in {"get", "A", "CONNECT"}
            continue
        if method not in door.methods:
            assert found.status_code == 405, (method, found.status_code)
            assert set(found.headers["allow"].split(", ")) == door.methods
        else:
            assert found.status_code in {200, 400, 501, 503}, (method, found.text)


@pytest.mark.parametrize("path", ROUTES)
def test_a_key_opens_what_it_is_for(gateway: Gateway, path: str) -> None:
    door = ROUTES[path]
    for name, method in product(("mlp", "other", "none"), door.methods & {"GET", "POST"}):
        found = call(gateway, method, path, f"ser_{name}.s")
        may = door.public or door.scope == "any" or (door.scope == "model" and name == "mlp")
        if may and not (door.changes and method == "POST"):
            assert found.status_code in {200, 400, 501, 503}, (name, found.text)
        else:
            check_refusal(found, 403)


@pytest.mark.parametrize("path", [path for path in ROUTES if path.startswith("/v2/models/mlp")])
def test_what_one_may_not_use_and_what_is_not_there_look_the_same(gateway: Gateway, path: str) -> None:
    method = "POST" if "POST" in ROUTES[path].methods else "GET"
    for credential in ("", "ser_none.s"):
        here, nowhere = (call(gateway, method, place, credential) for place in (path, path.replace("mlp", "zzz")))
        assert here.status_code == nowhere.status_code
        assert here.text.replace("mlp", "zzz") == nowhere.text


def test_a_stream_opens_for_the_same_keys(gateway: Gateway) -> None:
    upgrade = {"Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "MDEyMzQ1Njc4OTAxMjM0NQ=="}

    def status(credential: str, path: str = "/v2/models/mlp/stream") -> int:
        lines = [f"GET {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: Upgrade"]
        lines += [f"Authorization: Bearer {credential}"] if credential else []
        lines += [f"{name}: {value}" for name, value in upgrade.items()]
        return exchange(gateway.port, ["\r\n".join([*lines, "", ""]).encode()], timeout_s=1).status_code

    assert status("ser_mlp.s") == 101
    assert status("ser_mlp.s", "/v2/stream") == 101  # each of its frames is judged by itself
    for credential in (*BAD, "ser_other.s", "ser_none.s"):
        assert status(credential) == 403, credential
    for credential in BAD:
        assert status(credential, "/v2/stream") == 403, credential
    for path in (*ROUTES, "/", "/v2/models/zzz/stream", "/v2/models/mlp/versions/9/stream", "/v2/models/mlp%2fstream"):
        if not path.endswith("/stream") or ROUTES.get(path) not in {READ, ANY}:
            assert status("ser_all.s", path) == 403, path


def test_every_address_beside_the_table_is_a_404(gateway: Gateway) -> None:
    for path in (*ROUTES, "/v1/models", "/api/keys/", "/admin/", "/docs", "/openapi.json", "/debug", "/static/x"):
        for odd in (path + "x", path + "/", "/" + path, path.upper(), path.replace("/", "//", 1)):
            if odd not in ROUTES:
                found = call(gateway, "GET", odd, "ser_all.s")
                assert found.status_code == 404, odd
                assert not LEAKS.search(found.text)


def test_answers_carry_nothing_that_a_caller_put_into_headers(gateway: Gateway) -> None:
    for value in ("<script>", "a b", "x" * 200, "a\x01"):
        answer = call(gateway, "GET", "/v2", "ser_all.s", **{"X-Request-Id": value})
        if answer.body:
            assert answer.headers["x-request-id"] != value


def test_no_answer_of_the_whole_walk_left_a_traceback(gateway: Gateway) -> None:
    assert httpx.get(gateway.url + "/v2/health/live").status_code == 200
    assert not re.search("Traceback|Error", gateway.log.read_text())
