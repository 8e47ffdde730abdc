"""What an encoder does between its matrix products, in one look at the memory each: the CPU path in float32.

Compiled by numba for one thread; passes run side by side on lanes. Arrays are C-contiguous unless said. T: tokens; W:
width, H: heads, D: head width, with H * D = W; F: width of the middle.
"""

# mypy: disable-error-code="misc, no-untyped-call, untyped-decorator"
from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import float32, int64

from inference.models.on_torch import products
from inference.models.on_torch.lanes import LINE
from inference.models.on_torch.vectors import (
    ROWS,
    WIDTH,
    add,
    address,
    fma,
    gelu,
    load,
    mul,
    shares,
    splat,
    store,
    store_one,
    sub,
    tile,
    total,
)

Array = np.ndarray[Any, Any]
njit: Any = numba.njit
LOG2E = np.float32(1.4426950408889634)
QUERIES = ROWS  # that attention looks at together
SLACK = max(QUERIES, WIDTH)  # tokens that whole tiles may read or write beyond the last
_FLAGS: Any = {"nogil": True, "error_model": "numpy"}
_VECTOR, _MATRIX = float32[::1], float32[:, ::1]


class Kernels(NamedTuple):
    """See the functions below, of the same names; multiply: `products.product`, for a team of one."""

    embed: Any
    attend: Any
    add_norm: Any
    add_gelu: Any
    multiply: Any


@cache
def compiled() -> Kernels:
    """All of them, compiled; the first call takes about a second."""
    ids = int64[::1]
    made: dict[Any, tuple[Any, ...]] = {
        embed: (ids, ids, _MATRIX, _MATRIX, _VECTOR, _VECTOR, _VECTOR, float32, _MATRIX),
        attend: (_MATRIX, _MATRIX, _VECTOR, ids, float32, _MATRIX, _MATRIX, _MATRIX, _MATRIX),
        add_norm: (_MATRIX, _VECTOR, _VECTOR, _VECTOR, float32, int64, _MATRIX),
        add_gelu: (_MATRIX, _VECTOR, int64),
    }
    own = [njit(numba.void(*kinds), **_FLAGS)(kernel) for kernel, kinds in made.items()]
    return Kernels(*[*own, products.product()])


@njit(**_FLAGS)
def _normalise(line: int, weight: int, bias: int, width: int, eps: float, out: int, summed: Any) -> None:  # noqa: PLR0917
    """Gives out = LayerNorm of the line, whose lanes were summed up already."""
    count = np.float32(width)
    mean = splat(total(summed) / count)
    squares = splat(np.float32(0))
    for at in range(0, 4 * width, LINE):
        off = sub(load(line + at), mean)
        squares = fma(off, off, squares)
    scale = splat(np.float32(1) / np.sqrt(total(squares) / count + eps))
    for at in range(0, 4 * width, LINE):
        off = mul(sub(load(line + at), mean), scale)
        store(out + at, fma(off, load(weight + at), load(bias + at)))


def embed(  # noqa: PLR0917
    ids: Array, places: Array, words: Array, positions: Array, types: Array, weight: Array, bias: Array, eps: float,
    out: Array,
) -> None:  # fmt: skip
    """Gives out [T, W] = LayerNorm(words[ids] + positions[places] + types)."""
    width = words.shape[1]
    first, second, kind = address(words), address(positions), address(types)
    for token in range(ids.shape[0]):
        word, position = first + 4 * width * ids[token], second + 4 * width * places[token]
        line = address(out) + 4 * width * token
        summed = splat(np.float32(0))
        for at in range(0, 4 * width, LINE):
            value = add(add(load(word + at), load(kind + at)), load(position + at))
            summed = add(summed, value)
            store(line + at, value)
        _normalise(line, address(weight), address(bias), width, eps, line, summed)


