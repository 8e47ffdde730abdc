"""Header blocks out of HEADERS and CONTINUATION frames: bounded in bytes and in frames."""

from __future__ import annotations

from inference.gateway.http2 import frames
from inference.gateway.http2.frames import Code, ConnectionFault
from inference.gateway.http2.headers import MAX_BLOCK_BYTES

MAX_CONTINUATIONS = 64

# of which stream, whether the stream ends with it, its bytes
Block = tuple[int, bool, bytes]


class Blocks:
    """At most one block is on its way. since: when it began, monotonic s; 0: none is."""

    __slots__ = ("_block", "_count", "_ends", "_number", "is_open", "since")

    def __init__(self) -> None:
        self.is_open = False
        self.since = 0.0
        self._number = self._count = 0
        self._ends = False
        self._block = bytearray()

    def begin(self, flags: int, number: int, payload: bytes, now: float) -> Block | None:
        """Takes a HEADERS frame; answers the block if that was all of it. Raises ConnectionFault."""
        if not number & 1:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a client's streams have odd numbers")
        if flags & (frames.PADDED | frames.HAS_PRIORITY):
            payload = _unpadded(flags, payload)
        ends = bool(flags & frames.END_STREAM)
        if flags & frames.END_HEADERS:
            return number, ends, payload
        self._number, self._ends, self._block, self._count = number, ends, bytearray(payload), 0
        self.is_open, self.since = True, now
        return None

    def go_on(self, flags: int, number: int, payload: bytes) -> Block | None:
        """Takes a CONTINUATION frame; answers the block if it is complete. Raises ConnectionFault."""
        if not self.is_open or self._number != number:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a continuation of nothing")
        self._block += payload
        self._count += 1
        if len(self._block) > MAX_BLOCK_BYTES or self._count > MAX_CONTINUATIONS:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "a header block is too large")
        if not flags & frames.END_HEADERS:
            return None
        self.is_open, self.since = False, 0.0
        return number, self._ends, bytes(self._block)


def _unpadded(flags: int, payload: bytes) -> bytes:
    """A HEADERS payload without padding and priority. Raises ConnectionFault."""
    begin, end = 0, len(payload)
    if flags & frames.PADDED:
        begin = 1
        end -= payload[0] if payload else 1
    if flags & frames.HAS_PRIORITY:
        begin += 5
    if begin > end:
        raise ConnectionFault(Code.PROTOCOL_ERROR, "the padding is longer than its frame")
    return payload[begin:end]
