"""Attention over blocks where they lie, without gathering them: the CPU path in float32, compiled by numba.

Arrays are C-contiguous. D: head_width; H: heads; K: kv_heads; B: block_size.
"""

# mypy: disable-error-code="misc, no-untyped-call, untyped-decorator, assignment, return-value, call-overload, call-arg, unreachable, attr-defined"
from __future__ import annotations

from typing import Any

import numba
import numpy as np

from inference.models.on_torch import addresses, products
from inference.models.on_torch.lanes import LANES, PANEL
from inference.models.on_torch.language import vectors

Array = np.ndarray[Any, Any]
LOG2E = np.float32(1.4426950408889634)
_FAST = {"nsz", "arcp", "contract", "afn", "reassoc"}
_FLAGS: Any = {"nogil": True, "fastmath": _FAST, "error_model": "numpy"}


@numba.njit(**_FLAGS)
def _exp_into(scores: Array, bits: Array, count: int, top: float) -> float:
    """scores[:count] = exp(scores - top), with 1e-7 relative error, in a form that vectorises; gives their sum."""
    total = np.float32(0)
    for j in range(count):
        power = max((scores[j] - top) * LOG2E, np.float32(-126.0))
        whole = np.floor(power)
        part = power - whole
        bits[j] = (np.int32(whole) + 127) << 23
        scores[j] = (
            ((((np.float32(1.8775767e-3) * part + np.float32(8.9893397e-3)) * part + np.float32(5.5826318e-2)) * part
              + np.float32(2.4015361e-1)) * part + np.float32(6.9315308e-1)) * part + np.float32(9.9999994e-1)
        )  # fmt: skip
    powers = bits.view(np.float32)
    for j in range(count):
        scores[j] *= powers[j]
        total += scores[j]
    return total


