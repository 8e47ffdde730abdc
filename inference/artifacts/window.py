"""A file read like a byte string without being in memory: parsing a large model stays within the parse stage's limit.

A memory map would count against the limit on address space, so pages are read as they are asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import overload

PAGE_BYTES = 1 << 16
WHOLE_BYTES = 1 << 20


class Window:
    """Bytes [start, start + length) of an open file. Short slices are read; long ones are windows again."""

    __slots__ = ("_descriptor", "_length", "_page", "_page_at", "_start")

    def __init__(self, descriptor: int, start: int, length: int) -> None:
        self._descriptor = descriptor
        self._start = start
        self._length = length
        self._page = b""
        self._page_at = 0

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, key: int) -> int: ...
    @overload
    def __getitem__(self, key: slice) -> memoryview | Window: ...
    def __getitem__(self, key: int | slice) -> int | memoryview | Window:
        if isinstance(key, slice):
            begin, end, _ = key.indices(self._length)
            size = max(0, end - begin)
            if size > WHOLE_BYTES:
                return Window(self._descriptor, self._start + begin, size)
            return memoryview(os.pread(self._descriptor, size, self._start + begin))
        if not 0 <= key < self._length:
            raise IndexError(key)
        if not 0 <= key - self._page_at < len(self._page):
            self._page_at = key
            self._page = os.pread(self._descriptor, min(PAGE_BYTES, self._length - key), self._start + key)
            if not self._page:
                raise IndexError(key)
        return self._page[key - self._page_at]


Data = memoryview | Window


@contextmanager
def opened(path: Path) -> Iterator[Window]:
    """The whole file as a window, as long as the block lasts."""
    with path.open("rb") as source:
        yield Window(source.fileno(), 0, os.fstat(source.fileno()).st_size)
