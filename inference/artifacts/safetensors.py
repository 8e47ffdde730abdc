"""Our own reader of safetensors headers, stricter than the format's library: nothing is read twice or differently.

A file is u64 header length (little-endian), that many bytes of JSON, then the tensors' bytes back to back.
Source: the format description at huggingface/safetensors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from inference.artifacts import jsons
from inference.artifacts.paths import shown
from inference.errors import Rejected

MAX_HEADER_BYTES = 10 << 20
MAX_TENSORS = 20_000
MAX_RANK = 16
MAX_SHARDS = 256
REMEDY = "Save the weights again with safetensors' save_file and upload the new file."
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:+/\-]{0,510}")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: dtype as the format names it, shape, and where its bytes lie in the file, [begin, end)."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def looks_like(head: bytes, size_bytes: int) -> bool:
    """Whether a file that begins with `head` (at least 9 bytes) may be meant as safetensors."""
    length = int.from_bytes(head[:8], "little")
    return len(head) > 8 and head[8:9] == b"{" and 0 < length <= max(size_bytes, MAX_HEADER_BYTES)


def read(path: Path) -> dict[str, Tensor]:
    """The tensor table of one file. Raises Rejected for every deviation, without reading tensor bytes."""
    size = path.stat().st_size
    with path.open("rb") as source:
        prefix = source.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > size - 8:
            _refuse(path, "is cut short")
        if length > MAX_HEADER_BYTES:
            _refuse(path, f"has a header of more than {MAX_HEADER_BYTES} bytes")
        header = source.read(length)
    if not header.startswith(b"{"):
        _refuse(path, "has a header that does not begin with '{'")
    table = jsons.parse(header, f"the header of {path.name}", remedy=REMEDY, check="weights")
    return _tensors(path, table, size - 8 - length, 8 + length)


def _tensors(path: Path, table: dict[str, Any], data_bytes: int, base: int) -> dict[str, Tensor]:
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or any(not isinstance(value, str) for value in metadata.values()):
        _refuse(path, "has metadata that is not text")
    if len(table) > MAX_TENSORS:
        _refuse(path, f"holds more than {MAX_TENSORS} tensors")
    tensors = {name: _tensor(path, name, entry) for name, entry in table.items()}
    at = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != at:
            _refuse(path, f"has a hole or an overlap before the tensor {shown(name)}")
        at = tensor.end
    if at != data_bytes:
        _refuse(path, f"holds {data_bytes} bytes of tensors, but its header describes {at}")
    return {
        name: Tensor(tensor.dtype, tensor.shape, tensor.begin + base, tensor.end + base)
        for name, tensor in tensors.items()
    }


def _tensor(path: Path, name: str, entry: object) -> Tensor:
    if not _NAME.fullmatch(name) or ".." in name or "//" in name:
        _refuse(path, f"has a tensor with the unusual name {shown(name)}")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _refuse(path, f"describes the tensor {shown(name)} in an unknown way")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        _refuse(path, f"has the tensor {shown(name)} of the unsupported dtype {shown(str(dtype))}")
    if not _naturals(shape) or len(shape) > MAX_RANK:
        _refuse(path, f"has the tensor {shown(name)} of an impossible shape")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _refuse(path, f"has impossible offsets for the tensor {shown(name)}")
    size = ITEM_BYTES[dtype]
    for dimension in shape:
        size *= dimension
        if size > 1 << 63:
            _refuse(path, f"has the tensor {shown(name)} of an impossible shape")
    if size != offsets[1] - offsets[0]:
        _refuse(path, f"has a shape that does not fit the bytes of the tensor {shown(name)}")
    return Tensor(dtype, tuple(shape), offsets[0], offsets[1])


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def read_folder(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Tables of a folder's weights, file name -> table: model.safetensors, or the shards that its index names.

    Raises Rejected when a shard is missing, holds what the index does not say, or a tensor is there twice.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if not index.is_file():
        return {single.name: read(single)} if single.is_file() else {}
    weight_map = jsons.read(index, MAX_HEADER_BYTES, remedy=REMEDY).get("weight_map")
    if not isinstance(weight_map, dict) or any(not isinstance(name, str) for name in weight_map.values()):
        _refuse(index, "has no weight_map of tensor names to file names")
    names = sorted(set(weight_map.values()))
    if len(names) > MAX_SHARDS:
        _refuse(index, f"names more than {MAX_SHARDS} files")
    tables: dict[str, dict[str, Tensor]] = {}
    for name in names:
        if "/" in name or "\\" in name or not name.endswith(".safetensors") or not (folder / name).is_file():
            _refuse(index, f"names the file {shown(name)}, which is not there")
        tables[name] = read(folder / name)
    found = [(tensor, name) for name, table in tables.items() for tensor in table]
    if len(found) != len(weight_map) or any(weight_map.get(tensor) != name for tensor, name in found):
        _refuse(index, "does not agree with the files it names")
    return tables


def _refuse(path: Path, why: str) -> NoReturn:
    raise Rejected(f"the safetensors file {shown(path.name)} {why}", remedy=REMEDY, check="weights")
