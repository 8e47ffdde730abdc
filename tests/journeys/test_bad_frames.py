"""Bad frames on the WebSocket of the real house: each one a typed error, the connection goes on where it can, the
replica's process is untouched, and the next good request is answered.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.journeys.conftest import ECHO_BODY
from tests.support.bad_requests import MUTATIONS, SEED, VALUES, asks, binary, changed, mutated, new_key, unshaken
from tests.support.house import House, until
from tests.support.hygiene import LEAKS, check_refusal

pytestmark = pytest.mark.timeout(180)
MAX_BODY_BYTES = 64 << 20


@pytest.fixture(autouse=True)
def watched(house: House, echo: str) -> Iterator[None]:
    with unshaken(house, {echo: ECHO_BODY}):
        yield


def stream(house: House, endpoint: str = "echo", **options: Any) -> ClientConnection:
    url = f"{house.gateway_url.replace('http', 'ws')}/v2/models/{endpoint}/stream{options.pop('query', '')}"
    key = options.pop("key", house.key)
    options.setdefault("subprotocols", ["serinus.v1", *([f"serinus.key.{key}"] if key else [])])
    return connect(url, **options)


def heard(socket: ClientConnection) -> dict[str, Any]:
    """The JSON of the next frame, whichever kind it has."""
    frame = socket.recv(timeout=10)
    value: dict[str, Any] = json.loads(
        frame if isinstance(frame, str) else frame[4 : 4 + struct.unpack("<I", frame[:4])[0]]
    )
    return value


def framed(text: bytes, rest: bytes = b"", *, size: int | None = None) -> bytes:
    return struct.pack("<I", len(text) if size is None else size) + text + rest


WITH_ID = json.loads(binary()) | {"id": "b"}
BAD_FRAMES: dict[str, tuple[str | bytes, str]] = {
    "no id": (json.dumps(ECHO_BODY), "invalid_input"),
    "id is a number": (json.dumps(ECHO_BODY | {"id": 1}), "malformed"),
    "id too long": (json.dumps(ECHO_BODY | {"id": "i" * 300}), "invalid_input"),
    "no JSON": ("nonsense", "malformed"),
    "nothing": ("", "malformed"),
    "a list": ("[]", "malformed"),
    "deep JSON": ("[" * 10_000, "malformed"),
    "a lone surrogate": ('{"id": "\\ud800"}', "malformed"),
    "unknown type": (json.dumps({"type": "explode", "id": "u"}), "unsupported"),
    "a chat without its body": (json.dumps({"type": "chat", "id": "u"}), "invalid_input"),
    "no inputs": (json.dumps({"id": "n"}), "invalid_input"),
    "wrong dtype": (json.dumps(changed(datatype="INT8")(ECHO_BODY) | {"id": "w"}), "invalid_input"),
    "binary outputs to a text frame": (
        json.dumps(ECHO_BODY | {"id": "t", "parameters": {"binary_data_output": True}}), "invalid_input"),
    "empty binary frame": (b"", "malformed"),
    "three bytes": (b"\1\2\3", "malformed"),
    "length beyond the frame": (framed(b"{}", size=500), "malformed"),
    "length of four gigabytes": (framed(b"{}", size=2**32 - 1), "malformed"),
    "length longer by one": (framed(json.dumps(WITH_ID).encode(), size=len(json.dumps(WITH_ID)) + 1), "malformed"),
    "length shorter by one": (
        framed(json.dumps(WITH_ID).encode(), VALUES, size=len(json.dumps(WITH_ID)) - 1), "malformed"),
    "bytes short by one": (framed(json.dumps(WITH_ID).encode(), VALUES[:-1]), "malformed"),
    "bytes long by one": (framed(json.dumps(WITH_ID).encode(), VALUES + b"\0"), "malformed"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_FRAMES)
def test_a_bad_frame_is_a_typed_error_and_the_connection_goes_on(house: House, echo: str, kind: str) -> None:
    frame, code = BAD_FRAMES[kind]
    with stream(house, echo) as socket:
        socket.send(frame)
        refusal = heard(socket)
        assert refusal["code"] == code, refusal
        assert set(refusal) <= {"id", "error", "code", "retry_after_s"}
        assert "id" in refusal
        assert not LEAKS.search(refusal["error"])
        answer = told(socket, json.dumps(ECHO_BODY | {"id": "good"}))
        assert (answer["id"], answer["outputs"][0]["data"]) == ("good", [2, 4, 6, 8])


@pytest.mark.parametrize("frame", ["x" * ((1 << 20) + 1), bytes((16 << 20) + 1)], ids=["text", "binary"])
def test_a_frame_that_is_too_large_ends_its_own_connection(house: House, echo: str, frame: str | bytes) -> None:
    with stream(house, echo, max_size=None) as socket, pytest.raises(ConnectionClosed):
        told(socket, frame)


def told(socket: ClientConnection, frame: str | bytes) -> dict[str, Any]:
    socket.send(frame)
    return heard(socket)


@pytest.mark.parametrize(
    "options",
    [
        {"key": ""},
        {"key": "ser_000000000000.nope"},
        {"key": "", "query": "?key={key}"},
        {"key": "", "query": "?token={key}&authorization={key}"},
        {"key": "", "additional_headers": {"Cookie": "sessionid=abc; key={key}"}},
        {"key": "", "origin": "http://evil.example", "additional_headers": {"Cookie": "sessionid=abc"}},
        {"endpoint": "nope"},
        {"subprotocols": ["serinus.key."]},
    ],
    ids=str,
)
def test_a_handshake_without_a_key_is_refused(house: House, echo: str, options: dict[str, Any]) -> None:
    wish = json.loads(json.dumps(options).replace("{key}", house.key))
    with pytest.raises(InvalidStatus) as refused:
        stream(house, wish.pop("endpoint", echo), **wish)
    assert refused.value.response.status_code == 403


def test_a_session_of_the_console_opens_nothing_at_the_gateway(house: House, echo: str) -> None:
    """A page anywhere can make a browser send its cookies; the gateway takes only what such a page cannot send."""
    from tests.support.house import PASSWORD

    with httpx.Client(base_url=house.console_url) as browser:
        form = browser.get("/login/")
        token = form.text.split('name="csrfmiddlewaretoken" value="')[1].split('"')[0]
        fields = {"username": "admin", "password": PASSWORD, "csrfmiddlewaretoken": token}
        assert browser.post("/login/", data=fields, headers={"Referer": house.console_url}).status_code == 302
        cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    assert "sessionid=" in cookie
    with pytest.raises(InvalidStatus):
        stream(house, echo, key="", origin=house.console_url, additional_headers={"Cookie": cookie})
    answer = httpx.post(f"{house.gateway_url}/v2/models/{echo}/infer", json=ECHO_BODY, headers={"Cookie": cookie})
    check_refusal(answer, 401)
    console = house.console_url.replace("http", "ws") + "/ws/console/"
    with pytest.raises(InvalidStatus):
        connect(console, origin="http://evil.example", additional_headers={"Cookie": cookie})
    with pytest.raises(InvalidStatus):
        connect(console, origin=f"http://127.0.0.1:{house.http_port}", additional_headers={"Cookie": cookie})
    with connect(console, origin=house.console_url, additional_headers={"Cookie": cookie}) as socket:
        socket.send(json.dumps({"type": "subscribe", "topic": "dashboard"}))
        assert json.loads(socket.recv(timeout=10))["type"] == "snapshot"


def test_a_revoked_key_ends_an_open_stream(house: House, echo: str) -> None:
    key_id, token = new_key(house)
    until("the key is known", lambda: asks(house, echo, token).status_code == 200, 5)
    with stream(house, echo, key=token) as socket:
        assert told(socket, json.dumps(ECHO_BODY | {"id": "1"}))["outputs"]
        house.ok("POST", f"/api/keys/{key_id}/revoke/", {"reason": "a test"})
        until("it is refused", lambda: asks(house, echo, token).status_code == 401, 5)
        assert told(socket, json.dumps(ECHO_BODY | {"id": "2"}))["code"] == "unauthenticated"
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=5)


def test_random_frames_are_answers_or_typed_errors(house: House, echo: str) -> None:
    rng = random.Random(SEED + 1)
    text = json.dumps(ECHO_BODY | {"id": "x"}).encode()
    both = (text, framed(json.dumps(WITH_ID).encode(), VALUES))
    with stream(house, echo) as socket:
        for number in range(MUTATIONS // 2):
            whole = rng.choice(both)
            data = mutated(rng, whole)
            answer = told(socket, data.decode(errors="replace") if whole is text else data)
            assert "outputs" in answer or answer["code"] in {"malformed", "invalid_input", "unsupported"}, (
                number,
                data,
            )
