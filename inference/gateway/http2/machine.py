"""A connection's protocol, without its socket: bytes in, calls of receivers and bytes out.

Small frames are read whole; the payload of a DATA frame is passed on as it comes, or received where its receiver wants
it. A peer's fault ends its stream or its connection with the code that RFC 9113 names. What costs a peer nothing has a
budget: resets, pings, settings, empty frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from inference.gateway.http2 import control, frames
from inference.gateway.http2.blocks import Block, Blocks
from inference.gateway.http2.budgets import Budgets
from inference.gateway.http2.draining import Draining
from inference.gateway.http2.frames import Code, ConnectionFault, Part, StreamFault
from inference.gateway.http2.headers import MAX_BLOCK_BYTES, HeadReader
from inference.gateway.http2.limits import (
    CONNECTION_WINDOW,
    DIRECT_BYTES,
    MAX_FRAME_BYTES,
    MAX_STREAMS,
    OURS,
    STREAM_WINDOW,
)
from inference.gateway.http2.outbox import Outbox
from inference.gateway.http2.streams import Application, Cut, Stream, leave


class Machine:
    """now: monotonic s, of the newest bytes. is_over: a fault, or the end of draining, has ended it: what is in the
    outbox leaves, and nothing is read any more.
    """

    def __init__(self, application: Application, now: float) -> None:
        self._application = application
        self._heads = HeadReader()
        self._rest = b""
        self._awaits_preface = True
        self._awaits_settings = True
        self._window = CONNECTION_WINDOW
        # the DATA frame whose payload is on its way
        self._left = self._padding = 0
        self._ends = False
        self._stream: Stream | None = None
        self._was_direct = False
        self._blocks = Blocks()
        self._cut = Cut()
        self._draining = Draining()
        self.budgets = Budgets()
        self.now = now
        self.last = 0  # the highest stream that the peer has begun
        self.streams: dict[int, Stream] = {}
        self.outbox = Outbox(self._closed)
        self.is_over = False
        self.wake: Callable[[], None] = _nothing  # called when something may leave
        self.outbox.put(frames.settings(OURS))
        self.outbox.put(frames.window_update(0, CONNECTION_WINDOW - frames.DEFAULT_WINDOW))

    @property
    def block_since(self) -> float:
        """When the header block began that is not complete, monotonic s; 0: none is."""
        return self._blocks.since

    @property
    def has_begun(self) -> bool:
        """Whether the peer has shown that it speaks HTTP/2."""
        return not self._awaits_settings

    # -- bytes in ---------------------------------------------------------------------------------------------------

    def room(self) -> memoryview | None:
        """Where the next bytes shall be received, for `filled`; None: anywhere, for `receive`."""
        stream = self._stream
        if self._left >= DIRECT_BYTES and stream is not None and stream.receiver is not None:
            found = stream.receiver.room() if not stream.is_closed_out else None
            if found is not None and len(found) >= DIRECT_BYTES:
                return found[: self._left]
        return None

    @property
    def next_bytes(self) -> int:
        """How many bytes the next read should take, 0 for as many as there are: after a payload that was received in its
        place the next one may be, too, so only its frame's head is read.
        """
        return frames.HEAD_BYTES if self._was_direct and not self._left and not self._rest else 0

    def filled(self, size: int, now: float) -> None:
        """So many bytes of `room` have come."""
        self.now = now
        stream = self._stream
        assert stream is not None
        assert stream.receiver is not None
        self._left -= size
        self._was_direct = True
        if not self._left and not self._padding and self._ends:
            stream.is_closed_in = True
        stream.receiver.filled(size)
        if not self._left and not self._padding:
            self._frame_done()

    def receive(self, data: bytes, now: float) -> None:
        """Takes what has come, in pieces of any size."""
        if self.is_over:
            return
        self.now = now
        try:
            self._read(self._rest + data if self._rest else data)
        except ConnectionFault as fault:
            self.fail(fault)

    def _read(self, data: bytes) -> None:
        at, end = 0, len(data)
        if self._awaits_preface:
            if data[:24] != frames.PREFACE[:end]:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "this is no HTTP/2")
            if end < 24:
                self._rest = data
                return
            self._awaits_preface = False
            at = 24
        self._was_direct = False
        while at < end and not self.is_over:
            if self._left or self._padding:
                at = self._payload(data, at, end)
                continue
            if end - at < 9:
                break
            high, low, kind, flags, number = frames.read_head(data, at)
            size = high << 8 | low
            if kind == 0 and not self._awaits_settings and not self._blocks.is_open:
                if flags & frames.PADDED and size and end - at < 10:
                    break
                at = self._begin_data(data, at + 9, size, flags, number & frames.NUMBER)
                continue
            if end - at - 9 < size <= MAX_BLOCK_BYTES:
                break
            self._frame(kind, flags, number & frames.NUMBER, size, data[at + 9 : at + 9 + size])
            at += 9 + size
        self._rest = data[at:] if at < end else b""

    def _frame(self, kind: int, flags: int, number: int, size: int, payload: bytes) -> None:
        if self._awaits_settings:
            if kind != frames.SETTINGS or flags & frames.ACK:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "the first frame has the settings")
            self._awaits_settings = False
        if size > MAX_BLOCK_BYTES:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "a frame is too large")
        if self._blocks.is_open and kind != frames.CONTINUATION:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a header block is not complete")
        take = _KINDS.get(kind)
        if take is None:
            self.budgets.idle.spend(self.now)
            return
        try:
            take(self, flags, number, payload)
        except StreamFault as fault:
            self.reset_number(number, fault.code)

    # -- DATA -------------------------------------------------------------------------------------------------------

    def _begin_data(self, data: bytes, at: int, size: int, flags: int, number: int) -> int:
        """The head of a DATA frame, and its padding's length; answers where its payload begins."""
        if size > MAX_FRAME_BYTES:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "a frame is too large")
        if not number & 1 or number > self.last:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "data on a stream that was not begun")
        if size > self._window:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "more data than the connection's window allows")
        self._window -= size
        stream = self._taking(number, size)
        self._left, self._padding = size, 0
        if flags & frames.PADDED:
            if not size or data[at] >= size:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "the padding is longer than its frame")
            self._padding = data[at]
            self._left = size - 1 - self._padding
            at += 1
        self._stream = stream
        self._ends = bool(flags & frames.END_STREAM)
        if not self._left:
            if not self._ends:
                self.budgets.idle.spend(self.now)
            if not self._padding:
                self._frame_done()
        return at

    def _taking(self, number: int, size: int) -> Stream | None:
        """The stream that takes this frame's data; None where nobody does."""
        stream = self.streams.get(number)
        if stream is None:
            if number not in self._cut:
                raise ConnectionFault(Code.STREAM_CLOSED, "data on a stream that is closed")
            self.budgets.idle.spend(self.now)
            return None
        if stream.is_closed_in:
            self.reset(stream, Code.STREAM_CLOSED)
            return None
        if size > stream.in_window:
            self.reset(stream, Code.FLOW_CONTROL_ERROR)
            return None
        stream.in_window -= size
        return stream

    def _payload(self, data: bytes, at: int, end: int) -> int:
        if self._left:
            until = min(end, at + self._left)
            self._left -= until - at
            stream = self._stream
            # one that was answered, or ended, before its peer had said all takes nothing more
            if stream is not None and stream.receiver is not None and not stream.is_closed_out:
                if self._ends and not self._left and not self._padding:
                    stream.is_closed_in = True
                stream.receiver.data(data[at:until])
            at = until
        skipped = min(self._padding, end - at) if not self._left else 0
        self._padding -= skipped
        if not self._left and not self._padding:
            self._frame_done()
        return at + skipped

    def _frame_done(self) -> None:
        stream, self._stream = self._stream, None
        if self._window < CONNECTION_WINDOW // 2:
            self.outbox.put(frames.window_update(0, CONNECTION_WINDOW - self._window))
            self._window = CONNECTION_WINDOW
        if self._ends and stream is not None:
            self._end_in(stream)

    def _end_in(self, stream: Stream) -> None:
        stream.is_closed_in = True
        if stream.receiver is not None:
            stream.receiver.ended()
        if stream.is_closed_out:
            self.streams.pop(stream.number, None)

    # -- HEADERS ----------------------------------------------------------------------------------------------------

    def headers(self, flags: int, number: int, payload: bytes) -> None:
        """A HEADERS frame."""
        self._block_came(self._blocks.begin(flags, number, payload, self.now))

    def continuation(self, flags: int, number: int, payload: bytes) -> None:
        """A CONTINUATION frame."""
        self._block_came(self._blocks.go_on(flags, number, payload))

    def _block_came(self, whole: Block | None) -> None:
        if whole is None:
            return
        number, ends, block = whole
        if number > self.last:
            self._open(number, block, ends=ends)
            return
        stream = self.streams.get(number)
        if stream is None and number not in self._cut:
            raise ConnectionFault(Code.STREAM_CLOSED, "headers on a stream that is closed")
        self._heads.trailers(block)
        if stream is None:
            return
        if stream.is_closed_in:
            raise StreamFault(Code.STREAM_CLOSED, "headers on a stream that is closed")
        if not ends:
            raise StreamFault(Code.PROTOCOL_ERROR, "trailers end their stream")
        self._end_in(stream)

    def _open(self, number: int, block: bytes, *, ends: bool) -> None:
        self.last = number
        head = self._heads.head(block)
        if number > self._draining.last_taken:
            self._cut.add(number)  # it came after the last that was promised to be answered
            return
        if len(self.streams) >= MAX_STREAMS:
            self.budgets.resets.spend(self.now)
            raise StreamFault(Code.REFUSED_STREAM, "too many streams")
        stream = Stream(number, head, STREAM_WINDOW, self.outbox.initial_window, self.now)
        stream.is_closed_in = ends
        self.streams[number] = stream
        receiver = self._application.opened(self, stream)
        if receiver is not None and not stream.is_closed_out:
            stream.receiver = receiver
            if ends:
                receiver.ended()

    # -- what receivers say -----------------------------------------------------------------------------------------

    def grant(self, stream: Stream, more: int) -> None:
        """The peer may send so many bytes more on this stream."""
        if not stream.is_closed_in and more > 0:
            stream.in_window += more
            self.outbox.put(frames.window_update(stream.number, more))
            self.wake()

    def answer(self, stream: Stream, head: bytes, parts: Sequence[Part], tail: bytes) -> None:
        """A whole answer: header block, body, block of trailers."""
        self.outbox.answer(stream, head, parts, tail)
        self.wake()

    def begin(self, stream: Stream, head: bytes) -> None:
        """The header block of an answer whose body follows by `send`."""
        self.outbox.begin(stream, head)
        self.wake()

    def send(self, stream: Stream, parts: Sequence[Part]) -> None:
        """A piece of the body; it leaves as windows allow, and `Receiver.sent` is called as it does."""
        self.outbox.send(stream, parts)
        self.wake()

    def end(self, stream: Stream, block: bytes) -> None:
        """The last header block: trailers, or an answer that has no body. It leaves after what is pending."""
        self.outbox.end(stream, block)
        self.wake()

    # -- ending -----------------------------------------------------------------------------------------------------

    def _closed(self, stream: Stream) -> None:
        """All of the answer was put out."""
        if self.streams.pop(stream.number, None) is None:
            return
        stream.receiver = None  # they refer to each other: the memory of a request must not wait for the collector
        if not stream.is_closed_in:
            self.outbox.put(frames.rst_stream(stream.number, Code.NO_ERROR))
            self._cut.add(stream.number)

    def reset(self, stream: Stream, code: Code) -> None:
        """Ends a stream at once, at both ends; its receiver is told."""
        self.outbox.forget(stream)
        if self.streams.pop(stream.number, None) is None:
            return
        self.outbox.put(frames.rst_stream(stream.number, code))
        if not stream.is_closed_in:
            self._cut.add(stream.number)
        leave(stream)
        self.wake()

    def reset_number(self, number: int, code: Code) -> None:
        """The same for a stream that may have ended, or may never have begun."""
        stream = self.streams.get(number)
        if stream is not None:
            self.reset(stream, code)
            return
        self.budgets.resets.spend(self.now)
        self.outbox.put(frames.rst_stream(number, code))
        self._cut.add(number)

    def fail(self, fault: ConnectionFault) -> None:
        """The connection ends with a fault of the peer."""
        if not self.is_over:
            self.is_over = True
            self.outbox.put(frames.goaway(self.last, fault.code, str(fault)))
            self.lost()

    def lost(self) -> None:
        """The connection is gone: every receiver is told."""
        self.is_over = True
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            self.outbox.forget(stream)
            leave(stream)

    def let_go(self) -> None:
        """The connection has ended: what refers to each other here does not wait for the collector."""
        self.lost()
        self.wake = _nothing
        self.outbox.closed = _forgotten

    def drain(self) -> None:
        """Tells the peer to begin no more streams."""
        if not self.is_over:
            self._draining.begin(self.outbox)

    def drained(self) -> None:
        """The peer knows: what came until now is answered, nothing later."""
        if not self.is_over:
            self._draining.end(self.outbox, self.last)

    @property
    def is_finished(self) -> bool:
        """Whether it has drained: nothing is under way, and nothing will come."""
        return self._draining.has_ended and not self.streams


def _nothing() -> None:
    pass


def _forgotten(_stream: Stream) -> None:
    pass


_KINDS: dict[int, Callable[[Machine, int, int, bytes], None]] = {
    frames.HEADERS: Machine.headers,
    frames.CONTINUATION: Machine.continuation,
    **control.KINDS,
}
