"""The JSON of WebSocket frames, and the binary frames that carry tensors beside it: docs/websocket.md in structs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import msgspec

from inference.errors import InvalidInput, Malformed, ReplicaLost, SerinusError
from inference.gateway import calls, codec
from inference.gateway.bodies import Held
from inference.gateway.web import Part

MAX_CREDIT = 1 << 20

Credit = Annotated[int, msgspec.Meta(ge=0, le=MAX_CREDIT)]


class FrameBody(calls.InferBody):
    """The JSON of a frame from a client.

    model, version: the endpoint, where the address names none, and a pinned version. session: the sticky key of this
    one request. credit: how many answers may come before more is granted, None for no bound; n: how many are granted.
    """

    type: str = "infer"
    model: str = ""
    version: int | str | None = None
    session: str = ""
    credit: Credit | None = None
    n: Credit = 0
    traceparent: str = ""


OWN_KEYS = frozenset(FrameBody.__struct_fields__)


class ErrorFrame(msgspec.Struct, omit_defaults=True):
    id: str | None
    error: str
    code: str
    retry_after_s: float | None = None
    last_token: int | None = None


class VerbFrame(msgspec.Struct, omit_defaults=True):
    """The answer to a question that is no inference; `body` is what the REST door says to it."""

    type: str
    id: str
    ready: bool | None = None
    body: msgspec.Raw = msgspec.Raw()


class Begun(NamedTuple):
    """What the beginning of a binary frame says of the whole. start: where its tensors begin; size_bytes: of the frame,
    as far as its JSON says so.
    """

    start: int
    size_bytes: int = 0
    model: str = ""
    version: int | str | None = None


class Frame(NamedTuple):
    """A frame that waits. head: its JSON; rest: the tensors of a binary one; held: what is counted for it."""

    body: FrameBody
    head: Part
    rest: memoryview
    held: Held | None
    is_text: bool


class _BegunInput(msgspec.Struct):
    parameters: dict[str, Any] | None = None


class _BegunBody(msgspec.Struct):
    inputs: list[_BegunInput] = []
    model: str = ""
    version: int | str | None = None


_decode_begun = msgspec.json.Decoder(_BegunBody).decode
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(FrameBody).decode
_decode_any = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def parse(data: bytes | memoryview) -> FrameBody:
    """A frame's JSON. Raises Malformed."""
    try:
        return _decode(data)
    except RecursionError as error:
        raise Malformed(f"JSON is nested deeper than {codec.MAX_DEPTH}") from error
    except codec.JSON_ERRORS as error:
        raise Malformed(f"failed to parse the frame's JSON: {error}") from error


def generate_body(data: bytes | memoryview, body: FrameBody) -> bytes:
    """The generate request in a frame's JSON: what it has beside the keys of every frame. Raises Malformed."""
    try:
        found = _decode_any(data)
    except codec.JSON_ERRORS as error:
        raise Malformed(f"failed to parse the frame's JSON: {error}") from error
    own: dict[str, Any] = {"id": body.id, "parameters": body.parameters or {}}
    return _encode(own | {name: value for name, value in found.items() if name not in OWN_KEYS})


def version_of(body: FrameBody | Begun) -> int | None:
    """Raises InvalidInput."""
    found = body.version
    if found is None or found == "":
        return None
    if isinstance(found, str):
        if not found.isascii() or not found.isdigit() or len(found) > 9:
            raise InvalidInput("'version' must be a number")
        return int(found)
    if not 0 <= found < 1 << 31:
        raise InvalidInput("'version' must be a number")
    return found


def split(data: bytes | memoryview) -> tuple[memoryview, memoryview]:
    """JSON and tensors of a binary frame. Raises Malformed."""
    view = memoryview(data)
    size = int.from_bytes(view[:4], "little") if len(view) >= 4 else -1
    if not 0 <= size <= len(view) - 4:
        raise Malformed("the JSON length of a binary frame does not fit the frame")
    return view[4 : 4 + size], view[4 + size :]


def begun(first: bytes) -> Begun | None:
    """None while the JSON is not all there; of JSON that is wrong only where it ends."""
    start = 4 + int.from_bytes(first[:4], "little")
    if len(first) < max(4, start):
        return None
    try:
        body = _decode_begun(memoryview(first)[4:start])
    except (RecursionError, *codec.JSON_ERRORS):
        return Begun(start)
    sizes = [one.parameters.get("binary_data_size") for one in body.inputs if one.parameters]
    return Begun(start, start + sum(size for size in sizes if type(size) is int and size > 0), body.model, body.version)


def join(text: bytes, parts: Sequence[Part], *, is_text: bool) -> list[Part]:
    """A frame of JSON and tensors; a text frame has no tensors."""
    return [text] if is_text else [len(text).to_bytes(4, "little"), text, *parts]


def response(text: bytes, *, is_final: bool) -> bytes:
    """An answer's JSON as one of several."""
    return (b'{"type":"response","final":true,' if is_final else b'{"type":"response","final":false,') + text[1:]


def error(identity: str | None, found: SerinusError) -> bytes:
    last = found.last_token if isinstance(found, ReplicaLost) else None
    return _encode(ErrorFrame(identity, found.message, found.code, found.retry_after_s, last))


def verb(kind: str, identity: str, body: bytes) -> bytes:
    return _encode(VerbFrame(kind, identity, body=msgspec.Raw(body)))


def readiness(identity: str, *, is_ready: bool) -> bytes:
    return _encode(VerbFrame("ready", identity, is_ready))


def pong(identity: str) -> bytes:
    return _encode({"type": "pong", "id": identity} if identity else {"type": "pong"})
