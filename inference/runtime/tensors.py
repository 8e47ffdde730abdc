"""Bytes <-> numpy by Open Inference Protocol datatype, and requests <-> batches. Lengths are exact or it is an error.

Fixed-size datatypes are viewed, not copied: an array made by `from_bytes` is read-only and lives as long as its
buffer. BYTES is an object array of `bytes`; BF16 is carried as uint16.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.errors import InvalidInput
from inference.protocol.oip import DATATYPES, MAX_RANK, Signature, TensorSpec

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
_LENGTH = struct.Struct("<I")
_BF16_EXPONENT = np.uint16(0x7F80)
SMALL_BYTES = 4096  # a copy of so much costs less than a view
_NUMPY: dict[str, np.dtype[Any]] = {
    name: np.dtype(kind).newbyteorder("<") for name, (_, kind) in DATATYPES.items() if kind
}
_NUMPY |= {"BF16": np.dtype("<u2"), "BYTES": np.dtype(object)}
_DATATYPE: dict[str, str] = {kind: name for name, (_, kind) in DATATYPES.items() if kind}


def numpy_dtype(datatype: str) -> np.dtype[Any]:
    """The dtype that carries `datatype` (BF16: uint16, BYTES: object). Raises InvalidInput for an unknown one."""
    found = _NUMPY.get(datatype)
    if found is None:
        raise InvalidInput(f"unknown datatype {datatype!r}")
    return found


def datatype_of(name: str) -> str | None:
    """The protocol's datatype for a numpy dtype's name ("float32" -> "FP32"); None where it has none."""
    return "BF16" if name == "bfloat16" else _DATATYPE.get(name)


def element_count(shape: Sequence[int]) -> int:
    """The product of the dimensions. Raises InvalidInput for a negative one, or more of them than allowed."""
    if len(shape) > MAX_RANK:
        raise InvalidInput(f"a tensor has at most {MAX_RANK} dimensions, not {len(shape)}")
    if any(size < 0 for size in shape):
        raise InvalidInput(f"a tensor's dimensions must not be negative: {list(shape)}")
    return math.prod(shape)


def from_bytes(datatype: str, shape: Sequence[int], data: bytes | bytearray | memoryview) -> Array:
    """`data` (little-endian, row-major) as an array of `shape`. Raises InvalidInput unless the length is exact."""
    dtype, count = numpy_dtype(datatype), element_count(shape)
    if datatype == "BYTES":
        return _from_strings(count, data).reshape(shape)
    if len(data) != count * dtype.itemsize:
        wanted = count * dtype.itemsize
        raise InvalidInput(f"{datatype} {list(shape)} needs {wanted} bytes, not {len(data)}")
    if datatype == "BOOL" and count and np.frombuffer(data, dtype="u1").max() > 1:
        raise InvalidInput("a BOOL element is the byte 0 or 1")
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def to_bytes(datatype: str, array: Array) -> bytes | memoryview:
    """The array's elements, little-endian and row-major; a view of its memory where it lies that way and is large."""
    if datatype == "BYTES":
        return b"".join(_strings(array))
    if array.nbytes <= SMALL_BYTES and array.dtype == _NUMPY.get(datatype):
        return array.tobytes()
    fitting = np.ascontiguousarray(array, dtype=numpy_dtype(datatype))
    flat: Any = fitting.reshape(-1).view("u1")
    return memoryview(flat)


def _from_strings(count: int, data: bytes | bytearray | memoryview) -> Array:
    view, size, at = memoryview(data).cast("B"), len(data), 0
    if count * _LENGTH.size > size:
        raise InvalidInput(f"BYTES data ends before its {count} elements do")
    found = np.empty(count, dtype=object)
    for index in range(count):
        if at + _LENGTH.size > size:
            raise InvalidInput(f"BYTES data ends before element {index}")
        (length,) = _LENGTH.unpack_from(view, at)
        at += _LENGTH.size
        if length > size - at:
            raise InvalidInput(f"BYTES element {index} says {length} bytes, {size - at} are left")
        found[index] = bytes(view[at : at + length])
        at += length
    if at != size:
        raise InvalidInput(f"BYTES data has {size - at} bytes after its {count} elements")
    return found


