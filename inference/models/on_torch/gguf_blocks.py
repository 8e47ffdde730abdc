"""ggml's quantised blocks taken apart: whole numbers and the scales of their groups, nothing rounded anew.

A weight is whole number * scale, plus the group's offset where the type has one. What has 5 or 6 bits in the file has 8
here, and the K types' scales, which the file keeps as products of two numbers, are float32: the values are the file's, the
memory is more. Layouts: the format description in ggml-org/ggml.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf.quants import Q4_K

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Blocks:
    """whole: int8 [outputs, inputs], with 4 bits and no offset 8 above its value; scales: float16 or float32 [outputs,
    groups, 1 or 2]: the scale, and the offset where there is one; bits: 8 or 4.
    """

    bits: int
    whole: Array
    scales: Array


def taken_apart(rows: Array, type_name: str) -> Blocks | None:
    """rows: uint8 [outputs, bytes of a row]. None for a type that has no kernel."""
    found = _TYPES.get(type_name)
    if found is None:
        return None
    size, take = found
    outputs = len(rows)
    bits, whole, scales = take(rows.reshape(-1, size))
    return Blocks(bits, whole.astype(np.int8).reshape(outputs, -1), scales.reshape(outputs, -1, scales.shape[-1]))


def has_kernel(type_name: str) -> bool:
    return type_name in _TYPES


Taken = tuple[int, Array, Array]  # bits; whole [blocks, elements]; scales [blocks, groups of a block, 1 or 2]


def _halves(packed: Array, run: int) -> Array:
    """Nibbles of bytes [blocks, n]: of each run of bytes first all low halves, then all high ones; [blocks, 2 n]."""
    pieces = packed.reshape(len(packed), -1, 1, run)
    return (np.concatenate((pieces & 15, pieces >> 4), axis=2)).reshape(len(packed), -1)


def _bits(packed: Array, *, each: int, run: int) -> Array:
    """As `_halves`, of numbers of 1 or 2 bits."""
    shifts = np.arange(0, 8, each, dtype=np.uint8)[:, None]
    pieces = packed.reshape(len(packed), -1, 1, run)
    return ((pieces >> shifts) & ((1 << each) - 1)).reshape(len(packed), -1)


def _float16(blocks: Array, begin: int, count: int = 1) -> Array:
    return np.ascontiguousarray(blocks[:, begin : begin + 2 * count]).view(np.float16)


def _q8_0(blocks: Array) -> Taken:
    return 8, blocks[:, 2:].view(np.int8), _float16(blocks, 0)[:, None]


def _q4_0(blocks: Array) -> Taken:
    return 4, _halves(blocks[:, 2:], 16), _float16(blocks, 0)[:, None]


def _q4_1(blocks: Array) -> Taken:
    return 4, _halves(blocks[:, 4:], 16), _float16(blocks, 0, 2)[:, None]


def _fifth(blocks: Array, begin: int) -> Array:
    """The fifth bits, of 32 elements: [blocks, 32], as 16 or 0."""
    every = np.unpackbits(np.ascontiguousarray(blocks[:, begin : begin + 4]), axis=1, bitorder="little")
    return every << 4


def _q5_0(blocks: Array) -> Taken:
    whole = (_halves(blocks[:, 6:], 16) | _fifth(blocks, 2)).astype(np.int8) - 16
    return 8, whole, _float16(blocks, 0)[:, None]


def _q5_1(blocks: Array) -> Taken:
    return 8, _halves(blocks[:, 8:], 16) | _fifth(blocks, 4), _float16(blocks, 0, 2)[:, None]


def _k_scales(blocks: Array) -> Array:
    """[blocks, 8, 2]: scale, and the offset, which the file has with the other sign."""
    own, least = Q4_K.get_scale_min(np.ascontiguousarray(blocks[:, 4:16]))
    both = _float16(blocks, 0, 2).astype(np.float32)
    return np.stack((both[:, :1] * own.astype(np.float32), -(both[:, 1:] * least.astype(np.float32))), axis=-1)


def _q4_k(blocks: Array) -> Taken:
    return 4, _halves(blocks[:, 16:], 32), _k_scales(blocks)


def _q5_k(blocks: Array) -> Taken:
    high = _bits(blocks[:, 16:48], each=1, run=32)
    return 8, _halves(blocks[:, 48:], 32) | high << 4, _k_scales(blocks)


def _q6_k(blocks: Array) -> Taken:
    high = _bits(blocks[:, 128:192], each=2, run=32)
    whole = (_halves(blocks[:, :128], 64) | high << 4).astype(np.int8) - 32
    own = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    return 8, whole, (_float16(blocks, 208).astype(np.float32) * own)[..., None]


_TYPES: dict[str, tuple[int, Callable[[Array], Taken]]] = {  # bytes of a block, and how it is taken apart
    "Q8_0": (34, _q8_0), "Q4_0": (18, _q4_0), "Q4_1": (20, _q4_1), "Q5_0": (22, _q5_0), "Q5_1": (24, _q5_1),
    "Q4_K": (144, _q4_k), "Q5_K": (176, _q5_k), "Q6_K": (210, _q6_k),
}  # fmt: skip
