"""Tensor data between JSON and little-endian row-major bytes, without a tensor library.

`array`, `struct` and `memoryview.cast` do the work in C. Every size is checked with Python's integers before anything
is allocated for it. FP16 and BF16 exist only as bytes. In JSON output NaN and both infinities are written as null,
since JSON has no word for them; in JSON input null is refused: who needs them sends the binary form.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import chain
from typing import Any

import msgspec

from inference.errors import InvalidInput, Malformed
from inference.protocol.oip import DATATYPES, MAX_RANK

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("the gateway's codec is written for little-endian machines")

MAX_DEPTH = 100
LARGE_JSON_BYTES = 64 << 10
MAX_DIMENSION = 2**63 - 1
BINARY_ONLY = frozenset({"FP16", "BF16"})
# datatype -> (array typecode, Python type of one JSON element)
NUMBERS: dict[str, tuple[str, type]] = {
    "UINT8": ("B", int),
    "UINT16": ("H", int),
    "UINT32": ("I", int),
    "UINT64": ("Q", int),
    "INT8": ("b", int),
    "INT16": ("h", int),
    "INT32": ("i", int),
    "INT64": ("q", int),
    "FP32": ("f", float),
    "FP64": ("d", float),
}
_ELEMENTS: dict[str, type] = {name: kind for name, (_, kind) in NUMBERS.items()} | {"BOOL": bool, "BYTES": str}
_CASTS: dict[str, str] = {name: code for name, (code, _) in NUMBERS.items()} | {"BOOL": "?"}
JSON_ERRORS = (msgspec.MsgspecError, UnicodeError, RecursionError)


def element_count(shape: list[int], name: str) -> int:
    """The product of `shape`. Raises InvalidInput for a negative or absurd dimension or more than 16 of them."""
    if len(shape) > MAX_RANK:
        raise InvalidInput(f"input '{name}' has {len(shape)} dimensions, at most {MAX_RANK} are allowed")
    count = 1
    for size in shape:
        if not 0 <= size <= MAX_DIMENSION:
            raise InvalidInput(
                f"input '{name}' has an invalid dimension in its shape {shape}: a request says each size, from 0 to 2^63 - 1"
            )
        count *= size
    if count > MAX_DIMENSION:
        raise InvalidInput(f"the elements of input '{name}' with shape {shape} cannot be counted in 63 bits")
    return count


@lru_cache(maxsize=256)
def _decoder(kind: type, depth: int) -> Callable[[msgspec.Raw], Any]:
    wanted: Any = kind
    for _ in range(depth):
        wanted = list[wanted]
    return msgspec.json.Decoder(wanted).decode


def _depth(raw: msgspec.Raw) -> int:
    depth = 0
    for byte in memoryview(raw):
        if byte == 0x5B:  # [
            depth += 1
        elif byte not in b" \t\r\n":
            break
        if depth > MAX_DEPTH:
            raise Malformed(f"JSON is nested deeper than {MAX_DEPTH}")
    return depth


def _flat(raw: msgspec.Raw, kind: type, name: str) -> list[Any]:
    depth = _depth(raw)
    if not 1 <= depth <= MAX_RANK:
        raise Malformed(f"'data' of input '{name}' must be an array, flat or nested at most {MAX_RANK} deep")
    try:
        values: list[Any] = _decoder(kind, depth)(raw)
    except JSON_ERRORS as error:
        raise Malformed(f"unable to parse 'data' of input '{name}': {error}") from error
    for _ in range(depth - 1):
        values = list(chain.from_iterable(values))
    return values


def _least_elements(raw: bytes, kind: type) -> int:
    """How many elements an array has at least: counted in the text, for as objects they take 30 times its size.

    Of empty nested arrays a few are mistaken for elements; hence the slack where this is used.
    """
    if kind is str:
        return (raw.count(b'"') - raw.count(b'\\"')) // 2
    return raw.count(b",")


def _pack_bytes(values: Iterable[str], name: str) -> bytes:
    parts: list[bytes] = []
    try:
        for text in values:
            element = text.encode()
            parts += (len(element).to_bytes(4, "little"), element)
    except UnicodeError as error:
        raise Malformed(f"'data' of input '{name}' is not valid UTF-8") from error
    return b"".join(parts)


def from_json(raw: msgspec.Raw, datatype: str, count: int, name: str) -> bytes:
    """The bytes of `count` elements written as a JSON array, nested or flat.

    Raises InvalidInput for a datatype that JSON cannot carry, a wrong number of elements or a value out of range;
    Malformed for what is no array of that datatype.
    """
    kind = _kind(datatype, name)
    if len(raw) > LARGE_JSON_BYTES:
        refuse_more(raw, datatype, count, name)
    values = _flat(raw, kind, name)
    if len(values) != count:
        raise InvalidInput(f"input '{name}' holds {len(values)} elements, its shape says {count}")
    if kind is str:
        return _pack_bytes(values, name)
    if kind is bool:
        return bytes(values)
    try:
        return array(NUMBERS[datatype][0], values).tobytes()
    except (OverflowError, ValueError) as error:
        raise InvalidInput(f"a value of input '{name}' is out of range for {datatype}") from error


def _kind(datatype: str, name: str) -> type:
    kind = _ELEMENTS.get(datatype)
    if kind is not None:
        return kind
    if datatype in BINARY_ONLY:
        raise InvalidInput(
            f"receiving {datatype} data via JSON is not supported. Please use the binary data format for input '{name}'"
        )
    raise _unknown(datatype, name)


def _unknown(datatype: str, name: str) -> InvalidInput:
    return InvalidInput(f"input '{name}' has the unknown datatype '{datatype}'. There are {', '.join(DATATYPES)}")


def refuse_more(raw: msgspec.Raw, datatype: str, count: int, name: str) -> None:
    """Raises InvalidInput for an array that has many more than `count` elements, without reading it."""
    if _least_elements(bytes(raw), _kind(datatype, name)) > 2 * count + 4096:
        raise InvalidInput(f"input '{name}' holds more elements than its shape says")


def count_json(raw: msgspec.Raw, datatype: str, name: str) -> int:
    """How many elements a JSON array has, nested or flat. Raises Malformed or InvalidInput, as from_json does."""
    return len(_flat(raw, _kind(datatype, name), name))


def check_binary(data: bytes | memoryview, datatype: str, count: int, name: str) -> None:
    """Raises InvalidInput unless `data` is exactly `count` elements of `datatype`."""
    known = DATATYPES.get(datatype)
    if known is None:
        raise _unknown(datatype, name)
    if known[0]:
        if len(data) != count * known[0]:
            raise InvalidInput(
                f"input '{name}' has {len(data)} bytes of binary data, {count} elements of {datatype} need {count * known[0]}"
            )
        if datatype == "BOOL" and bytes(data).strip(b"\x00\x01"):
            # strip only looks at the ends, but a byte that is neither stops it
            raise InvalidInput(f"input '{name}' holds a BOOL that is neither 0 nor 1")
        return
    found = sum(1 for _ in elements(data, f"input '{name}'"))
    if found != count:
        raise InvalidInput(f"input '{name}' holds {found} BYTES elements, its shape says {count}")


def elements(data: bytes | memoryview, what: str) -> Iterable[bytes]:
    """The BYTES elements of `data`, `what` being its name in errors. Raises InvalidInput."""
    at, end = 0, len(data)
    while at < end:
        if end - at < 4:
            raise InvalidInput(f"{what}: the length of a BYTES element is cut off")
        size = int.from_bytes(data[at : at + 4], "little")
        at += 4
        if size > end - at:
            raise InvalidInput(f"{what}: a BYTES element is longer than the data")
        yield bytes(data[at : at + size])
        at += size


def to_json(data: memoryview, datatype: str, name: str) -> list[Any]:
    """The elements of an output as a flat list for JSON.

    Raises InvalidInput for a datatype or a text that JSON cannot carry.
    """
    code = _CASTS.get(datatype)
    if code is not None:
        cast: Any = data.cast  # its stub knows literal codes only
        values: list[Any] = cast(code).tolist()
        return values
    refuse_in_json(datatype, name)
    try:
        return [element.decode() for element in elements(data, f"output '{name}'")]
    except UnicodeError as error:
        raise InvalidInput(
            f"output '{name}' holds BYTES that are not UTF-8. Please use the binary data format for output '{name}'"
        ) from error


def refuse_in_json(datatype: str, name: str) -> None:
    """Raises InvalidInput when an output of `datatype` cannot be sent as JSON."""
    if datatype in BINARY_ONLY:
        raise InvalidInput(
            f"sending {datatype} data via JSON is not supported. Please use the binary data format for output '{name}'"
        )


def pack_texts(values: Iterable[str]) -> bytes:
    """Texts as BYTES elements."""
    return _pack_bytes(values, "")


def bytes_element(data: bytes) -> bytes:
    """One BYTES element that holds `data`."""
    return len(data).to_bytes(4, "little") + data
