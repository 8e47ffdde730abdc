"""Request bodies: read as they come, bounded each, and bounded all together while they are being read and answered.

What counts is what has arrived, not what was announced: who announces much and sends little keeps nobody out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from inference.errors import Malformed, Overloaded, TooLarge

MAX_CHUNKS = 65_536
SMALL_BYTES = 64 << 10
HELD_BODIES = 8

Receive = Callable[[], Awaitable[dict[str, Any]]]


class Bodies:
    """The memory set aside for bodies: HELD_BODIES of the largest size; those of up to SMALL_BYTES do not count."""

    __slots__ = ("held_bytes", "limit_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0

    def refuse(self) -> TooLarge:
        return TooLarge(f"The request body is larger than the {self.limit_bytes} bytes that this server accepts")


class Body:
    """One request's body; `release` gives back what it holds."""

    __slots__ = ("_bodies", "_held_bytes")

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._held_bytes = 0

    async def read(self, announced: int, receive: Receive) -> bytes:
        """All of it; `announced` is its Content-Length, -1 without one.

        Raises TooLarge, before reading what says that it is too large, Malformed when it ends early, and Overloaded
        when large bodies fill the memory set aside for them.
        """
        if announced > self._bodies.limit_bytes:
            raise self._bodies.refuse()
        message = await receive()
        body: bytes = message.get("body", b"")
        if len(body) > SMALL_BYTES:
            self._hold(len(body))
        if len(body) != announced and message.get("more_body"):
            return await self._rest(body, announced, receive)
        return body

    def release(self) -> None:
        self._bodies.held_bytes -= self._held_bytes
        self._held_bytes = 0

    async def _rest(self, first: bytes, announced: int, receive: Receive) -> bytes:
        parts, size = [first], len(first)
        for _ in range(MAX_CHUNKS):
            message = await receive()
            if message["type"] != "http.request":
                raise Malformed("the request body ended early")
            part = message.get("body", b"")
            size += len(part)
            if size > SMALL_BYTES:
                self._hold(size)
            parts.append(part)
            if size == announced or not message.get("more_body"):
                return b"".join(parts)
        raise TooLarge(f"The request body comes in more than {MAX_CHUNKS} chunks")

    def _hold(self, size: int) -> None:
        bodies = self._bodies
        if size > bodies.limit_bytes:
            raise bodies.refuse()
        more = size - self._held_bytes
        if bodies.held_bytes + more > bodies.limit_bytes * HELD_BODIES:
            raise Overloaded(retry_after_s=1.0)
        bodies.held_bytes += more
        self._held_bytes = size
