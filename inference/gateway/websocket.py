"""The WebSocket door, as docs/websocket.md specifies it: many predictions in flight on one connection.

A connection has a bounded number of requests under way, counting answers that its reader has not taken yet; beyond
it nothing more is read, so a slow reader pauses only itself. A reader that takes nothing for 30 s is cut.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING

import msgspec

from inference.errors import (
    Cancelled,
    Conflict,
    Draining,
    Forbidden,
    InvalidInput,
    Malformed,
    NotFound,
    SerinusError,
    ServerError,
    Unauthenticated,
    Unsupported,
)
from inference.gateway import calls, codec, sockets
from inference.gateway.dataplane import Asked, DataPlane, Done
from inference.gateway.heads import Head
from inference.gateway.predict import credential_of, timeout_of
from inference.gateway.table import Variant

if TYPE_CHECKING:
    from inference.gateway.http import Connection

PROTOCOL = "serinus.v1"
KEY_PROTOCOL = "serinus.key."
MAX_IN_FLIGHT = 64
MAX_TEXT_BYTES = 1 << 20
MAX_BINARY_BYTES = 16 << 20
PING_S = 20.0
IDLE_S = 600.0
STALL_S = 30.0
CLOSE_S = 5.0
BEAT_S = 1.0
_EMPTY = memoryview(b"")
_FATAL = (Unauthenticated, Forbidden, NotFound)
_log = logging.getLogger(__name__)


class FrameBody(calls.InferBody):
    """The JSON of a frame from a client. `session` overrides the connection's sticky key for this request."""

    type: str = "infer"
    session: str = ""


class ErrorFrame(msgspec.Struct, omit_defaults=True):
    id: str | None
    error: str
    code: str
    retry_after_s: float | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(FrameBody).decode


def parse(data: bytes | memoryview) -> FrameBody:
    """A frame's JSON. Raises Malformed."""
    try:
        return _decode(data)
    except RecursionError as error:
        raise Malformed(f"JSON is nested deeper than {codec.MAX_DEPTH}") from error
    except codec.JSON_ERRORS as error:
        raise Malformed(f"failed to parse the frame's JSON: {error}") from error


def split(data: bytes) -> tuple[memoryview, memoryview]:
    """JSON and tensors of a binary frame. Raises Malformed."""
    view = memoryview(data)
    size = int.from_bytes(view[:4], "little") if len(view) >= 4 else -1
    if not 0 <= size <= len(view) - 4:
        raise Malformed("the JSON length of a binary frame does not fit the frame")
    return view[4 : 4 + size], view[4 + size :]


