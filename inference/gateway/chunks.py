"""Bodies that come in chunks (RFC 9112, 7.1), read strictly and within bounds."""

from __future__ import annotations

import re

from inference.errors import Malformed, SerinusError, TooLarge
from inference.gateway.bodies import Bodies

MAX_CHUNKS = 65_536
MAX_LINE_BYTES = 1024
MAX_TRAILER_BYTES = 8 << 10
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?")


def too_long(limit: int) -> SerinusError:
    return TooLarge(f"The request's headers are larger than {limit} bytes")


class Chunked:
    """One body. `size` bytes of it are here; `rest` is what came after its end."""

    def __init__(self, bodies: Bodies) -> None:
        self.size = 0
        self.rest = b""
        self._bodies = bodies
        self._parts: list[bytes] = []
        self._part = b""
        self._missing = 0  # of the current chunk, its line end included
        self._count = 0
        self._is_trailer = False

    def feed(self, data: bytes) -> bytes | None:
        """The whole body once it has ended. Raises Malformed or TooLarge."""
        if self._missing > len(data) and not self._part:
            self._take(data)
            return None
        data = self._part + data
        self._part = b""
        at = 0
        while True:
            if self._missing:
                at = self._chunk(data, at)
                if self._missing:
                    return None
            end = data.find(b"\r\n", at)
            if end < 0:
                self._keep(data[at:])
                return None
            line, at = data[at:end], end + 2
            if self._is_trailer:
                if not line:
                    self.rest = data[at:]
                    return b"".join(self._parts)
            else:
                self._line(line)

    def _chunk(self, data: bytes, at: int) -> int:
        end = min(at + self._missing, len(data))
        self._take(data[at:end])
        return end

    def _take(self, piece: bytes) -> None:
        """Takes a piece of the chunk, the last two bytes of which are its line end."""
        body = max(0, min(len(piece), self._missing - 2))
        if piece[body:] != b"\r\n"[2 - self._missing + body :][: len(piece) - body]:
            raise Malformed("a chunk of the request's body is longer than it says")
        self._missing -= len(piece)
        if body:
            self._parts.append(piece[:body])
            self.size += body

    def _line(self, line: bytes) -> None:
        match = _SIZE.fullmatch(line)
        if match is None:
            raise Malformed("a chunk of the request's body does not say its size")
        size = int(match[1], 16)
        self._count += size > 0  # the one that ends the body holds nothing
        if self._count > MAX_CHUNKS:
            raise TooLarge(f"The request body comes in more than {MAX_CHUNKS} chunks")
        self._bodies.check(self.size + size)
        self._is_trailer = not size
        self._missing = size + 2 if size else 0

    def _keep(self, rest: bytes) -> None:
        if len(rest) > (MAX_TRAILER_BYTES if self._is_trailer else MAX_LINE_BYTES):
            raise TooLarge("a line between the chunks of the request's body is too long")
        self._part = rest
