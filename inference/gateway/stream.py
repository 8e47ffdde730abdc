"""One WebSocket connection: reads its frames, knows what is under way on it, and ends it in time.

At most MAX_IN_FLIGHT requests are under way, counting those whose answers the client has not taken, and no new one begins
while their large frames are more than MAX_HELD_BYTES. The next one waits, and nothing behind it is read until it has
begun; nor is anything while the client takes nothing: a slow reader pauses only itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from inference.errors import (
    Cancelled,
    Conflict,
    DeadlineExceeded,
    Draining,
    Forbidden,
    InvalidInput,
    NotFound,
    SerinusError,
    ServerError,
    Unauthenticated,
    Unsupported,
)
from inference.gateway import envelopes, placing, rfc6455
from inference.gateway.admission import Caller
from inference.gateway.asking import Asking
from inference.gateway.bodies import Bodies, Held
from inference.gateway.choosing import HEADER as PIN
from inference.gateway.choosing import Asked, pin
from inference.gateway.dataplane import DataPlane
from inference.gateway.envelopes import Frame
from inference.gateway.openai import chatting
from inference.gateway.sockets import Socket
from inference.gateway.steering import Given
from inference.gateway.table import Endpoint
from inference.gateway.web import Part

if TYPE_CHECKING:
    from asyncio import BaseTransport

MAX_IN_FLIGHT = 64
MAX_TEXT_BYTES = 1 << 20
MAX_BINARY_BYTES = 16 << 20
MAX_HELD_BYTES = 64 << 20
PING_S = 20.0
IDLE_S = 600.0
STALL_S = 30.0
CREDIT_S = 60.0
MESSAGE_S = 120.0
CLOSE_S = 5.0
_PING = b'{"type":"ping"}'
NO_HEADERS: Given = {}
_EMPTY = memoryview(b"")
_DRAINING = b'{"type":"draining"}'
_INFERS = frozenset({"infer", "generate"})
VERBS = frozenset({"metadata", "ready", "config", "stats"})
_REQUESTS = _INFERS | chatting.KINDS | VERBS
_log = logging.getLogger(__name__)

Verb = Callable[[str, envelopes.FrameBody, str, int | None], Awaitable[bytes]]
"""(credential, frame, model, version) -> the answering frame's JSON; raises SerinusError."""


