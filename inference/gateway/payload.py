"""A large binary message while it comes: in one piece of memory from its first byte on, its mask taken off in place.

The law: what was received is unmasked at once, in slices that the processor still has in its cache, so that from the
socket to where a replica reads it a message is written once by the kernel and once here.
"""

from __future__ import annotations

from inference.protocol import memory

try:
    from websockets.speedups import apply_mask
except ImportError:  # built without C
    from websockets.utils import apply_mask

SLICE_BYTES = 64 << 10
Given = bytes | bytearray


def unmask(view: memoryview, mask: bytes) -> None:
    """Takes the mask off, in place; its first byte belongs to the view's first."""
    for at in range(0, len(view), SLICE_BYTES):
        with view[at : at + SLICE_BYTES] as part:
            part[:] = apply_mask(part, mask)


class Payload:
    """view: where it lies; larger memory is taken when it does not fit, `most_bytes` at most. filled: bytes that are
    there; left: those of the frame under way that are not; is_last: whether that frame ends the message.
    """

    __slots__ = ("_mask", "_most_bytes", "_view", "filled", "is_last", "left")

    def __init__(self, view: memoryview, begun: Given, *, most_bytes: int) -> None:
        self._view = view
        self._most_bytes = most_bytes
        self._mask = b""
        self.filled = self.left = 0
        self.is_last = False
        self._reserve(len(begun))
        self._grow(len(begun))
        self._view[: len(begun)] = begun

    def begin(self, size: int, mask: bytes, *, is_last: bool) -> None:
        """A frame of `size` bytes begins."""
        self._reserve(size)
        self._mask, self.left, self.is_last = mask, size, is_last

    @property
    def room(self) -> memoryview:
        """Where the rest of the frame belongs."""
        return self._view[self.filled : self.filled + self.left]

    def came(self, size: int) -> None:
        """So many bytes lie in `room`, masked."""
        unmask(self._view[self.filled : self.filled + size], self._mask)
        self._grow(size)

    def take(self, data: Given, at: int) -> int:
        """Takes what is its own of masked bytes that were read elsewhere, from `at` on; how many these were."""
        size = min(self.left, len(data) - at)
        if size:
            with memoryview(data) as given, given[at : at + size] as masked:
                self._view[self.filled : self.filled + size] = apply_mask(masked, self._mask)
            self._grow(size)
        return size

    def whole(self) -> memoryview:
        return self._view[: self.filled]

    def _grow(self, size: int) -> None:
        before, self.filled = self.filled, self.filled + size
        if before < memory.HUGE_BYTES <= self.filled:
            memory.in_huge_pages(self._view)
        if self.left:
            self.left -= size
            turn = size % 4
            self._mask = self._mask[turn:] + self._mask[:turn]

    def _reserve(self, size: int) -> None:
        wanted = self.filled + size
        if wanted > len(self._view):
            larger = memory.pool.take(min(max(wanted, 2 * len(self._view)), max(wanted, self._most_bytes)))
            larger[: self.filled] = self._view[: self.filled]
            self._view = larger
