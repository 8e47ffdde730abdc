"""Raw tensors of a .pt2 file: every one lies inside of its own member, and none of them is a pickle."""

from __future__ import annotations

from typing import NoReturn

from inference.artifacts.paths import shown
from inference.artifacts.pt2_schema import SCALARS, STRIDED, Payload, PayloadConfig, SymInt, TensorMeta
from inference.errors import Rejected

MAX_SIZE = 1 << 48
REMEDY = "Export it again with torch.export.save; models with quantised or subclassed tensors are not served."


def check_payloads(config: PayloadConfig, folder: str, prefix: str, sizes: dict[str, int]) -> list[str]:
    """Checks all payloads of one folder against `sizes` (member -> bytes); answers the members that are used.

    Raises Rejected for pickles, objects, missing members, and strides that reach outside of a member.
    """
    used: dict[str, int] = {}
    for name, payload in config.config.items():
        check_qualified(name)
        meta = _meta(name, payload, prefix)
        member = folder + payload.path_name
        if member not in sizes:
            _refuse(f"the tensor {shown(name)} has no data in the file")
        # torch reads a member once, by the dtype of the first tensor that uses it.
        if used.setdefault(member, meta.dtype) != meta.dtype:
            _refuse(f"two tensors of different dtypes share the data of {shown(name)}")
        _check_extent(name, meta, sizes[member])
    return sorted(used)


def check_qualified(name: str) -> None:
    """A parameter's dotted name: letters, digits and underscores, since torch sets attributes by it."""
    parts = name.split(".")
    if len(name) > 512 or any(not part or part.startswith("__") or not _is_plain(part) for part in parts):
        _refuse(f"a tensor has the unusual name {shown(name)}")


def _is_plain(part: str) -> bool:
    return part.isascii() and part.replace("_", "a").isalnum()


def _meta(name: str, payload: Payload, prefix: str) -> TensorMeta:
    if payload.use_pickle:
        _refuse(f"the tensor {shown(name)} is a pickle")
    number = payload.path_name.removeprefix(prefix)
    if number == payload.path_name or not number.isdecimal() or len(number) > 8:
        _refuse(f"{shown(name)} is an object ({shown(payload.path_name)}), not a tensor")
    meta = payload.tensor_meta
    if meta is None or meta.dtype not in SCALARS or meta.layout != STRIDED:
        _refuse(f"the tensor {shown(name)} is of an unknown or sparse kind")
    return meta


def _check_extent(name: str, meta: TensorMeta, size_bytes: int) -> None:
    item = SCALARS[meta.dtype][0]
    sizes, strides = [_int(name, size) for size in meta.sizes], [_int(name, stride) for stride in meta.strides]
    offset = _int(name, meta.storage_offset)
    if len(sizes) != len(strides) or size_bytes % item:
        _refuse(f"the shape of the tensor {shown(name)} does not fit its data")
    if 0 in sizes:
        return
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if last >= size_bytes // item:
        _refuse(f"the tensor {shown(name)} reaches outside of its data")


def _int(name: str, value: SymInt) -> int:
    if not isinstance(value.as_int, int) or not 0 <= value.as_int <= MAX_SIZE:
        _refuse(f"the tensor {shown(name)} has an impossible shape")
    return value.as_int


def _refuse(reason: str) -> NoReturn:
    raise Rejected(reason, remedy=REMEDY, check="weights")
