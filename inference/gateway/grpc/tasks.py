"""Calls that wait in a coroutine: those that take one message and give one, and those that stream.

A stream's messages wait here until they are read, no more of them than its window allows; what is written waits while
its reader takes nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from inference.errors import DeadlineExceeded, Malformed, Overloaded, SerinusError
from inference.gateway.bodies import Held
from inference.gateway.grpc import statuses
from inference.gateway.grpc.exchange import Body, Exchange, Part, framed
from inference.gateway.http2.limits import STREAM_WINDOW

if TYPE_CHECKING:
    from inference.gateway.grpc.door import Door
    from inference.gateway.grpc.heads import Head
    from inference.gateway.grpc.spoken import Spoken
    from inference.gateway.http2.machine import Machine
    from inference.gateway.http2.streams import Stream

AHEAD_BYTES = 64 << 10
MAX_WAITING = 16_384

Unary = Callable[[bytes, str], Awaitable[bytes]]
Streaming = Callable[["StreamExchange"], Awaitable[None]]


class TaskExchange(Exchange):
    """A call whose handler is a coroutine: it runs until it has answered, its deadline passes or its caller leaves."""

    __slots__ = ("_task", "_timer")

    def __init__(self, door: Door, machine: Machine, stream: Stream, spoken: Spoken) -> None:
        super().__init__(door, machine, stream, spoken)
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        if spoken.timeout_s is not None:
            self._timer = asyncio.get_running_loop().call_later(spoken.timeout_s, self.expired)

    def run(self, work: Awaitable[None]) -> None:
        self._task = asyncio.ensure_future(self._guarded(work))

    async def _guarded(self, work: Awaitable[None]) -> None:
        try:
            await work
        except SerinusError as error:
            self.fail(error)
        except Exception:  # noqa: BLE001 (logged in full; the client gets one fixed sentence)
            self.broke()

    def drop(self) -> None:
        if self._task is not None and not self._task.done() and self._task is not asyncio.current_task():
            self._task.cancel()

    def expired(self) -> None:
        self.fail(DeadlineExceeded())

    def _done(self) -> None:
        super()._done()
        if self._timer is not None:
            self._timer.cancel()


class UnaryExchange(TaskExchange):
    """One message, one answer, by `handler`, which is given the message and the caller's credential."""

    __slots__ = ("_handler",)

    def __init__(self, door: Door, machine: Machine, stream: Stream, spoken: Spoken, handler: Unary) -> None:
        super().__init__(door, machine, stream, spoken)
        self._handler = handler

    def message(self, data: Body, held: Held | None) -> None:
        if held is not None:
            held.release()  # no message of these is large for long
        if self._task is not None:
            raise Malformed("the call takes one message")
        assert isinstance(data, bytes)
        self.run(self._answered(data))

    async def _answered(self, data: bytes) -> None:
        self.answer([await self._handler(data, self.spoken.head.credential)])

    def ended(self) -> None:
        if self._task is None and not self.is_done and self._need < 0 and not self._lead:
            self.fail(Malformed("the call has no message"))
        super().ended()


class Taken:
    """A message of a stream; to be released when it has been answered."""

    __slots__ = ("_held", "data")

    def __init__(self, data: Body, held: Held | None) -> None:
        self.data = data
        self._held = held

    def release(self) -> None:
        if self._held is not None:
            self._held.release()
            self._held = None
        self.data = b""


class StreamExchange(TaskExchange):
    """Any number of messages both ways, by `handler`, which reads and writes here."""

    __slots__ = ("_has_ended", "_queue", "_queued_bytes", "_room", "_wake")

    def __init__(self, door: Door, machine: Machine, stream: Stream, spoken: Spoken, handler: Streaming) -> None:
        super().__init__(door, machine, stream, spoken)
        self._queue: deque[tuple[Taken, int]] = deque()
        self._queued_bytes = 0
        self._has_ended = False
        self._wake: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self.run(self._handled(handler))

    async def _handled(self, handler: Streaming) -> None:
        await handler(self)
        self.finish()

    @property
    def head(self) -> Head:
        return self.spoken.head

    @property
    def is_late(self) -> bool:
        return self._need >= 0 or bool(self._lead)

    def message(self, data: Body, held: Held | None) -> None:
        if len(self._queue) >= MAX_WAITING:
            raise Overloaded("Too many small messages wait on this stream", retry_after_s=1.0)
        size = len(data) if isinstance(data, bytes) else data.size
        self._queue.append((Taken(data, held), size))
        self._queued_bytes += size
        _set(self._wake)

    def ended(self) -> None:
        super().ended()
        self._has_ended = True
        _set(self._wake)

    def sent(self) -> None:
        if self._room is not None and self.stream.pending_bytes <= AHEAD_BYTES:
            _set(self._room)

    async def read(self) -> Taken | None:
        """The next message; None: the caller has said all."""
        while not self._queue:
            if self._has_ended:
                return None
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        taken, size = self._queue.popleft()
        self._queued_bytes -= size
        more = STREAM_WINDOW - self._queued_bytes - self.stream.in_window
        if more >= STREAM_WINDOW // 2:
            self.machine.grant(self.stream, more)
        return taken

    async def write(self, parts: Sequence[Part]) -> None:
        """Sends one message, in pieces; waits while the reader is slow."""
        if self.is_done:
            return
        encoding = self.spoken.answered_in
        if not self.stream.has_begun:
            self.machine.begin(self.stream, statuses.BEGINS[encoding] if encoding else statuses.BEGIN)
        self.machine.send(self.stream, framed(parts, encoding))
        if self.stream.pending_bytes > AHEAD_BYTES:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def _done(self) -> None:
        super()._done()
        while self._queue:
            self._queue.popleft()[0].release()


class TensorStreamExchange(StreamExchange):
    """A stream of ModelInferRequests."""

    __slots__ = ()
    is_tensors = True


def _set(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)
