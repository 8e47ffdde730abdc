"""Tensors' bytes as Python's numbers and texts, without numpy, and never more of them than is asked for.

Bytes are the wire's: little-endian and row-major, a BYTES element a u32 length and the bytes.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Sequence
from math import prod

from inference.protocol.oip import DATATYPES

Buffer = bytes | bytearray | memoryview
Number = int | float

_CODES = {
    "BOOL": "B", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h", "INT32": "i",
    "INT64": "q", "FP16": "H", "BF16": "H", "FP32": "f", "FP64": "d",
}  # fmt: skip
_LENGTH = struct.Struct("<I")


def count_of(shape: Sequence[int]) -> int:
    """How many elements a tensor of this shape has."""
    return prod(shape)


def fits(datatype: str, shape: Sequence[int], data: Buffer) -> bool:
    """Whether these bytes can be such a tensor; of BYTES only that there is room for its lengths."""
    if datatype not in DATATYPES or any(size < 0 for size in shape):
        return False
    size = DATATYPES[datatype][0]
    return len(data) == size * count_of(shape) if size else len(data) >= 4 * count_of(shape)


def numbers(datatype: str, data: Buffer, rows: slice, width: int) -> list[Number]:
    """The numbers of some rows of `width` elements: `rows` says which. The bytes fit the datatype (see `fits`)."""
    size = DATATYPES[datatype][0]
    view = memoryview(data).cast("B")
    if rows.step in (None, 1):
        start, end, _ = rows.indices(len(view) // (size * width) if width else 0)
        taken = bytes(view[start * width * size : end * width * size])
    else:
        starts = range(*rows.indices(len(view) // (size * width) if width else 0))
        taken = b"".join(view[at * width * size : (at + 1) * width * size] for at in starts)
    return _decoded(datatype, taken)


def _decoded(datatype: str, data: bytes) -> list[Number]:
    held: array[int] | array[float] = array(_CODES[datatype])
    held.frombytes(data)
    if sys.byteorder == "big":
        held.byteswap()
    if datatype == "FP16":
        return list(struct.unpack(f"{len(held)}e", held.tobytes()))
    if datatype == "BF16":  # the upper half of a float32
        whole = array("f")
        whole.frombytes(array("I", [int(half) << 16 for half in held]).tobytes())
        return list(whole)
    return list(held)


def texts(data: Buffer, count: int, most_bytes: int) -> tuple[list[str], bool]:
    """(The first elements of a BYTES tensor as text, as far as `most_bytes` reach; whether that is all of it.)

    What is no UTF-8 is replaced, an element that the limit cuts is cut. Raises ValueError where lengths and bytes do
    not fit.
    """
    view = memoryview(data).cast("B")
    found: list[str] = []
    at = 0
    for _ in range(count):
        if at + 4 > len(view):
            raise ValueError("an element's length is missing")
        (size,) = _LENGTH.unpack_from(view, at)
        at += 4
        if at + size > len(view):
            raise ValueError("an element is longer than its tensor")
        left = most_bytes - at
        if left <= 0:
            return found, False
        found.append(bytes(view[at : at + min(size, left)]).decode("utf-8", "replace"))
        if size > left:
            return found, False
        at += size
    if at != len(view):
        raise ValueError("bytes are left over")
    return found, True