def _strings(array: Array) -> list[bytes]:
    parts: list[bytes] = []
    for item in array.ravel():
        text = item.encode() if isinstance(item, str) else bytes(item)
        parts += (_LENGTH.pack(len(text)), text)
    return parts


def fit(array: Array, spec: TensorSpec) -> Array:
    """`array` in the rank that `spec` asks for: dimensions of 1 that clients append ([n, 1] for [n]) are dropped.

    Raises InvalidInput with the protocol's own words when the shapes do not agree.
    """
    shape = list(array.shape)
    while len(shape) > len(spec.shape) and shape[-1] == 1:
        shape.pop()
    agrees = len(shape) == len(spec.shape) and all(
        want in (-1, have) for want, have in zip(spec.shape, shape, strict=True)
    )
    if not agrees:
        raise InvalidInput(f"unexpected shape for input '{spec.name}'. Expected {spec.shape}, got {list(array.shape)}")
    return array.reshape(shape)


def rows_of(signature: Signature, arrays: Arrays) -> int:
    """How many rows of the batch a request holds; 1 where the signature has no batch dimension.

    Raises InvalidInput when its inputs do not agree, or it has none or more than the largest batch.
    """
    if not signature.max_batch_size or (not arrays and all(spec.optional for spec in signature.inputs)):
        return 1
    found = {array.shape[0] if array.ndim else 0 for array in arrays.values()}
    if len(found) != 1:
        raise InvalidInput(f"all inputs must have the same batch size, not {sorted(found)}")
    rows: int = found.pop()
    if not 1 <= rows <= signature.max_batch_size:
        raise InvalidInput(f"inference request batch-size must be <= {signature.max_batch_size} and >= 1, not {rows}")
    return rows


def stack(requests: Sequence[Arrays]) -> Arrays:
    """Requests as one batch: concatenated along the first dimension; a single one is passed on uncopied."""
    if len(requests) == 1:
        return requests[0]
    return {name: np.concatenate([request[name] for request in requests]) for name in requests[0]}


def split(outputs: Arrays, rows: Sequence[int]) -> list[Arrays]:
    """The batch's outputs by request: views, `rows[i]` of them for request i; rows of padding are left over."""
    ends = np.cumsum(rows)
    return [
        {name: array[end - size : end] for name, array in outputs.items()}
        for size, end in zip(rows, ends.tolist(), strict=True)
    ]


def same_shape(one: Arrays, other: Arrays) -> bool:
    """Whether two requests can share a batch: all but the first dimension agree."""
    return all(other[name].shape[1:] == array.shape[1:] for name, array in one.items())


def pad(arrays: Arrays, rows: int) -> Arrays:
    """The batch grown to `rows` by repeating its last row: values the model has to do with anyway, so padding can
    bring up no fault of its own.
    """
    return {name: _padded(array, rows) for name, array in arrays.items()}


def _padded(array: Array, rows: int) -> Array:
    missing = rows - array.shape[0]
    return array if missing <= 0 else np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])


def bucket_for(signature: Signature, rows: int) -> int:
    """The smallest compiled batch size that holds `rows`; `rows` itself where any size runs."""
    return next((size for size in signature.buckets if size >= rows), rows)


def nonfinite_rows(outputs: Arrays, bf16: Collection[str] = ()) -> int:
    """How many rows hold a NaN or an infinity in some floating-point output; bf16: names of those that carry BF16."""
    bad: Any = None
    for name, array in outputs.items():
        if name in bf16:
            finite = (array & _BF16_EXPONENT) != _BF16_EXPONENT
        elif array.dtype.kind != "f" or _is_finite(array):
            continue
        else:
            finite = np.isfinite(array)
        if finite.all():
            continue
        rows = array.shape[0] if array.ndim else 1
        here = ~finite.reshape(rows, -1).all(axis=1)
        bad = here if bad is None or bad.shape != here.shape else bad | here
    return 0 if bad is None else int(bad.sum())


def _is_finite(array: Array) -> bool:
    """True for most arrays that hold numbers only, and for no other: the sum of squares is one pass of BLAS, half the
    price of looking at each. It overflows with numbers beyond 1e19, which are then looked at one by one.
    """
    if array.dtype.itemsize < 4 or not array.flags.c_contiguous:
        return bool(np.isfinite(array).all())
    flat = array.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):  # numpy warns of the very overflow that is looked for
        return math.isfinite(np.dot(flat, flat))
