"""A bounded reader of flatbuffers: tables, vectors, strings; every offset is checked before it is followed.

Source: the flatbuffers binary format (google/flatbuffers, docs/source/internals).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from inference.artifacts.window import Data, Window


class Broken(ValueError):
    """An offset or a length points outside of the buffer."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table inside `data`. Fields are named by their number in the schema; absent ones read as None."""

    data: Data
    at: int

    @staticmethod
    def root(data: Data) -> Table:
        return Table.open(data, read(data, "<I", 0))

    @staticmethod
    def open(data: Data, at: int) -> Table:
        table = Table(data, at)
        vtable = at - read(data, "<i", at)
        length, size = read(data, "<H", vtable), read(data, "<H", vtable + 2)
        if length < 4 or length % 2 or vtable + length > len(data) or size < 4 or at + size > len(data):
            raise Broken
        return table

    def place(self, field: int) -> int | None:
        vtable = self.at - read(self.data, "<i", self.at)
        if 4 + 2 * field + 2 > read(self.data, "<H", vtable):
            return None
        offset = read(self.data, "<H", vtable + 4 + 2 * field)
        if offset == 0:
            return None
        if offset >= read(self.data, "<H", vtable + 2):
            raise Broken
        return self.at + offset

    def number(self, field: int, form: str, default: int = 0) -> int:
        place = self.place(field)
        return default if place is None else read(self.data, form, place)

    def vector(self, field: int, item_bytes: int, limit: int) -> tuple[int, int]:
        """(place of the first item, count); (0, 0) when absent."""
        place = self.place(field)
        if place is None:
            return 0, 0
        start = place + read(self.data, "<I", place)
        count = read(self.data, "<I", start)
        if count > limit or start + 4 + count * item_bytes > len(self.data):
            raise Broken
        return start + 4, count

    def bytes(self, field: int, limit: int) -> Data:
        start, count = self.vector(field, 1, limit)
        return self.data[start : start + count]

    def text(self, field: int, limit: int) -> str:
        return _text(self.bytes(field, limit))

    def texts(self, field: int, limit: int, text_limit: int) -> list[str]:
        start, count = self.vector(field, 4, limit)
        found = []
        for index in range(count):
            at = start + 4 * index
            at += read(self.data, "<I", at)
            length = read(self.data, "<I", at)
            if length > text_limit or at + 4 + length > len(self.data):
                raise Broken
            found.append(_text(self.data[at + 4 : at + 4 + length]))
        return found

    def tables(self, field: int, limit: int) -> list[Table]:
        start, count = self.vector(field, 4, limit)
        places = [start + 4 * index for index in range(count)]
        return [Table.open(self.data, place + read(self.data, "<I", place)) for place in places]

    def table(self, field: int) -> Table | None:
        place = self.place(field)
        return None if place is None else Table.open(self.data, place + read(self.data, "<I", place))

    def numbers(self, field: int, form: str, limit: int) -> list[int]:
        size = struct.calcsize(form)
        start, count = self.vector(field, size, limit)
        return [read(self.data, form, start + size * index) for index in range(count)]


def read(data: Data, form: str, at: int) -> int:
    """One number at `at`. Raises Broken outside of the buffer."""
    if at < 0 or at + struct.calcsize(form) > len(data):
        raise Broken
    piece = data[at : at + struct.calcsize(form)]
    if isinstance(piece, Window) or len(piece) < struct.calcsize(form):
        raise Broken
    value: int = struct.unpack(form, piece)[0]
    return value


def _text(data: Data) -> str:
    if isinstance(data, Window):
        raise Broken
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        raise Broken from None
