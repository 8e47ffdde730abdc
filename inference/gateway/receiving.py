"""A request's body on its way: into memory of its own where its size is said, chunk by chunk where it is not."""

from __future__ import annotations

from collections.abc import Callable

from inference.gateway.bodies import Bodies, Held
from inference.gateway.chunks import Chunked
from inference.gateway.heads import Head
from inference.gateway.web import Part
from inference.protocol import memory

OWN_PAGES_BYTES = 256 << 10


class Receiving:
    """One body, of which `data` has come with its head. view: where the rest goes, None for chunks. `rest`, once it is
    whole: what came after it. place: of a large body's memory, where somebody has an opinion on it.
    """

    __slots__ = ("_chunks", "_filled", "_held", "head", "rest", "view")

    def __init__(self, head: Head, held: Held, bodies: Bodies, place: Callable[[Head], memoryview | None]) -> None:
        self.head = head
        self.rest = b""
        self.view: memoryview | None = None
        self._held = held
        self._filled = 0
        self._chunks: Chunked | None = None
        if head.length < 0:
            self._chunks = Chunked(bodies)
        elif head.length < OWN_PAGES_BYTES:
            self.view = memoryview(bytearray(head.length))
        else:
            self.view = place(head) or memory.pool.take(head.length, -head.json_bytes)

    def room(self) -> memoryview | None:
        """Where the next bytes shall be put; None: anywhere, and then `feed` takes them."""
        return None if self.view is None else self.view[self._filled :]

    def feed(self, data: bytes) -> Part | None:
        """The whole body, once `data` completes it. Raises Malformed, TooLarge or Overloaded."""
        if self.view is not None:
            self.view[self._filled : self._filled + len(data)] = data
            return self.filled(len(data))
        assert self._chunks is not None
        body = self._chunks.feed(data)
        self._held.grow(self._chunks.size)
        if body is not None:
            self.rest = self._chunks.rest
        return body

    def filled(self, size: int) -> Part | None:
        """The whole body, once the `size` bytes that were put into `room` complete it. Raises TooLarge or Overloaded."""
        view = self.view
        assert view is not None
        before, self._filled = self._filled, self._filled + size
        if before < memory.HUGE_BYTES <= self._filled:
            memory.in_huge_pages(view)
        self._held.grow(self._filled)
        return view if self._filled == len(view) else None
