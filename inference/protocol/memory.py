"""Memory that large messages are received into: pages are what it costs, so they are few, or were there before.

The law: memory is handed out again only when nobody refers to it any more, and is full of the new message before
anybody reads it. A page is taken when something has come to lie in it, not when it was announced.
"""

from __future__ import annotations

import mmap
import sys

ALIGNED_TO = 64  # what tensor libraries want at most; they copy what lies otherwise
LEAST_BYTES = 64 << 10
POOLED_BYTES = 4 << 20  # the largest that is kept; huge pages serve what is larger
KEPT_BYTES = 16 << 20
HUGE_BYTES = 2 << 20
_UNUSED = 3  # references to a block of the pool that nobody uses: the pool's, a loop's, and getrefcount's own


class Pool:
    """Blocks of up to POOLED_BYTES for reuse, KEPT_BYTES of them in all; what is larger is made and given up each time.

    Belongs to one thread.
    """

    def __init__(self) -> None:
        self.blocks: list[mmap.mmap] = []
        self.kept_bytes = 0

    def take(self, size: int, offset: int = 0) -> memoryview:
        """`size` writable bytes that begin `offset` after a multiple of ALIGNED_TO; what they hold is not said.

        They belong to whoever holds the view, or a part of it.
        """
        start = offset % ALIGNED_TO
        return memoryview(self._block(start + size))[start : start + size]

    def _block(self, size: int) -> mmap.mmap:
        if size > POOLED_BYTES:
            return _fresh(size)
        rounded = max(LEAST_BYTES, 1 << (size - 1).bit_length())
        for block in self.blocks:
            if len(block) == rounded and sys.getrefcount(block) == _UNUSED:
                return block
        made = _fresh(rounded)
        if self.kept_bytes + rounded <= KEPT_BYTES or self._makes_room(rounded):
            self.blocks.append(made)
            self.kept_bytes += rounded
        return made

    def _makes_room(self, size: int) -> bool:
        """Gives up unused blocks until `size` bytes more may be kept."""
        for block in list(self.blocks):
            # the copy of the list refers to it too
            if sys.getrefcount(block) == _UNUSED + 1:
                self.blocks.remove(block)
                self.kept_bytes -= len(block)
                if self.kept_bytes + size <= KEPT_BYTES:
                    return True
        return False


def _fresh(size: int) -> mmap.mmap:
    # private: anonymous memory that could be shared with children is a file to the kernel, and gets no huge pages
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def in_huge_pages(view: memoryview) -> None:
    """What is not yet there of the memory that `view` lies in shall come in huge pages: for when it is going to be
    filled for sure, or as much of it has been filled as one such page holds.
    """
    block = view.obj
    if isinstance(block, mmap.mmap) and len(block) > POOLED_BYTES:
        block.madvise(mmap.MADV_HUGEPAGE)


pool = Pool()  # of the event loop's thread
