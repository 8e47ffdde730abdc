"""Our own reader of GGUF headers (versions 2 and 3, little-endian): every count, size and offset is held against the file.

A file is the magic, u32 version, u64 tensors, u64 keys, then the keys with their values, the tensor table, padding, and
the tensors' bytes. Nothing is made larger than the bytes that stand for it, so a short file cannot cost much. Source:
the format description in ggml-org/ggml (docs/gguf.md).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from inference.artifacts.paths import shown
from inference.errors import Rejected

if TYPE_CHECKING:
    from pathlib import Path

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 64 << 20
MAX_KEYS = 2_000
MAX_KEY_BYTES = 256
MAX_TEXT_BYTES = 1 << 20
MAX_ITEMS = 1 << 21
MAX_TENSORS = 20_000
MAX_RANK = 4
MAX_ALIGNMENT = 1 << 16
DEFAULT_ALIGNMENT = 32
CHUNK_BYTES = 1 << 20
REMEDY = "Download or convert the .gguf file again (llama.cpp's convert_hf_to_gguf.py) and upload the new one."

# ggml's tensor types: number -> (name, elements of a block, bytes of a block).
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _ARRAY = 8, 9
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")


@dataclass(frozen=True, slots=True)
class Array:
    """An array of metadata, decoded when it is asked for. kind: "text", "int", "float" or "bool"."""

    kind: str
    count: int
    raw: bytes
    code: str

    def values(self) -> list[Any]:
        """All of it. Raises Rejected for text that is no UTF-8."""
        if self.kind != "text":
            return list(struct.unpack(f"<{self.count}{self.code}", self.raw))
        found: list[str] = []
        at = 0
        try:
            for _ in range(self.count):
                size = int.from_bytes(self.raw[at : at + 8], "little")
                found.append(str(self.raw[at + 8 : at + 8 + size], "utf-8"))
                at += 8 + size
        except UnicodeDecodeError:
            raise _rejected("holds a list with text that is not UTF-8") from None
        return found


Value = int | float | bool | str | Array


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor. kind: ggml's number of its type; shape: outermost first (ggml writes it the other way round);
    begin, end: its bytes in the file.
    """

    name: str
    kind: int
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def type_name(self) -> str:
        return TYPES[self.kind][0]

    @property
    def elements(self) -> int:
        product = 1
        for size in self.shape:
            product *= size
        return product


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself: metadata by key, tensors by name."""

    version: int
    metadata: dict[str, Value]
    tensors: dict[str, Tensor]

    def text(self, key: str, default: str = "") -> str:
        """Raises Rejected when the key is there and no text; so do the others for their types."""
        value = self.metadata.get(key, default)
        if not isinstance(value, str):
            _refuse(f"says {key} in a way that is no text")
        return value

    def integer(self, key: str, default: int = 0) -> int:
        value = self.metadata.get(key, default)
        if type(value) is not int:
            _refuse(f"says {key} in a way that is no whole number")
        return value

    def number(self, key: str, default: float = 0.0) -> float:
        value = self.metadata.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
            _refuse(f"says {key} in a way that is no number")
        return float(value)

    def flag(self, key: str, *, default: bool = False) -> bool:
        value = self.metadata.get(key, default)
        if not isinstance(value, bool):
            _refuse(f"says {key} in a way that is neither true nor false")
        return value

    def items(self, key: str, kind: str) -> list[Any]:
        """An array of that kind; [] when it is not there."""
        value = self.metadata.get(key)
        if value is None:
            return []
        if not isinstance(value, Array) or (value.kind != kind and value.count):
            _refuse(f"says {key} in a way that is no list of {kind}")
        return value.values()


def read(path: Path) -> Header:
    """Metadata and tensor table of one file; no tensor's bytes are read. Raises Rejected for every deviation."""
    size = path.stat().st_size
    with path.open("rb") as source:
        cursor = _Cursor(source, size)
        if bytes(cursor.take(4)) != MAGIC:
            _refuse("does not begin with GGUF")
        version = cursor.scalar("<I")
        if version not in VERSIONS:
            _refuse_version(version)
        tensors, keys = cursor.scalar("<Q"), cursor.scalar("<Q")
        if keys > MAX_KEYS or tensors > MAX_TENSORS:
            _refuse(f"claims {tensors} tensors and {keys} keys: at most {MAX_TENSORS} and {MAX_KEYS} are read")
        metadata = _metadata(cursor, keys)
        found = [_tensor(cursor) for _ in range(tensors)]
        start = _aligned(cursor.at, _alignment(metadata))
    return Header(version, metadata, _placed(found, start, size, _alignment(metadata)))


def _metadata(cursor: _Cursor, keys: int) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for _ in range(keys):
        key = cursor.text(MAX_KEY_BYTES, "a key")
        if key in found:
            _refuse(f"holds the key {shown(key)} twice")
        found[key] = _value(cursor, key)
    return found


def _value(cursor: _Cursor, key: str) -> Value:
    kind = cursor.scalar("<I")
    if kind not in _SCALARS and kind not in {_TEXT, _ARRAY}:
        _refuse(f"gives {shown(key)} the unknown type {kind}")
    if kind == _TEXT:
        return cursor.text(MAX_TEXT_BYTES, f"the value of {shown(key)}")
    if kind == _ARRAY:
        return _array(cursor, key)
    found: Value = cursor.scalar(_SCALARS[kind])
    return found


