"""What leaves: small answers at once, large ones in turns, never more than the peer's windows allow.

Streams that have something pending take turns of QUANTUM_BYTES, so that a small answer does not wait behind a large
one. Payloads are never joined: they leave as views between the frames' heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from inference.gateway.http2 import frames
from inference.gateway.http2.frames import Code, ConnectionFault, Part
from inference.gateway.http2.streams import Stream

JOIN_BYTES = 16 << 10
QUANTUM_BYTES = 256 << 10


class Outbox:
    """window: of the connection; max_frame, initial_window: as the peer has set them. closed: called with each stream
    whose last frame was put out.
    """

    __slots__ = ("_parts", "_size", "_turns", "closed", "initial_window", "max_frame", "window")

    def __init__(self, closed: Callable[[Stream], None]) -> None:
        self.closed = closed
        self._parts: list[Part] = []
        self._size = 0
        self._turns: dict[Stream, None] = {}  # streams with something pending
        self.window = self.initial_window = frames.DEFAULT_WINDOW
        self.max_frame = frames.LEAST_MAX_FRAME

    @property
    def size(self) -> int:
        """Bytes that are ready to leave."""
        return self._size

    def put(self, part: bytes) -> None:
        """Frames that no window holds back."""
        self._parts.append(part)
        self._size += len(part)

    def answer(self, stream: Stream, head: bytes, parts: Sequence[Part], tail: bytes) -> None:
        """A whole answer: header block, body, block of trailers."""
        size = 0
        for part in parts:
            size += len(part)
        number = stream.number
        # a stream without anything pending, for this is its whole answer
        if size > JOIN_BYTES or size > stream.out_window or size > self.window or len(tail) > self.max_frame:
            self.begin(stream, head)
            self.send(stream, parts)
            self.end(stream, tail)
            return
        self.window -= size
        make = frames.head
        self.put(
            b"".join((
                make(len(head), frames.HEADERS, frames.END_HEADERS, number), head,
                make(size, frames.DATA, 0, number), *parts,
                make(len(tail), frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, number), tail,
            ))
        )  # fmt: skip
        stream.has_begun = stream.is_closed_out = True
        self.closed(stream)

    def begin(self, stream: Stream, head: bytes) -> None:
        """The header block of an answer whose body follows by `send`."""
        stream.has_begun = True
        self.put(frames.headers(stream.number, head, ends=False, max_frame=self.max_frame))

    def send(self, stream: Stream, parts: Sequence[Part]) -> None:
        """A piece of the body; it leaves when windows allow."""
        for part in parts:
            if part:
                stream.pending.append(part)
                stream.pending_bytes += len(part)
        self._turn(stream)

    def end(self, stream: Stream, block: bytes) -> None:
        """The last header block: trailers, or an answer that has no body. It leaves after what is pending."""
        stream.tail = block
        self._turn(stream)

    def forget(self, stream: Stream) -> None:
        """Nothing more is sent on it."""
        stream.pending.clear()
        stream.pending_bytes = 0
        stream.tail = None
        stream.is_closed_out = True
        self._turns.pop(stream, None)

    def _turn(self, stream: Stream) -> None:
        if stream.pending:
            self._turns[stream] = None
        elif stream.tail is not None:
            self._finish(stream)

    def _finish(self, stream: Stream) -> None:
        assert stream.tail is not None
        self.put(frames.headers(stream.number, stream.tail, ends=True, max_frame=self.max_frame))
        stream.is_closed_out = True
        stream.tail = None
        self.closed(stream)

    # -- windows ----------------------------------------------------------------------------------------------------

    def grow(self, more: int) -> None:
        """The peer takes so many bytes more on the connection. Raises ConnectionFault."""
        self.window += more
        if self.window > frames.MOST_WINDOW:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "the connection's window grew too large")

    @property
    def may_go(self) -> bool:
        """Whether something pending may leave."""
        return self.window > 0 and any(stream.out_window > 0 for stream in self._turns)

    def take(self, limit: int, now: float) -> list[Part]:
        """All that is ready, and of what is pending about `limit` bytes as far as windows allow. now: monotonic s."""
        while limit > 0 and self.window > 0 and self._turns:
            before = limit
            for stream in list(self._turns):
                if stream.out_window > 0 and self.window > 0 and limit > 0:
                    limit -= self._frames(stream, min(stream.out_window, self.window, QUANTUM_BYTES))
                    stream.stalled_since = 0.0
            if limit == before:
                break
        for stream in self._turns:
            stream.stalled_since = stream.stalled_since or now
        parts, self._parts, self._size = self._parts, [], 0
        return parts

    def stalled(self, before: float) -> list[Stream]:
        """Streams of whose pending bytes the peer has taken none since `before` (monotonic s)."""
        return [stream for stream in self._turns if 0 < stream.stalled_since < before]

    def _frames(self, stream: Stream, most: int) -> int:
        """Puts out DATA frames of at most `most` bytes in all; answers how many."""
        gone = 0
        while stream.pending and gone < most:
            size = min(self.max_frame, most - gone, stream.pending_bytes)
            self.put(frames.head(size, frames.DATA, 0, stream.number))
            self._payload(stream, size)
            stream.pending_bytes -= size
            gone += size
        self.window -= gone
        stream.out_window -= gone
        self._turns.pop(stream, None)
        if stream.pending:
            self._turns[stream] = None  # behind the others
        elif stream.tail is not None:
            self._finish(stream)
        if stream.receiver is not None and not stream.is_closed_out:
            stream.receiver.sent()
        return gone

    def _payload(self, stream: Stream, size: int) -> None:
        pending = stream.pending
        self._size += size
        while size:
            part = pending[0]
            if len(part) <= size:
                self._parts.append(pending.popleft())
                size -= len(part)
            else:
                view = memoryview(part)
                self._parts.append(view[:size])
                pending[0] = view[size:]
                size = 0
