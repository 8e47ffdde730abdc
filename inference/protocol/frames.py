"""Frames on a stream socket: u32 header length, u32 body length (little-endian), header, body.

The header is msgpack; the body is opaque bytes (tensors). Lengths are checked before anything is allocated.
"""

from __future__ import annotations

import struct
from typing import Generic, TypeVar

import msgspec

from inference.errors import Malformed, TooLarge

PREFIX = struct.Struct("<II")
MAX_HEADER_BYTES = 1 << 20
MAX_BODY_BYTES = 256 << 20

T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder()


def encode_head(message: msgspec.Struct, body_bytes: int = 0) -> bytes:
    """The frame's prefix and header; the sender writes the body's buffers after it, uncopied."""
    header = _encoder.encode(message)
    return PREFIX.pack(len(header), body_bytes) + header


def encode(message: msgspec.Struct, *body: bytes | memoryview) -> bytes:
    """One whole frame as bytes."""
    return b"".join((encode_head(message, sum(len(part) for part in body)), *body))


class Decoder(Generic[T]):
    """Cuts a byte stream into (message, body) pairs. Feed it what arrives, in any pieces."""

    def __init__(self, message_type: object, *, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(message_type)
        self._max_body_bytes = max_body_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[T, memoryview]]:
        """Messages that are complete with `data`. Raises Malformed or TooLarge; the stream is then unusable."""
        self._buffer += data
        found: list[tuple[T, memoryview]] = []
        at, held = 0, len(self._buffer)
        while held - at >= PREFIX.size:
            header_bytes, body_bytes = PREFIX.unpack_from(self._buffer, at)
            if header_bytes > MAX_HEADER_BYTES or body_bytes > self._max_body_bytes:
                raise TooLarge(f"frame of {header_bytes} + {body_bytes} bytes is over the limit")
            end = at + PREFIX.size + header_bytes + body_bytes
            if held < end:
                break
            start = at + PREFIX.size
            found.append((self._header(start, header_bytes), self._body(start + header_bytes, end)))
            at = end
        del self._buffer[:at]
        return found

    def _header(self, start: int, size: int) -> T:
        try:
            return self._decoder.decode(bytes(self._buffer[start : start + size]))
        except msgspec.MsgspecError as error:
            raise Malformed(f"unreadable frame header: {error}") from error

    def _body(self, start: int, end: int) -> memoryview:
        return memoryview(bytes(self._buffer[start:end]))