class _Stream:
    """One connection."""

    def __init__(self, plane: DataPlane, socket: sockets.Socket, name: str, number: int | None) -> None:
        self.plane = plane
        self.socket = socket
        self.name = name
        self.number = number
        self.credential = ""
        self.sticky = ""
        self.timeout_ms = 0
        self.pings = False
        self.closing = False
        self.heard = self.pinged = time.monotonic()
        self.closed_at = 0.0
        self._of_id: dict[str, asyncio.Task[None]] = {}
        self._room = asyncio.Event()
        self._room.set()

    # -- reading ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Reads frames until the client leaves; then everything it asked for is cancelled."""
        try:
            while (message := await self.socket.receive()) is not None:
                self.heard = time.monotonic()
                await self._room.wait()
                if not self.closing:
                    await self._frame(message)
                self.heard = time.monotonic()
        finally:
            self.closing = True
            for task in self._of_id.values():
                task.cancel()

    async def _frame(self, message: str | bytes) -> None:
        binary = isinstance(message, bytes)
        raw, limit = (message, MAX_BINARY_BYTES) if isinstance(message, bytes) else (message.encode(), MAX_TEXT_BYTES)
        if len(raw) > limit:
            await self.close(1009, f"a frame may have {limit} bytes")
            return
        identity: str | None = None
        try:
            head, rest = split(raw) if binary else (raw, _EMPTY)
            body = parse(head)
            identity = body.id or None
            await self._take(body, rest, binary=binary)
        except SerinusError as error:
            await self.error(identity, error, binary=binary)

    async def _take(self, body: FrameBody, rest: memoryview, *, binary: bool) -> None:
        if body.type == "pong":
            return
        if body.type == "cancel":
            await self._cancel(body.id, binary=binary)
            return
        if body.type != "infer":
            raise Unsupported(f"frames of type '{body.type[:64]}' are not supported")
        if not body.id:
            raise InvalidInput("an infer frame needs an 'id', a string that is not empty")
        if body.id in self._of_id:
            raise Conflict("a request with this id is already under way on this connection")
        if self.plane.draining:
            raise Draining
        task = asyncio.ensure_future(self._infer(body, rest, binary=binary))
        self._of_id[body.id] = task
        if len(self._of_id) >= MAX_IN_FLIGHT:
            self._room.clear()
        task.add_done_callback(lambda _: self._ended(body.id))

    def _ended(self, identity: str) -> None:
        del self._of_id[identity]
        self._room.set()

    async def _cancel(self, identity: str, *, binary: bool) -> None:
        task = self._of_id.get(identity)
        if task is not None and task.cancel():
            await self.error(identity, Cancelled(), binary=binary)

    # -- answering -------------------------------------------------------------------------------------------------

    async def _infer(self, body: FrameBody, rest: memoryview, *, binary: bool) -> None:
        def reader(variant: Variant) -> calls.Call:
            call = calls.read(body, rest, self.name, variant.route.signature, binary=binary)
            if not binary and (call.binary is None or call.binary):
                raise InvalidInput("binary outputs are sent only in answer to a binary frame")
            return call

        try:
            # asked anew for every request: a key that was revoked meanwhile is refused
            caller, endpoint = self.plane.admit(self.name, self.credential)
            asked = Asked(caller, endpoint, self.number, body.session or self.sticky, self.timeout_ms)
            frame = self._answer(await self.plane.infer(asked, reader), binary=binary)
        except SerinusError as error:
            await self.error(body.id, error, binary=binary)
        except Exception:  # noqa: BLE001 (logged in full; the client gets one fixed sentence)
            _log.exception("a request on a stream of '%s' failed", self.name)
            await self.error(body.id, ServerError(), binary=binary)
        else:
            await self.send(frame)

    def _answer(self, done: Done, *, binary: bool) -> str | bytes:
        arm = {"rollout_arm": done.variant.route.arm}
        text, parts = calls.write(
            done.call, self.name, done.variant.version, done.answer.tensors, done.body, parameters=arm
        )
        if binary:
            return b"".join((len(text).to_bytes(4, "little"), text, *parts))
        return text.decode()

    async def error(self, identity: str | None, error: SerinusError, *, binary: bool) -> None:
        """Sends an error frame; closes the connection when its key is no longer good."""
        text = _encode(ErrorFrame(identity, error.message, error.code, error.retry_after_s))
        if binary:
            await self.send(len(text).to_bytes(4, "little") + text)
        else:
            await self.send(text.decode())
        if isinstance(error, _FATAL):
            await self.close(1008, error.code)

    async def send(self, message: str | bytes) -> None:
        """Sends one frame once the client has taken most of those before it; drops it when the connection is closing."""
        await self.socket.drained()
        if not self.closing:
            self.socket.send(message)

    async def close(self, code: int, reason: str = "") -> None:
        """Begins the closing handshake; whatever is sent after this is dropped."""
        if not self.closing:
            self.closing = True
            self.closed_at = time.monotonic()
            self._room.set()
            self.socket.close(code, reason)

    def cut(self) -> None:
        """Ends the connection, whatever waits on it."""
        self.closing = True
        self._room.set()
        self.socket.cut()

    # -- life ------------------------------------------------------------------------------------------------------

    def beat(self, now: float) -> Awaitable[None] | None:
        """What is due at `now`: nothing, a ping or a goodbye, as an awaitable. Cuts a reader that takes nothing."""
        stalled_since = self.socket.stalled_since
        if stalled_since:
            if now - stalled_since > STALL_S:
                self.cut()
            return None
        if self.closed_at and now - self.closed_at > CLOSE_S:
            self.cut()
        if self.closing or not self._room.is_set():
            return None
        silent_s = now - self.heard
        if silent_s > IDLE_S and not self._of_id:
            return self.close(1000, "idle")
        if self.pings and silent_s > 2 * PING_S:
            return self.close(1001, "no pong")
        if self.pings and silent_s > PING_S and now - self.pinged > PING_S:
            self.pinged = now
            return self.send('{"type":"ping"}')
        return None

    async def drain(self) -> None:
        """Tells the client, lets what is under way finish, closes."""
        await self.send('{"type":"draining"}')
        while self._of_id:
            await asyncio.wait(list(self._of_id.values()))
        await self.close(1012, "the server is restarting")