def add_norm(x: Array, added: Array, weight: Array, bias: Array, eps: float, tokens: int, hidden: Array) -> None:  # noqa: PLR0917
    """Gives hidden [T, W] = LayerNorm(x + added + hidden), for that many tokens; x is written over."""
    width = x.shape[1]
    for token in range(tokens):
        line, held = address(x) + 4 * width * token, address(hidden) + 4 * width * token
        summed = splat(np.float32(0))
        for at in range(0, 4 * width, LINE):
            value = add(add(load(line + at), load(address(added) + at)), load(held + at))
            summed = add(summed, value)
            store(line + at, value)
        _normalise(line, address(weight), address(bias), width, eps, held, summed)


def add_gelu(x: Array, added: Array, tokens: int) -> None:
    """Gives x [T, F] = GELU(x + added), for that many tokens."""
    width = x.shape[1]
    for token in range(tokens):
        line = address(x) + 4 * width * token
        for at in range(0, 4 * width, LINE):
            store(line + at, gelu(add(load(line + at), load(address(added) + at))))


@njit(**_FLAGS)
def _queries(line: int, stride: int, bias: int, size: int, out: int) -> None:
    """Gives out [ROWS, size bytes] = the queries that begin at an address, with their bias."""
    for row in range(ROWS):
        for at in range(0, size, LINE):
            store(out + row * size + at, add(load(line + row * stride + at), load(bias + at)))


@njit(**_FLAGS)
def _add_distances(scores: int, line: int, size: int, distances: int) -> None:
    """Adds to scores [ROWS, size] of queries that follow each other what is theirs; distances: of the first one's first key."""
    for row in range(ROWS):
        for at in range(0, 4 * size, LINE):
            place = scores + row * line + at
            store(place, add(load(place), load(distances - 4 * row + at)))


def attend(  # noqa: PLR0917
    mixed: Array, keys: Array, bias: Array, starts: Array, scale: float, distances: Array, scores: Array, work: Array,
    out: Array,
) -> None:  # fmt: skip
    """Gives out [T, W] = attention of each row over itself. mixed [T, 2 W and more]: queries without their bias [W], and values; keys
    [W, T]: a column a token; starts [rows + 1]: where rows begin and end. Arrays of tokens have SLACK more behind the
    last, which are written over. distances [H, 2 L + 2 SLACK]: what is added to the score, times LOG2E, of the key
    at - L - SLACK tokens behind a query, for rows of up to L; [H, 0]: nothing is. For work: scores [QUERIES, the longest row in whole tiles], work [QUERIES, D + 2]; D is a
    multiple of WIDTH.
    """
    depth = work.shape[1] - 2
    heads, wide, room, line = out.shape[1] // depth, 4 * out.shape[1], 4 * keys.shape[1], 4 * scores.shape[1]
    stride, middle = 4 * mixed.shape[1], distances.shape[1] // 2
    score, query, scales = address(scores), address(work), address(work) + 4 * ROWS * depth
    for row in range(ROWS):
        store_one(scales + 4 * row, scale * LOG2E)
    factors = scales + 4 * ROWS
    for row in range(starts.shape[0] - 1):
        begin, size = starts[row], starts[row + 1] - starts[row]
        for head in range(heads):
            place = 4 * head * depth
            key = address(keys) + head * depth * room + 4 * begin
            value = address(mixed) + stride * begin + wide + place
            for first in range(begin, begin + size, ROWS):
                _queries(address(mixed) + stride * first + place, stride, address(bias) + place, 4 * depth, query)
                for at in range(0, 4 * size, 4 * WIDTH):
                    tile(query, 4 * depth, key + at, room, depth, scales, score + at, line)
                if middle:
                    own = address(distances) + 4 * (head * distances.shape[1] + middle + begin - first)
                    _add_distances(score, line, size, own)
                shares(score, line, size, factors)
                there = address(out) + wide * first + place
                for at in range(0, 4 * depth, 4 * WIDTH):
                    tile(score, line, value + at, stride, size, factors, there + at, wide)