class Stream:
    """name, number: the endpoint and version of its address, "" and None where each frame names them. pings: whether
    the client speaks this protocol's own pings. sticky: of requests that name no session. headers: of the handshake, as
    far as a rollout's matches may ask for them.
    """

    __slots__ = (
        "_admitted", "_asking", "_behind", "_errands", "_is_closed", "_next", "_on_lost", "_snapshot", "_verb", "asked_at",
        "behind_bytes", "credential", "has_session", "headers", "held_bytes", "is_draining", "name", "number", "pinged", "pings", "plane", "socket", "sticky",
        "timeout_ms",
    )  # fmt: skip

    def __init__(
        self,
        plane: DataPlane,
        transport: BaseTransport,
        bodies: Bodies,
        *,
        name: str,
        number: int | None,
        verb: Verb,
        on_lost: Callable[[Stream], None],
    ) -> None:
        self.plane = plane
        self.name = name
        self.number = number
        self.credential = ""
        self.sticky = ""
        self.has_session = False
        self.timeout_ms = 0
        self.headers: Given = NO_HEADERS
        self.pings = False
        self.is_draining = False
        self.behind_bytes = self.held_bytes = 0  # of answers that wait; of frames whose requests are under way
        self._next: Frame | None = None  # a request that waits until there is room for it
        self._verb = verb
        self._on_lost = on_lost
        self._is_closed = False
        self._asking: dict[str, Asking | asyncio.Task[None]] | None = None  # while there are any
        self._behind: dict[Asking, None] | None = None
        self._snapshot: object = None
        self._admitted: dict[str, tuple[Caller, Endpoint]] | None = None
        self.socket = Socket(transport, self, bodies, max_text_bytes=MAX_TEXT_BYTES, max_binary_bytes=MAX_BINARY_BYTES)
        self.asked_at = self.pinged = self.socket.heard

    # -- what the socket calls --------------------------------------------------------------------------------------

    def place(self, first: bytes, size: int, is_whole: bool) -> memoryview | None:
        return placing.placed(
            self.plane, first, size, is_whole=is_whole, most_bytes=MAX_BINARY_BYTES, name=self.name, number=self.number,
            allowed=self._admitted or (),
        )  # fmt: skip

    def message(self, data: Part, held: Held | None, *, is_text: bool) -> None:
        try:
            head, rest = (data, _EMPTY) if is_text else envelopes.split(data)
            body = envelopes.parse(head)
        except SerinusError as error:
            _release(held)
            self.refuse(None, error, is_text=is_text)
            return
        if body.type != "pong":
            self.asked_at = self.socket.heard
        if self._asking is not None and self._is_full and body.type in _REQUESTS:
            self._next = Frame(body, head, rest, held, is_text)
            self.socket.hold()
        else:
            self._read(body, head, rest, held, is_text)

    def flow(self) -> None:
        if self.socket.is_writable and self._behind:
            for asking in list(self._behind):
                if asking.go_on():
                    self._behind.pop(asking, None)
        if self.socket.is_writable:
            self._go_on()
        else:
            self.socket.hold()

    @property
    def _is_full(self) -> bool:
        return len(self._asking or ()) >= MAX_IN_FLIGHT or self.held_bytes >= MAX_HELD_BYTES

    def _go_on(self) -> None:
        """Reads on if it may, beginning with the request that waits."""
        if self._is_closed or not self.socket.is_writable or (self._next is not None and self._is_full):
            return
        frame, self._next = self._next, None
        if frame is not None:
            self._read(*frame)
        self.socket.release()
        self._leave_if_done()

    def closed(self) -> None:
        """Everything that was asked for is cancelled."""
        self._is_closed = True
        asking, self._asking, self._behind, self._admitted = self._asking, None, None, None
        for one in (asking or {}).values():
            if isinstance(one, Asking):
                one.drop()
                _release(one.held)
            else:
                one.cancel()
        frame, self._next = self._next, None
        if frame is not None:
            _release(frame.held)

    def lost(self) -> None:
        self._on_lost(self)

    # -- frames -----------------------------------------------------------------------------------------------------

    def _read(
        self, body: envelopes.FrameBody, head: Part, rest: memoryview, held: Held | None, is_text: bool, /
    ) -> None:
        asking: Asking | None = None
        try:
            asking = self._take(body, head, rest, is_text)
        except SerinusError as error:
            self.refuse(body.id or None, error, is_text=is_text)
        except Exception:  # noqa: BLE001 (logged in full; the client gets one fixed sentence)
            _log.exception("a frame on a stream of '%s' failed", self.name)
            self.refuse(body.id or None, ServerError(), is_text=is_text)
        if held is None:
            return
        if asking is not None and (self._asking or {}).get(asking.id) is asking:
            asking.held = held
            self.held_bytes += held.size_bytes
        else:
            held.release()

    def _take(self, body: envelopes.FrameBody, head: Part, rest: memoryview, is_text: bool, /) -> Asking | None:
        """The request that it begins, if it does."""
        kind = body.type
        if kind in _INFERS:
            given = envelopes.generate_body(head, body) if kind == "generate" else None
            return self._ask(Asking(self, body, rest, given, is_text=is_text), body)
        if kind in chatting.KINDS:
            return self._ask(chatting.Chatting(self, body, head, is_text=is_text), body)
        if kind == "cancel":
            self._cancel(body.id)
        elif kind == "credit":
            found = (self._asking or {}).get(body.id)
            if isinstance(found, Asking):
                found.grant(body.n)
        elif kind == "ping":
            self._send(envelopes.pong(body.id), is_text=is_text)
        elif kind in VERBS:
            self._check_new(body.id)
            self._add(body.id, asyncio.ensure_future(self._answer_verb(body, is_text=is_text)))
        elif kind != "pong":
            raise Unsupported(f"frames of type '{kind[:64]}' are not supported")
        return None

    def _check_new(self, identity: str) -> None:
        if not identity:
            raise InvalidInput("this frame needs an 'id', a string that is not empty")
        if self._asking is not None and identity in self._asking:
            raise Conflict("a request with this id is already under way on this connection")
        if self.plane.draining:
            raise Draining

    def _ask(self, asking: Asking, body: envelopes.FrameBody) -> Asking:
        self._check_new(asking.id)
        name, number = self._target(body)
        caller, endpoint = self._admit(name)
        headers = self.headers
        version = pin(endpoint.route, number, headers.get(PIN))
        sticky = body.session or self.sticky
        has_session = bool(body.session) or self.has_session
        asked = Asked(caller, endpoint, version, sticky, self.timeout_ms, asking.most_ms, headers, has_session)
        self.plane.start(asking, asked, asking.read)
        asking.settled()
        self._add(asking.id, asking)
        return asking

    def _add(self, identity: str, found: Asking | asyncio.Task[None]) -> None:
        if self._asking is None:
            self._asking = {}
        self._asking[identity] = found

    def _target(self, body: envelopes.FrameBody) -> tuple[str, int | None]:
        number = envelopes.version_of(body)
        if not self.name:
            if not body.model:
                raise InvalidInput("a frame on this address names its 'model'")
            return body.model, number
        if body.model and body.model != self.name:
            raise InvalidInput(f"this connection is for '{self.name}': connect to /v2/stream to name models")
        return self.name, number if self.number is None else self.number

    def _admit(self, name: str) -> tuple[Caller, Endpoint]:
        """Who calls, and what: found out once per routing table, and as long as the credential holds.

        Raises Unauthenticated, Forbidden or NotFound; the connection closes where it is good for nothing any more.
        """
        snapshot = self.plane.table.now
        if self._snapshot is not snapshot or self._admitted is None:
            self._snapshot, self._admitted = snapshot, {}
        found = self._admitted.get(name)
        if found is None or found[0].expires_at_unix_s <= time.time():
            try:
                found = self.plane.admit(name, self.credential)
            except (Unauthenticated, Forbidden, NotFound) as error:
                if self.name:
                    asyncio.get_running_loop().call_soon(self.socket.close, rfc6455.POLICY, error.code)
                raise
            if len(self._admitted) < MAX_IN_FLIGHT:
                self._admitted[name] = found
        return found

    def _cancel(self, identity: str) -> None:
        found = (self._asking or {}).get(identity)
        if found is not None:
            found.cancel()

    async def _answer_verb(self, body: envelopes.FrameBody, *, is_text: bool) -> None:
        error: SerinusError | None = None
        text = b""
        try:
            name, number = self._target(body) if body.model or self.name else ("", None)
            text = await self._verb(self.credential, body, name, number)
        except asyncio.CancelledError:
            if self._is_closed:
                raise
            error = Cancelled()
        except SerinusError as found:
            error = found
        except Exception:  # noqa: BLE001 (logged in full; the client gets one fixed sentence)
            _log.exception("a question on a stream failed")
            error = ServerError()
        self._forget(body.id)
        if error is not None:
            self.refuse(body.id, error, is_text=is_text)
        else:
            self._send(text, is_text=is_text)

    # -- what a request calls ---------------------------------------------------------------------------------------

    def fell_behind(self, asking: Asking, size: int) -> None:
        self.behind_bytes += size
        if self._behind is None:
            self._behind = {}
        self._behind[asking] = None

    def ended(self, asking: Asking) -> None:
        """Its last frame is on its way."""
        if self._behind is not None:
            self._behind.pop(asking, None)
        if self._asking is not None and self._asking.get(asking.id) is asking:
            self._forget(asking.id)

    def _forget(self, identity: str) -> None:
        asking = self._asking
        if asking is None:
            return
        found = asking.pop(identity, None)
        if isinstance(found, Asking) and found.held is not None:
            self.held_bytes -= found.held.size_bytes
            found.held.release()
            found.held = None
        if not asking:
            self._asking = self._behind = None
        if self._next is not None:
            asyncio.get_running_loop().call_soon(self._go_on)
        else:
            self._leave_if_done()

    def _leave_if_done(self) -> None:
        if self.is_draining and not self._asking and self._next is None:
            self.socket.close(rfc6455.RESTART, "the server is restarting")

    def refuse(self, identity: str | None, error: SerinusError, *, is_text: bool) -> None:
        """Sends an error frame; a key that is not good any more ends the connection."""
        self._send(envelopes.error(identity, error), is_text=is_text)
        if isinstance(error, Unauthenticated):
            self.socket.close(rfc6455.POLICY, error.code)

    def _send(self, text: bytes, *, is_text: bool) -> None:
        self.socket.send(envelopes.join(text, [], is_text=is_text), is_text=is_text)

    # -- life -------------------------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        return not self._asking

    def beat(self, now: float) -> bool:
        """Does what is due at `now`: a ping, a goodbye, or the end of who takes nothing or is not there; whether it did."""
        socket = self.socket
        if (socket.stalled_since and now - socket.stalled_since > STALL_S) or (
            socket.closing_since and now - socket.closing_since > CLOSE_S
        ):
            socket.cut()
            return True
        if self._behind:
            self._end_starving(now)
        if self._is_closed or socket.stalled_since or socket.is_held:
            return False
        silent_s = now - socket.heard
        if silent_s >= 2 * PING_S:
            socket.leave(rfc6455.GOING_AWAY, "no pong")
        elif socket.partial_since and now - socket.partial_since > MESSAGE_S:
            socket.leave(rfc6455.POLICY, "the message did not come in time")
        elif now - self.asked_at > IDLE_S and self.is_idle:
            socket.close(rfc6455.OK, "idle")
        elif silent_s >= PING_S and now - self.pinged >= PING_S:
            self.pinged = now
            socket.ping()
            if self.pings:
                self._send(_PING, is_text=True)
        else:
            return False
        return True

    def _end_starving(self, now: float) -> None:
        for asking in list(self._behind or ()):
            if asking.has_starved(now, CREDIT_S):
                asking.stop(DeadlineExceeded("no credit was granted in time"))

    def drain(self) -> None:
        """Tells the client, lets what is under way finish, closes."""
        if self._is_closed:
            return
        self.is_draining = True
        self._send(_DRAINING, is_text=True)
        self._leave_if_done()


def _release(held: Held | None) -> None:
    if held is not None:
        held.release()
