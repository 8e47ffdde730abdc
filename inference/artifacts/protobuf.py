"""A bounded walk over protobuf's wire format: fields of one message, nothing decoded that is not asked for.

Source: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator

from inference.artifacts.window import Data, Window

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class Broken(ValueError):
    """The bytes are no protobuf message."""


Value = int | Data


def fields(data: Data) -> Iterator[tuple[int, Value]]:
    """(field number, value) in order: an int for numbers, a view for everything with a length. Raises Broken."""
    at, end = 0, len(data)
    while at < end:
        tag, at = varint(data, at)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise Broken
        if kind == VARINT:
            value, at = varint(data, at)
            yield number, value
            continue
        if kind == BYTES:
            length, at = varint(data, at)
        elif kind in {FIXED64, FIXED32}:
            length = 8 if kind == FIXED64 else 4
        else:
            raise Broken
        if length > end - at:
            raise Broken
        yield number, data[at : at + length]
        at += length


def varint(data: Data, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise Broken
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at
    raise Broken


def view(value: Value) -> Data:
    """A field that must have a length. Raises Broken for a number."""
    if isinstance(value, int):
        raise Broken
    return value


def number(value: Value) -> int:
    """A field that must be a number, as a signed 64-bit integer. Raises Broken."""
    if not isinstance(value, int):
        raise Broken
    return value - (1 << 64) if value >> 63 else value


def text(value: Value) -> str:
    """A field that must be UTF-8 text. Raises Broken."""
    data = view(value)
    if isinstance(data, Window):
        raise Broken
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        raise Broken from None
