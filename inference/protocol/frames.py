"""Frames on a stream socket: u32 header length, u32 body length (little-endian), header, body.

The header is msgpack; the body is opaque bytes (tensors). Lengths are checked before anything is allocated.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from inference.errors import Malformed, TooLarge
from inference.protocol import memory

PREFIX = struct.Struct("<II")
MAX_HEADER_BYTES = 1 << 20
MAX_BODY_BYTES = 256 << 20
SCRATCH_BYTES = 256 << 10

T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder()
# One for the whole process: an event loop receives and decodes in one go.
_scratch = memoryview(bytearray(SCRATCH_BYTES))


def encode_head(message: msgspec.Struct, body_bytes: int = 0) -> bytes:
    """The frame's prefix and header; the sender writes the body's buffers after it, uncopied."""
    header = _encoder.encode(message)
    return PREFIX.pack(len(header), body_bytes) + header


def encode(message: msgspec.Struct, *body: bytes | memoryview) -> bytes:
    """One whole frame as bytes."""
    return b"".join((encode_head(message, sum(len(part) for part in body)), *body))


class Decoder(Generic[T]):
    """Cuts a byte stream into (message, body) pairs. Feed it what arrives, in any pieces.

    Small frames are decoded where they arrived. A frame that is larger than what is at hand gets memory of its own,
    and what is missing of it is received right there (`buffer`, `received`): its body is never copied.
    """

    def __init__(self, message_type: object, *, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._decode: Callable[[memoryview], T] = msgspec.msgpack.Decoder(message_type).decode
        self._max_body_bytes = max_body_bytes
        self._rest = b""
        self._large: memoryview | None = None
        self._filled = 0

    def buffer(self) -> memoryview:
        """Where the next bytes are to be received; `received` is called before anybody else receives."""
        return _scratch if self._large is None else self._large[self._filled :]

    def received(self, size: int) -> list[tuple[T, memoryview]]:
        """As `feed`, for the first `size` bytes of `buffer`."""
        if self._large is None:
            return self.feed(bytes(_scratch[:size]))
        self._filled += size
        if self._filled < len(self._large):
            return []
        frame, self._large = self._large, None
        header_bytes, _ = PREFIX.unpack_from(frame)
        end = PREFIX.size + header_bytes
        return [(self._message(frame[PREFIX.size : end]), frame[end:])]

    def feed(self, data: bytes) -> list[tuple[T, memoryview]]:
        """Messages that are complete with `data`. Raises Malformed or TooLarge; the stream is then unusable."""
        if self._large is not None:
            return self._fed_large(data)
        if self._rest:
            data = self._rest + data
            self._rest = b""
        found: list[tuple[T, memoryview]] = []
        view, at, held = memoryview(data), 0, len(data)
        while held - at >= PREFIX.size:
            header_bytes, body_bytes = PREFIX.unpack_from(data, at)
            if header_bytes > MAX_HEADER_BYTES or body_bytes > self._max_body_bytes:
                raise TooLarge(f"frame of {header_bytes} + {body_bytes} bytes is over the limit")
            start = at + PREFIX.size
            split = start + header_bytes
            end = split + body_bytes
            if held < end:
                if end - at > SCRATCH_BYTES:
                    self._begin_large(view[at:], end - at)
                    return found
                break
            found.append((self._message(view[start:split]), view[split:end]))
            at = end
        self._rest = data[at:] if at < held else b""
        return found

    def _begin_large(self, head: memoryview, size: int) -> None:
        header_bytes, _ = PREFIX.unpack_from(head)
        self._large = memory.pool.take(size, -(PREFIX.size + header_bytes))  # so that the body lies aligned
        memory.in_huge_pages(self._large)  # peers send what they announce
        self._large[: len(head)] = head
        self._filled = len(head)

    def _fed_large(self, data: bytes) -> list[tuple[T, memoryview]]:
        into = self.buffer()
        fitting = min(len(into), len(data))
        into[:fitting] = data[:fitting]
        found = self.received(fitting)
        return found + self.feed(data[fitting:]) if fitting < len(data) else found

    def _message(self, header: memoryview) -> T:
        try:
            return self._decode(header)
        except msgspec.MsgspecError as error:
            raise Malformed(f"unreadable frame header: {error}") from error
