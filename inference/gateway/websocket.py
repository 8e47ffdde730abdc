"""The WebSocket door, as docs/websocket.md specifies it: many predictions in flight on one connection.

A connection has a bounded number of requests under way, counting answers that its reader has not taken yet; beyond
it nothing more is read, so a slow reader pauses only itself. A reader that takes nothing for 30 s is cut.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

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
from inference.gateway.bodies import Receive
from inference.gateway.dataplane import DataPlane, Done
from inference.gateway.deadlines import Ticket
from inference.gateway.rest import Given, credential_of, timeout_of
from inference.protocol.oip import Signature

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
OPEN_S = 30.0
_EMPTY = memoryview(b"")
_FATAL = (Unauthenticated, Forbidden, NotFound)
_log = logging.getLogger(__name__)

Send = Callable[[dict[str, Any]], Awaitable[None]]


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

    def __init__(self, plane: DataPlane, send: Send, name: str, number: int | None) -> None:
        self.plane = plane
        self.name = name
        self.number = number
        self.credential = ""
        self.sticky = ""
        self.timeout_ms = 0
        self.pings = False
        self.closing = False
        self.heard = self.pinged = time.monotonic()
        self.sending_since = 0.0
        self.closed_at = 0.0
        self.peer: sockets.Peer | None = None
        self.task: asyncio.Task[Any] | None = None
        self.tickets: dict[str, Ticket] = {}
        self._send = send
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Event()
        self._room.set()

    # -- reading ---------------------------------------------------------------------------------------------------

    async def run(self, receive: Receive) -> None:
        """Reads frames until the client leaves; then everything it asked for is cancelled."""
        try:
            while True:
                message = await receive()
                if message["type"] != "websocket.receive":
                    return
                self.heard = time.monotonic()
                await self._room.wait()
                if not self.closing:
                    await self._frame(message)
                self.heard = time.monotonic()
                if self.closing:
                    return
        finally:
            self.closing = True
            for ticket in self.tickets.values():
                ticket.fail(Cancelled())

    async def _frame(self, message: dict[str, Any]) -> None:
        text, data = message.get("text"), message.get("bytes")
        if text is not None:
            raw, limit = text.encode("utf-8", "surrogatepass"), MAX_TEXT_BYTES
        else:
            raw, limit = data or b"", MAX_BINARY_BYTES
        if len(raw) > limit:
            await self.close(1009, f"a frame may have {limit} bytes")
            return
        identity: str | None = None
        try:
            head, rest = split(raw) if text is None else (raw, _EMPTY)
            body = parse(head)
            identity = body.id or None
            self._take(body, rest, binary=text is None)
        except SerinusError as error:
            await self.error(identity, error, binary=text is None)

    def _take(self, body: FrameBody, rest: memoryview, *, binary: bool) -> None:
        if body.type == "pong":
            return
        if body.type == "cancel":
            ticket = self.tickets.get(body.id)
            if ticket is not None:
                ticket.fail(Cancelled())
            return
        if body.type != "infer":
            raise Unsupported(f"frames of type '{body.type[:64]}' are not supported")
        if not body.id:
            raise InvalidInput("an infer frame needs an 'id', a string that is not empty")
        if body.id in self.tickets:
            raise Conflict("a request with this id is already under way on this connection")
        if self.plane.draining:
            raise Draining
        ticket = self.tickets[body.id] = self.plane.deadlines.open(OPEN_S)
        if len(self.tickets) >= MAX_IN_FLIGHT:
            self._room.clear()
        task = asyncio.ensure_future(self._infer(body, rest, ticket, binary=binary))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- answering -------------------------------------------------------------------------------------------------

    async def _infer(self, body: FrameBody, rest: memoryview, ticket: Ticket, *, binary: bool) -> None:
        def reader(model: str, signature: Signature) -> calls.Call:
            call = calls.read(body, rest, model, signature, binary=binary)
            if not binary and (call.binary is None or call.binary):
                raise InvalidInput("binary outputs are sent only in answer to a binary frame")
            return call

        try:
            try:
                # asked anew for every request: a key that was revoked meanwhile is refused
                _, endpoint = self.plane.admit(self.name, self.credential)
                sticky = body.session or self.sticky
                done = await self.plane.infer(
                    endpoint, self.number, sticky, reader, ticket=ticket, timeout_ms=self.timeout_ms
                )
                frame = self._answer(done, binary=binary)
            except SerinusError as error:
                await self.error(body.id, error, binary=binary)
            except Exception:  # noqa: BLE001 (logged in full; the client gets one fixed sentence)
                _log.exception("a request on a stream of '%s' failed", self.name)
                await self.error(body.id, ServerError(), binary=binary)
            else:
                await self.send(frame)
        finally:
            self.plane.deadlines.close(ticket)
            self.tickets.pop(body.id, None)
            self._room.set()

    def _answer(self, done: Done, *, binary: bool) -> dict[str, Any]:
        arm = {"rollout_arm": done.variant.route.arm}
        text, parts = calls.write(
            done.call, self.name, done.variant.version, done.answer.tensors, done.body, parameters=arm
        )
        if binary:
            return {"type": "websocket.send", "bytes": b"".join((len(text).to_bytes(4, "little"), text, *parts))}
        return {"type": "websocket.send", "text": text.decode()}

    async def error(self, identity: str | None, error: SerinusError, *, binary: bool) -> None:
        """Sends an error frame; closes the connection when its key is no longer good."""
        text = _encode(ErrorFrame(identity, error.message, error.code, error.retry_after_s))
        if binary:
            await self.send({"type": "websocket.send", "bytes": len(text).to_bytes(4, "little") + text})
        else:
            await self.send({"type": "websocket.send", "text": text.decode()})
        if isinstance(error, _FATAL):
            await self.close(1008, error.code)

    async def send(self, message: dict[str, Any]) -> None:
        """Sends one frame when those before it are out; drops it when the connection is gone."""
        async with self._lock:
            if self.closing:
                return
            self.sending_since = time.monotonic()
            try:
                await self._send(message)
            except Exception as error:  # noqa: BLE001 (the server says in its own words that the client is gone)
                _log.debug("a frame was not sent: %s", error)
                self.closing = True
            finally:
                self.sending_since = 0.0

    async def close(self, code: int, reason: str = "") -> None:
        """Begins the closing handshake; whatever waits to be sent after this is dropped."""
        if asyncio.current_task() is self.task:  # nothing is pending in receive(), the server's own close will do
            await self.send({"type": "websocket.close", "code": code, "reason": reason})
            self.closing = True
        elif await self.retire() and self.peer is not None:
            sockets.close({self.peer: sockets.close_frame(code, reason)})

    async def retire(self) -> bool:
        """Stops sending, as soon as what is being sent is out; False when that was so already."""
        async with self._lock:
            if self.closing:
                return False
            self.closing = True
            self.closed_at = time.monotonic()
            self._room.set()
            return True

    def cut(self) -> None:
        """Ends the connection, whatever waits on it."""
        self.closing = True
        self._room.set()
        if self.peer is not None:
            sockets.cut({self.peer})

    # -- life ------------------------------------------------------------------------------------------------------

    def beat(self, now: float) -> Awaitable[None] | None:
        """What is due at `now`: nothing, a ping or a goodbye, as an awaitable. Cuts a reader that takes nothing."""
        if self.sending_since:
            if now - self.sending_since > STALL_S:
                self.cut()
            return None
        if self.closed_at and now - self.closed_at > CLOSE_S:
            self.cut()
        if self.closing or not self._room.is_set():
            return None
        silent_s = now - self.heard
        if silent_s > IDLE_S and not self.tickets:
            return self.close(1000, "idle")
        if self.pings and silent_s > 2 * PING_S:
            return self.close(1001, "no pong")
        if self.pings and silent_s > PING_S and now - self.pinged > PING_S:
            self.pinged = now
            return self.send({"type": "websocket.send", "text": '{"type":"ping"}'})
        return None

    async def drain(self) -> None:
        """Tells the client, lets what is under way finish, closes."""
        await self.send({"type": "websocket.send", "text": '{"type":"draining"}'})
        while self._tasks:
            await asyncio.wait(list(self._tasks))
        await self.retire()


class Streams:
    """All WebSocket connections of this process."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self._open: set[_Stream] = set()
        self._errands: set[asyncio.Future[None]] = set()

    def __len__(self) -> int:
        return len(self._open)

    async def serve(
        self,
        scope: dict[str, Any],
        receive: Receive,
        send: Send,
        *,
        given: Given,
        name: str,
        number: int | None,
        request_id: str,
    ) -> None:
        """One connection from its handshake to its end. Refused ones see status 403."""
        await receive()
        stream = _Stream(self._plane, send, name, number)
        offered = scope.get("subprotocols") or []
        try:
            stream.credential = _credential(given, offered)
            caller, endpoint = self._plane.admit(name, stream.credential)
            if number is not None:
                endpoint.pinned(number)
            stream.timeout_ms = timeout_of(given)
            if self._plane.draining:
                raise Draining
        except SerinusError as error:
            await send({"type": "websocket.close", "code": 1008, "reason": error.code})
            return
        session = given.get(b"x-session-id")
        stream.sticky = session.decode("latin-1") if session else caller.id or request_id
        stream.pings = PROTOCOL in offered
        stream.task = asyncio.current_task()
        stream.peer = sockets.peer_of(scope.get("client"))
        await send({"type": "websocket.accept", "subprotocol": PROTOCOL if stream.pings else None})
        self._open.add(stream)
        try:
            await stream.run(receive)
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
        streams = list(self._open)
        await asyncio.gather(*(stream.drain() for stream in streams), return_exceptions=True)
        frame = sockets.close_frame(1012, "the server is restarting")
        sockets.close({stream.peer: frame for stream in streams if stream.peer is not None})
        end = time.monotonic() + 1.0
        while self._open and time.monotonic() < end:  # noqa: ASYNC110 (each leaves by itself)
            await asyncio.sleep(0.02)


def _credential(given: Given, offered: list[str]) -> str:
    for protocol in offered:
        if protocol.startswith(KEY_PROTOCOL):
            return protocol[len(KEY_PROTOCOL) :]
    return credential_of(given)
