"""Tensors from JSON values to the wire's bytes, without numpy: little-endian, row-major, BYTES with u32 lengths.

Values were checked when they were saved (registry.golden), so a value that does not fit its datatype is a fault of ours.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from inference.protocol.compare import Output
from inference.protocol.oip import Signature
from inference.protocol.values import numbers

_CODES = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h", "INT32": "i",
    "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip
_FLOATS = frozenset({"FP16", "BF16", "FP32", "FP64"})
TEXT = "A short sentence."
CHUNK = 65_536
Tensor = Mapping[str, Any]


def packed(tensor: Tensor) -> Output:
    """A tensor of the Open Inference Protocol's JSON, its data flat, as it lies on the wire. Raises ValueError."""
    datatype, values = tensor["datatype"], tensor["data"]
    try:
        data = _PACKERS.get(datatype, _numbers)(datatype, values)
    except (struct.error, OverflowError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"'{tensor['name']}' has a value that is no {datatype}") from error
    return Output(tensor["name"], datatype, tensor["shape"], data)


def _numbers(datatype: str, values: Sequence[Any]) -> bytes:
    convert = float if datatype in _FLOATS else bool if datatype == "BOOL" else int
    return struct.pack(f"<{len(values)}{_CODES[datatype]}", *map(convert, values))


def _brains(_: str, values: Sequence[Any]) -> bytes:
    """BF16: a float32's upper half, rounded to the nearest."""
    whole = struct.unpack(f"<{len(values)}I", struct.pack(f"<{len(values)}f", *values))
    return struct.pack(f"<{len(values)}H", *((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 for bits in whole))


def _texts(_: str, values: Sequence[Any]) -> bytes:
    parts = [value.encode() for value in values]
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


_PACKERS: dict[str, Callable[[str, Sequence[Any]], bytes]] = {"BF16": _brains, "BYTES": _texts}


def example(signature: Signature, free_size: int) -> list[Output]:
    """A valid request of one row, of values that validation uses, too: ones and a sentence; free dimensions `free_size`."""
    found = []
    for spec in signature.inputs:
        shape = [free_size if size < 0 else size for size in spec.shape]
        if signature.max_batch_size and shape:
            shape[0] = 1
        value: Any = {"BYTES": TEXT, "BOOL": True}.get(spec.datatype, 1)
        tensor = {"name": spec.name, "datatype": spec.datatype, "shape": shape, "data": [value] * prod(shape)}
        found.append(packed(tensor))
    return found


def broken_values(output: Output) -> int:
    """How many of an output's numbers are NaN or infinite."""
    if output.datatype not in _FLOATS:
        return 0
    count = prod(output.shape)
    return sum(
        not math.isfinite(value)
        for at in range(0, count, CHUNK)
        for value in numbers(output.datatype, output.data, slice(at, at + CHUNK), 1)
    )
