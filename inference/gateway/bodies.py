"""The memory that request bodies may take: bounded each, and bounded all together while they come and are answered.

What counts is what has arrived, not what was announced: who announces much and sends little keeps nobody out.
"""

from __future__ import annotations

from inference.errors import Overloaded, TooLarge

SMALL_BYTES = 64 << 10
HELD_BODIES = 8


class Bodies:
    """The memory set aside for bodies: HELD_BODIES of the largest size; those of up to SMALL_BYTES do not count."""

    __slots__ = ("held_bytes", "limit_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0

    def check(self, size: int) -> None:
        """Raises TooLarge for a body of more than `limit_bytes`."""
        if size > self.limit_bytes:
            raise TooLarge(f"The request body is larger than the {self.limit_bytes} bytes that this server accepts")


class Held:
    """What one request's body holds, `size_bytes`; `release` gives it back."""

    __slots__ = ("_bodies", "size_bytes")

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self.size_bytes = 0

    def grow(self, size: int) -> None:
        """The body has `size` bytes now. Raises TooLarge, or Overloaded when large bodies fill what is set aside."""
        if size <= SMALL_BYTES:
            return
        bodies = self._bodies
        bodies.check(size)
        more = size - self.size_bytes
        if bodies.held_bytes + more > bodies.limit_bytes * HELD_BODIES:
            raise Overloaded(retry_after_s=1.0)
        bodies.held_bytes += more
        self.size_bytes = size

    def release(self) -> None:
        self._bodies.held_bytes -= self.size_bytes
        self.size_bytes = 0