@numba.njit(**_FLAGS)
def _dots(  # noqa: PLR0917
    queries: int, group: int, keys: int, count: int, width: int, out: int, stride: int, asked: int, too: int
) -> None:
    """See `vectors.dots`; any width."""
    if width % LANES == 0 and width // LANES in vectors.PIECES:
        vectors.dots(queries, group, keys, count, width // LANES, out, stride, asked, too)
        return
    left, right, scores = (
        addresses.floats(queries, group, width),
        addresses.floats(keys, count, width),
        addresses.floats(out, group, stride),
    )
    for n in range(count):
        for g in range(group):
            total = np.float32(0)
            for d in range(width):
                total += left[g, d] * right[n, d]
            scores[g, n] = total


@numba.njit(**_FLAGS)
def _mix(shares: int, rows: int, count: int, width: int, out: int) -> None:
    """To out [width] the sum of `count` rows [width], each times its share."""
    done = 0
    while width - done >= LANES:
        lanes = 64 if width - done >= 64 else (32 if width - done >= 32 else 16)
        vectors.mix(shares, rows + done * 4, width, count, out + done * 4, lanes)
        done += lanes
    if done < width:
        own, given, target = (
            addresses.floats(shares, 1, count),
            addresses.floats(rows, count, width),
            addresses.floats(out, 1, width),
        )
        for n in range(count):
            for d in range(done, width):
                target[0, d] += own[0, n] * given[n, d]


@numba.njit(**_FLAGS)
def _cap(scores: Array, count: int, scale: float, softcap: float) -> float:
    """scores[:count] times the scale, softly capped where softcap is over 0; gives the largest."""
    top = np.float32(-3.4e38)
    for j in range(count):
        scores[j] *= scale
    if softcap > 0:
        for j in range(count):
            scores[j] = softcap * np.tanh(scores[j] / softcap)
    for j in range(count):
        top = max(top, scores[j])
    return top


@addresses.apart("i" * 13 + "fifi", fastmath=_FAST)
def attend_few(  # noqa: PLR0917
    queries: int, keys: int, values: int, out: int, heads: int, kv_heads: int, block: int, width: int,
    begin: int, end: int, length: int, blocks: int, head: int, scale: float, window: int, softcap: float, scratch: int,
) -> None:  # fmt: skip
    """Causal attention of tokens begin to end, a sequence's last ones, by the query heads that share one head of keys.

    queries, out [T, H, D]; keys, values [blocks, K, B, D]. blocks: address of the sequence's row of the tables.
    window: 0, or how many tokens a token sees. scratch: floats [H / K + 1, length].
    """
    group, table = heads // kv_heads, addresses.ints(blocks, (length + block - 1) // block)
    held = addresses.floats(scratch, group + 1, length)
    bits = held[group].view(np.int32)
    for t in range(begin, end):
        visible = length - (end - 1 - t)
        low = max(0, visible - window) if window > 0 else 0
        query = queries + (t * heads + head * group) * width * 4
        last_block = (visible - 1) // block
        for index in range(low // block, last_block + 1):
            first, last = max(low, index * block), min(visible, (index + 1) * block)
            row = (np.intp(table[index]) * kv_heads + head) * block + first - index * block
            following = (np.intp(table[min(index + 1, last_block)]) * kv_heads + head) * block
            _dots(
                query, group, keys + row * width * 4, last - first, width, scratch + (first - low) * 4, length,
                keys + following * width * 4, values + row * width * 4,
            )  # fmt: skip
        for g in range(group):
            top = _cap(held[g], visible - low, scale, softcap)
            weight = np.float32(1) / _exp_into(held[g], bits, visible - low, top)
            place = out + (t * heads + head * group + g) * width * 4
            target = addresses.floats(place, 1, width)
            for d in range(width):
                target[0, d] = 0
            for index in range(low // block, (visible + block - 1) // block):
                first, last = max(low, index * block), min(visible, (index + 1) * block)
                line = values + ((np.intp(table[index]) * kv_heads + head) * block + first - index * block) * width * 4
                _mix(scratch + (g * length + first - low) * 4, line, last - first, width, place)
            for d in range(width):
                target[0, d] *= weight


@numba.njit(**_FLAGS)
def scratch_floats(group: int, width: int, length: int) -> int:
    """How many floats `attend_few` and `attend_many` need for texts of that length."""
    padded, wide = (length + 2 * PANEL) // PANEL * PANEL, (width + PANEL - 1) // PANEL * PANEL
    return max((group + 1) * length, padded * (width + wide + products.MOST + 1) + products.MOST * wide)


@numba.njit(**_FLAGS)
def _through(count: int, weights: int, x: int, x_stride: int, out: int, out_stride: int, inputs: int) -> None:  # noqa: PLR0917
    """Rows times one panel that is near already."""
    products.block(count, weights, weights, 0, x, x_stride, out, out_stride, inputs)


@numba.njit(**_FLAGS)
def _lay(  # noqa: PLR0917
    keys: int, values: int, kv_heads: int, head: int, block: int, width: int, table: Array, first: int, length: int,
    key_panels: int, value_panels: int,
) -> None:  # fmt: skip
    """Keys as [panels of 32 tokens, width, 32], values as [panels of 32 of the width, tokens, 32]; filled up with zeros."""
    padded, wide = (length - first + PANEL - 1) // PANEL * PANEL, (width + PANEL - 1) // PANEL * PANEL
    to_keys = numba.carray(addresses.pointer(key_panels), (padded // PANEL, width, PANEL))
    to_values = numba.carray(addresses.pointer(value_panels), (wide // PANEL, padded, PANEL))
    for n in range(padded):
        if first + n < length:
            place = (np.intp(table[(first + n) // block]) * kv_heads + head) * block + (first + n) % block
            key, value = (
                addresses.floats(keys + place * width * 4, 1, width),
                addresses.floats(values + place * width * 4, 1, width),
            )
            for d in range(width):
                to_keys[n // PANEL, d, n % PANEL] = key[0, d]
            for d in range(width):
                to_values[d // PANEL, n, d % PANEL] = value[0, d]
        else:
            for d in range(width):
                to_keys[n // PANEL, d, n % PANEL] = 0
    for n in range(length - first):
        for d in range(width, wide):
            to_values[d // PANEL, n, d % PANEL] = 0


@numba.njit(**_FLAGS)
def _settle(scores: Array, bits: Array, low: int, visible: int, seen: int, scale: float, softcap: float) -> None:  # noqa: PLR0917
    """scores[:seen]: shares of attention from low to visible, 0 elsewhere."""
    own = scores[low:]
    top = _cap(own, visible - low, scale, softcap)
    weight = np.float32(1) / _exp_into(own, bits, visible - low, top)
    for j in range(visible - low):
        own[j] *= weight
    for j in range(low):
        scores[j] = 0
    for j in range(visible, seen):
        scores[j] = 0


@addresses.apart("i" * 13 + "fifi", fastmath=_FAST)
def attend_many(  # noqa: PLR0917
    queries: int, keys: int, values: int, out: int, heads: int, kv_heads: int, block: int, width: int,
    begin: int, end: int, length: int, blocks: int, head: int, scale: float, window: int, softcap: float, scratch: int,
) -> None:  # fmt: skip
    """As `attend_few`, for one query head and many tokens: keys and values are laid in panels, and both products go
    through the rows' own loop, for as many keys as the last of its tokens sees.
    """
    table = addresses.ints(blocks, (length + block - 1) // block)
    first = max(0, length - (end - 1 - begin) - window) // PANEL * PANEL if window > 0 else 0
    padded, wide = (length - first + PANEL - 1) // PANEL * PANEL, (width + PANEL - 1) // PANEL * PANEL
    key_panels, value_panels = scratch, scratch + padded * width * 4
    scored = value_panels + padded * wide * 4
    mixed = scored + padded * products.MOST * 4
    bits = addresses.floats(mixed + products.MOST * wide * 4, 1, padded)[0].view(np.int32)
    shared = head // (heads // kv_heads)
    _lay(keys, values, kv_heads, shared, block, width, table, first, length, key_panels, value_panels)
    scores, found = addresses.floats(scored, products.MOST, padded), addresses.floats(mixed, products.MOST, wide)
    row = begin
    while row < end:
        count = min(products.MOST, end - row)
        seen = length - (end - row - count) - first
        query = queries + (row * heads + head) * width * 4
        for panel in range((seen + PANEL - 1) // PANEL):
            held, there = key_panels + panel * width * PANEL * 4, scored + panel * PANEL * 4
            _through(count, held, query, heads * width, there, padded, width)
        for r in range(count):
            visible = length - (end - 1 - row - r) - first
            low = max(0, visible - window) if window > 0 else 0
            _settle(scores[r], bits, low, visible, seen, scale, softcap)
        for panel in range(wide // PANEL):
            _through(
                count, value_panels + panel * padded * PANEL * 4, scored, padded, mixed + panel * PANEL * 4, wide, seen
            )
        for r in range(count):
            target = addresses.floats(out + ((row + r) * heads + head) * width * 4, 1, width)
            for d in range(width):
                target[0, d] = found[r, d]
        row += count
