"""A request's body that is passed on while it comes: never more of it in memory than HIGH_BYTES and one read."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from inference.errors import SerinusError

HIGH_BYTES, LOW_BYTES = 256 << 10, 64 << 10


class Incoming:
    """left: bytes that have not come yet. hold, go_on: how its connection stops and goes on reading."""

    def __init__(self, size: int, hold: Callable[[], None], go_on: Callable[[], None]) -> None:
        self.left = size
        self._hold = hold
        self._go_on = go_on
        self._parts: deque[bytes] = deque()
        self._held_bytes = 0
        self._is_held = False
        self._error: SerinusError | None = None
        self._wake = asyncio.Event()

    def feed(self, data: bytes) -> None:
        """What came; no more than `left`."""
        self.left -= len(data)
        self._held_bytes += len(data)
        self._parts.append(data)
        self._wake.set()
        if self._held_bytes > HIGH_BYTES and self.left and not self._is_held:
            self._is_held = True
            self._hold()

    def fail(self, error: SerinusError) -> None:
        """The rest will not come."""
        self._error = self._error or error
        self._wake.set()

    async def parts(self) -> AsyncIterator[bytes]:
        """The body, piece by piece. Raises what `fail` was told."""
        while self._parts or self.left:
            while not self._parts:
                if self._error is not None:
                    raise self._error
                self._wake.clear()
                await self._wake.wait()
            part = self._parts.popleft()
            self._held_bytes -= len(part)
            if self._is_held and self._held_bytes < LOW_BYTES:
                self._is_held = False
                self._go_on()
            yield part