def _array(cursor: _Cursor, key: str) -> Array:
    kind, count = cursor.scalar("<I"), cursor.scalar("<Q")
    if kind != _TEXT and kind not in _SCALARS:
        _refuse(f"makes {shown(key)} a list of the type {kind}; lists hold numbers or text")
    if count > MAX_ITEMS:
        _refuse(f"makes {shown(key)} a list of {count} items; {MAX_ITEMS} are the limit")
    if kind == _TEXT:
        return Array("text", count, cursor.texts(count, key), "")
    form = _SCALARS[kind]
    named = {"?": "bool", "f": "float", "d": "float"}.get(form[1], "int")
    raw = bytes(cursor.take(count * struct.calcsize(form)))
    return Array(named, count, bytes(map(bool, raw)) if form == "<?" else raw, form[1])


def _tensor(cursor: _Cursor) -> Tensor:
    name = cursor.text(MAX_KEY_BYTES, "a tensor's name")
    if not _NAME.fullmatch(name) or ".." in name:
        _refuse(f"has a tensor with the unusual name {shown(name)}")
    rank = cursor.scalar("<I")
    if not 1 <= rank <= MAX_RANK:
        _refuse(f"gives the tensor {shown(name)} {rank} dimensions")
    shape = tuple(cursor.scalar("<Q") for _ in range(rank))
    kind, offset = cursor.scalar("<I"), cursor.scalar("<Q")
    if kind not in TYPES:
        _refuse(f"stores the tensor {shown(name)} as type {kind}, which is not known here", remedy=_OTHER_TYPE)
    return Tensor(name, kind, shape[::-1], offset, offset + _size_bytes(name, kind, shape))


def _size_bytes(name: str, kind: int, shape: tuple[int, ...]) -> int:
    label, block, block_bytes = TYPES[kind]
    elements = 1
    for size in shape:
        elements *= size
        if not size or elements > 1 << 48:
            _refuse(f"gives the tensor {shown(name)} an impossible shape")
    if shape[0] % block:
        _refuse(f"stores rows of {shape[0]} values of {shown(name)} as {label}, whose blocks are {block}")
    return elements // block * block_bytes


def _placed(found: list[Tensor], start: int, size: int, alignment: int) -> dict[str, Tensor]:
    """The tensors with offsets in the file: one after another, each at the next aligned place, up to the file's end."""
    placed: dict[str, Tensor] = {}
    at = start
    for tensor in sorted(found, key=lambda one: (one.begin, one.end)):
        if tensor.name in placed:
            _refuse(f"holds the tensor {shown(tensor.name)} twice")
        if tensor.begin + start != at:
            _refuse(f"has a hole or an overlap before the tensor {shown(tensor.name)}")
        if tensor.end + start > size:
            _refuse(f"is cut short: the tensor {shown(tensor.name)} reaches beyond its end")
        placed[tensor.name] = Tensor(tensor.name, tensor.kind, tensor.shape, at, tensor.end + start)
        at = _aligned(tensor.end + start, alignment)
    if size > at and found:
        _refuse(f"has {size - at} bytes after its last tensor")
    return {tensor.name: placed[tensor.name] for tensor in found}


def _alignment(metadata: dict[str, Value]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) is not int or not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
        _refuse("says a general.alignment that is no small power of two")
    return value


def _aligned(at: int, alignment: int) -> int:
    return (at + alignment - 1) // alignment * alignment


class _Cursor:
    """Reads forward, in pieces, never beyond the file or the largest header."""

    def __init__(self, source: BinaryIO, size: int) -> None:
        self._source = source
        self._size = size
        self._held = b""
        self._base = 0
        self.at = 0

    def take(self, count: int) -> bytes:
        if count > self._size - self.at:
            _refuse("is cut short: its header reaches beyond its end")
        if self.at + count > MAX_HEADER_BYTES:
            _refuse(f"has a header of more than {MAX_HEADER_BYTES} bytes")
        begin = self.at - self._base
        if begin + count > len(self._held):
            rest = self._held[begin:]
            self._held = rest + self._source.read(max(CHUNK_BYTES, count - len(rest)))
            self._base, begin = self.at, 0
            if len(self._held) < count:
                _refuse("is cut short: its header reaches beyond its end")
        self.at += count
        return self._held[begin : begin + count]

    def scalar(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, limit_bytes: int, what: str) -> str:
        size = self.scalar("<Q")
        if size > limit_bytes:
            _refuse(f"has {what} of {size} bytes; {limit_bytes} are the limit")
        try:
            return self.take(size).decode()
        except UnicodeDecodeError:
            _refuse(f"has {what} that is not UTF-8")

    def texts(self, count: int, key: str) -> bytes:
        """`count` texts as they stand in the file, each after its u64 size."""
        pieces: list[bytes] = []
        for _ in range(count):
            head = self.take(8)
            size = int.from_bytes(head, "little")
            if size > MAX_TEXT_BYTES:
                _refuse(f"has an item of {shown(key)} of {size} bytes; {MAX_TEXT_BYTES} are the limit")
            pieces += (head, self.take(size))
        return b"".join(pieces)


_OTHER_TYPE = (
    "Quantise the model to one of these types instead: " + ", ".join(name for name, *_ in TYPES.values()) + "."
)


def _refuse_version(version: int) -> NoReturn:
    if version & 0xFFFF == 0:
        _refuse("is written for big-endian machines", remedy="Convert it for little-endian ones (the usual form).")
    _refuse(f"is of GGUF version {version}; versions 2 and 3 are read")


def _refuse(why: str, *, remedy: str = REMEDY) -> NoReturn:
    raise _rejected(why, remedy)


def _rejected(why: str, remedy: str = REMEDY) -> Rejected:
    return Rejected(f"the GGUF file {why}", remedy=remedy, check="weights")