class Streams:
    """All WebSocket connections of this process."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self._open: set[_Stream] = set()
        self._errands: set[asyncio.Future[None]] = set()

    def __len__(self) -> int:
        return len(self._open)

    def refuse(self, connection: Connection) -> None:
        """A handshake that is not for here, or not allowed: in the same words for every reason."""
        connection.respond(403, [(b"connection", b"close")], b"")

    def open(
        self, connection: Connection, head: Head, rest: bytes, *, name: str, number: int | None, request_id: str
    ) -> None:
        """Answers a handshake; the connection then speaks WebSocket until it ends."""
        offered = sockets.subprotocols(head)
        credential = _credential(head, offered)
        try:
            caller, endpoint = self._plane.admit(name, credential)
            if number is not None:
                endpoint.pinned(number)
            timeout_ms = timeout_of(head.headers)
            if self._plane.draining:
                raise Draining
            answer = sockets.handshake(head, PROTOCOL if PROTOCOL in offered else None)
        except SerinusError:
            self.refuse(connection)
            return
        transport = connection.take_over()
        transport.write(answer)
        stream = _Stream(self._plane, sockets.of(transport, max_bytes=MAX_BINARY_BYTES), name, number)
        stream.credential = credential
        stream.timeout_ms = timeout_ms
        session = head.headers.get(b"x-session-id")
        stream.sticky = session.decode("latin-1") if session else caller.id or request_id
        stream.pings = PROTOCOL in offered
        self._open.add(stream)
        errand = asyncio.ensure_future(self._serve(stream))
        self._errands.add(errand)
        errand.add_done_callback(self._errands.discard)
        if rest:
            stream.socket.data_received(rest)

    async def _serve(self, stream: _Stream) -> None:
        try:
            await stream.run()
        finally:
            self._open.discard(stream)

    async def run(self) -> None:
        """Pings, idle limits and stalled readers, for ever."""
        while True:
            await asyncio.sleep(BEAT_S)
            now = time.monotonic()
            for stream in list(self._open):
                due = stream.beat(now)
                if due is not None:
                    errand = asyncio.ensure_future(due)
                    self._errands.add(errand)
                    errand.add_done_callback(self._errands.discard)

    async def drain(self) -> None:
        """Tells every client, lets what is under way finish, and closes all of them."""
        await asyncio.gather(*(stream.drain() for stream in list(self._open)), return_exceptions=True)
        end = time.monotonic() + 1.0
        while self._open and time.monotonic() < end:  # noqa: ASYNC110 (each leaves by itself)
            await asyncio.sleep(0.02)


def _credential(head: Head, offered: list[str]) -> str:
    for protocol in offered:
        if protocol.startswith(KEY_PROTOCOL):
            return protocol[len(KEY_PROTOCOL) :]
    return credential_of(head.headers)
