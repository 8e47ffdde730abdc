"""HTTP/1.1 on the event loop's own transports: one object a connection, callbacks instead of a task a request.

The laws: a connection has one request under way; what a client sends beyond it waits in at most one buffer and is not
read any further. A head must be there within HEAD_S, a body may pause for BODY_IDLE_S, an answer must be taken within
STALL_S. Large bodies are received into memory of their own and never copied. What is under way ends when its client
leaves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import cast

from inference.errors import DeadlineExceeded, Malformed, SerinusError
from inference.gateway import chunks, web
from inference.gateway.application import Application, Owner
from inference.gateway.bodies import Bodies, Held
from inference.gateway.heads import MAX_HEAD_BYTES, Head, Heads
from inference.gateway.incoming import Incoming
from inference.gateway.receiving import Receiving
from inference.gateway.web import Headers, Part

HEAD_S = 9.0  # looked at once a second
BODY_IDLE_S = 30.0
IDLE_S = 120.0
STALL_S = 30.0
LINGER_S = 2.0
SCRATCH_BYTES = 64 << 10
JOIN_BYTES = 64 << 10
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_CLOSE = (b"connection", b"close")
_KEEP = (b"connection", b"keep-alive")
_scratch = memoryview(bytearray(SCRATCH_BYTES))
_log = logging.getLogger(__name__)


class Connection(asyncio.BufferedProtocol):
    """One client's connection."""

    __slots__ = (
        "_app", "_bodies", "_body", "_busy_head", "_closing", "_heads", "_held", "_memory", "_open", "_part", "_paused",
        "_since", "_stalled_since", "_writable", "incoming", "owner", "transport",
    )  # fmt: skip

    def __init__(self, app: Application, heads: Heads, bodies: Bodies, connections: set[Connection]) -> None:
        self._app = app
        self._heads = heads
        self._bodies = bodies
        self._open = connections
        self.transport: asyncio.Transport
        self.owner: Owner | None = None
        self.incoming: Incoming | None = None
        self._part = b""  # of a head
        self._body: Receiving | None = None  # of a request that is not whole yet
        self._memory: Held | None = None
        self._busy_head: Head | None = None  # whose answer is on its way
        self._held = b""  # what came meanwhile
        self._closing = False
        self._paused = False
        self._since = 0.0  # when what is awaited began; 0: nothing is
        self._stalled_since = 0.0
        self._writable: asyncio.Future[None] | None = None

    # -- what the event loop calls ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._since = time.monotonic()
        self._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._open.discard(self)
        self._release()
        owner, self.owner = self.owner, None
        if owner is not None:
            owner.left()
        self._wake()

    def get_buffer(self, sizehint: int) -> memoryview:
        room = self._body.room() if self._body is not None else None
        return _scratch if room is None else room

    def buffer_updated(self, nbytes: int) -> None:
        body = self._body
        if body is not None:
            self._body_came(body, nbytes)
        elif self._closing:
            return
        elif self.incoming is not None:
            self._piece_came(self.incoming, bytes(_scratch[:nbytes]))
        elif self._busy_head is not None:
            self._hold(bytes(_scratch[:nbytes]))
        elif self._part:
            self._consume(self._part + bytes(_scratch[:nbytes]))
        else:
            self._consume(bytes(_scratch[:nbytes]))

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._stalled_since = time.monotonic()
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        self._stalled_since = 0.0
        self._wake()

    def _wake(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    # -- reading ----------------------------------------------------------------------------------------------------

    def _hold(self, data: bytes) -> None:
        # A client that pipelines is read no further than this until it has its answer.
        self._held += data
        if not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def _consume(self, data: bytes) -> None:
        """Reads one request from `data`; what comes after it is held until that is answered."""
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            self._await_head(data)
            return
        try:
            head = self._heads.get(data[:end])
        except SerinusError as error:
            self._refuse(None, error)
            return
        if head.length == len(data) - end and not head.is_websocket:
            self._part = b""
            self._begin(head, data[end:])
            return
        self._part = b""
        self._begin_body(head, data[end:])

    def _await_head(self, data: bytes) -> None:
        if not self._part:
            data = data.lstrip(b"\r\n")
        if len(data) > MAX_HEAD_BYTES:
            self._refuse(None, chunks.too_long(MAX_HEAD_BYTES))
            return
        if data and not self._part:
            self._since = time.monotonic()
        self._part = data

    def _begin_body(self, head: Head, data: bytes) -> None:
        if head.is_websocket and head.length == 0:
            self._since = 0.0
            self._app.upgrade(self, head, data)
            return
        if 0 <= head.length < len(data):
            self._hold(data[head.length :])
            self._begin(head, data[: head.length])
            return
        try:
            if head.length > 0 and self._app.passes_on(head):
                self._app.preflight(head)
                self._pass_on(head, data)
                return
            self._bodies.check(head.length)
            self._app.preflight(head)
            held = self._memory = Held(self._bodies)
            held.grow(len(data))
        except SerinusError as error:
            self._refuse(head, error)
            return
        if head.expects:
            self.transport.write(_CONTINUE)
        body = self._body = Receiving(head, held, self._bodies, self._app.memory)
        self._take(body, lambda: body.feed(data))

    def _pass_on(self, head: Head, data: bytes) -> None:
        if head.expects:
            self.transport.write(_CONTINUE)
        self._busy_head = head
        self._since = time.monotonic()
        self.incoming = Incoming(head.length, self._stop_reading, self._go_on_reading)
        self.incoming.feed(data)
        self._app.handle(self, head, b"")

    def _piece_came(self, incoming: Incoming, data: bytes) -> None:
        size = incoming.left
        if size:
            self._since = time.monotonic() if size > len(data) else 0.0
            incoming.feed(data[:size])
        if len(data) > size:
            self._hold(data[size:])

    def _stop_reading(self) -> None:
        self._since = 0.0  # it is not the client that is awaited
        if not self._closing:
            self.transport.pause_reading()

    def _go_on_reading(self) -> None:
        self._since = time.monotonic()
        if not self._closing and not self._paused:
            self.transport.resume_reading()

    def _body_came(self, body: Receiving, nbytes: int) -> None:
        if body.view is not None:
            self._take(body, lambda: body.filled(nbytes))
        elif not self._closing:
            self._take(body, lambda: body.feed(bytes(_scratch[:nbytes])))

    def _take(self, body: Receiving, take: Callable[[], Part | None]) -> None:
        self._since = time.monotonic()
        try:
            whole = take()
        except SerinusError as error:
            self._refuse(body.head, error)
            return
        if whole is not None:
            self._body = None
            if body.rest:
                self._hold(body.rest)
            self._begin(body.head, whole)

    def _begin(self, head: Head, body: Part) -> None:
        self._busy_head = head
        self._since = 0.0
        self._app.handle(self, head, body)

    # -- answering --------------------------------------------------------------------------------------------------

    def respond(self, status: int, headers: Headers, body: Part | Sequence[Part]) -> None:
        """Sends the whole answer and goes on to the next request."""
        head = self._busy_head
        if self._closing:
            return
        parts = [body] if isinstance(body, bytes | memoryview) else body
        size = 0
        for part in parts:
            size += len(part)
        keeps = self._keeps(head, headers)
        text = web.head_of(status, headers, size)
        if head is not None and head.method == "HEAD":
            self.transport.write(text)
        elif size <= JOIN_BYTES:
            self.transport.write(b"".join((text, *parts)))
        else:
            self.transport.writelines((text, *parts))
        self._done(keeps=keeps)

    def write_answer(self, data: bytes) -> None:
        """Sends a whole answer that is ready as bytes, on a connection that stays open."""
        if not self._closing:
            self.transport.write(data)
            self._done(keeps=True)

    @property
    def is_plain(self) -> bool:
        """Whether the answer needs no header about the connection: it stays open, as HTTP/1.1 has it."""
        head = self._busy_head
        return head is not None and head.keeps and head.is_http11 and head.method != "HEAD" and not self._app.draining

    def _keeps(self, head: Head | None, headers: Headers) -> bool:
        keeps = head is not None and head.keeps and not self._app.draining and _CLOSE not in headers
        if self.incoming is not None and self.incoming.left:
            keeps = False  # nobody reads the rest of this body
        if not keeps and _CLOSE not in headers:
            headers.append(_CLOSE)
        elif head is not None and keeps and not head.is_http11:
            headers.append(_KEEP)
        return keeps

    async def stream(self, answer: web.Stream) -> None:
        """Sends a streamed answer piece by piece; waits while the client is slow."""
        head = self._busy_head
        assert head is not None
        is_chunked = head.is_http11
        keeps = self._keeps(head, answer.headers) and is_chunked
        text = web.head_of(answer.status, answer.headers, None)
        self.transport.write(text if is_chunked else text.replace(b"transfer-encoding: chunked\r\n", b""))
        async for piece in answer.pieces:
            if self._closing:
                return
            if piece:
                self.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
            if self._writable is not None:
                await self._writable
        if not self._closing:
            if is_chunked:
                self.transport.write(b"0\r\n\r\n")
            self._done(keeps=keeps)

    def abort(self) -> None:
        """Cuts the connection: what was begun cannot be ended well."""
        if not self._closing:
            self._closing = True
            self.transport.abort()

    def _done(self, *, keeps: bool) -> None:
        self.owner = None
        self._busy_head = None
        if self.incoming is not None:
            self.incoming = None
            self.transport.resume_reading()
        self._release()
        if not keeps:
            self._close()
            return
        self._since = time.monotonic()
        if self._held or self._paused:
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        if self._closing or self._busy_head is not None:
            return
        data, self._held = self._held, b""
        if self._paused:
            self._paused = False
            self.transport.resume_reading()
        if data:
            self._consume(data)

    def _refuse(self, head: Head | None, error: SerinusError) -> None:
        """The answer to what will not be read any further; the connection ends with it."""
        self._busy_head = self._body = None
        self._part = b""
        self._app.refuse(self, head, error)

    def _close(self) -> None:
        self._closing = True
        # A client that still sends would be told "reset" and lose the answer: read on for a moment, to nowhere.
        if self._paused:
            self._paused = False
            self.transport.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        asyncio.get_running_loop().call_later(LINGER_S, self.transport.close)

    def _release(self) -> None:
        held, self._memory = self._memory, None
        if held is not None:
            held.release()

    def take_over(self) -> asyncio.Transport:
        """The transport, for another protocol; this object forgets it."""
        self._open.discard(self)
        self._release()
        return self.transport

    # -- time -------------------------------------------------------------------------------------------------------

    def beat(self, now: float) -> None:
        """What is due at `now`: slow heads, stuck bodies, idle connections and readers that take nothing end."""
        if self._stalled_since and now - self._stalled_since > STALL_S:
            self.abort()
        elif not self._since or self._closing:
            return
        elif self.incoming is not None:
            if now - self._since > BODY_IDLE_S:
                self.incoming.fail(DeadlineExceeded("the request's body did not come in time"))
        elif self._body is not None:
            if now - self._since > BODY_IDLE_S:
                self._refuse(self._body.head, DeadlineExceeded("the request's body did not come in time"))
        elif self._part:
            if now - self._since > HEAD_S:
                self._refuse(None, Malformed("the request's head did not come in time"))
        elif now - self._since > IDLE_S:
            self._closing = True
            self.transport.close()
