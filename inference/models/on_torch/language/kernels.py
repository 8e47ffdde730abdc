"""Attention over blocks where they lie, without gathering them: the CPU path in float32, compiled by numba.

Arrays are C-contiguous. D: head_width; H: heads; K: kv_heads; B: block_size.
"""

# mypy: disable-error-code="misc, no-untyped-call, untyped-decorator, assignment, return-value, call-overload"
from __future__ import annotations

from typing import Any

import numba
import numpy as np

Array = np.ndarray[Any, Any]
LOG2E = np.float32(1.4426950408889634)
_FLAGS: Any = {"nogil": True, "fastmath": {"nsz", "arcp", "contract", "afn", "reassoc"}, "error_model": "numpy"}


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
def _score(  # noqa: PLR0917
    query: Array,
    keys: Array,
    head: int,
    table: Array,
    low: int,
    visible: int,
    scale: float,
    softcap: float,
    scores: Array,
) -> float:
    """scores[:visible - low] of one query [D] against the keys of its head; gives the largest."""
    block, width = keys.shape[2], keys.shape[3]
    top = np.float32(-3.4e38)
    for index in range(low // block, (visible + block - 1) // block):
        number, base = table[index], index * block
        for at in range(max(low, base), min(visible, base + block)):
            row = keys[number, head, at - base]
            total = np.float32(0)
            for d in range(width):
                total += query[d] * row[d]
            total *= scale
            if softcap > 0:
                total = softcap * np.tanh(total / softcap)
            scores[at - low] = total
            top = max(top, total)
    return top


@numba.njit(**_FLAGS)
def _mix(  # noqa: PLR0917
    shares: Array,
    values: Array,
    head: int,
    table: Array,
    low: int,
    visible: int,
    weight: float,
    mixed: Array,
    out: Array,
) -> None:
    """Gives out [D] = weight * the sum of the values of a head, each times its share; `mixed` [D] is for work."""
    block, width = values.shape[2], values.shape[3]
    mixed[:] = 0
    for index in range(low // block, (visible + block - 1) // block):
        number, base = table[index], index * block
        for at in range(max(low, base), min(visible, base + block)):
            row, share = values[number, head, at - base], shares[at - low]
            for d in range(width):
                mixed[d] += share * row[d]
    for d in range(width):
        out[d] = mixed[d] * weight


@numba.njit(parallel=True, **_FLAGS)
def attend(  # noqa: PLR0917
    queries: Array, keys: Array, values: Array, starts: Array, lengths: Array, tables: Array, out: Array,
    scale: float, window: int, softcap: float, chosen: Array,
) -> None:  # fmt: skip
    """Causal attention of every new token of the `chosen` sequences (int64) over its sequence's blocks.

    queries, out [T, H, D]; keys, values [blocks, K, B, D]; starts int32 [S + 1]; lengths int32 [S]; tables int32
    [S, width]. window: 0, or how many tokens a token sees. softcap: 0, or scores become cap * tanh(score / cap).
    """
    kv_heads = keys.shape[1]
    group = queries.shape[1] // kv_heads
    scale, softcap = np.float32(scale), np.float32(softcap)
    for task in numba.prange(chosen.shape[0] * kv_heads):
        s, h = chosen[task // kv_heads], task % kv_heads
        end, length = starts[s + 1], lengths[s]
        scores, bits = np.empty(length, np.float32), np.empty(length, np.int32)
        mixed = np.empty(keys.shape[3], np.float32)
        for t in range(starts[s], end):
            visible = length - (end - 1 - t)
            low = max(0, visible - window) if window > 0 else 0
            for g in range(h * group, (h + 1) * group):
                top = _score(queries[t, g], keys, h, tables[s], low, visible, scale, softcap, scores)
                weight = np.float32(1) / _exp_into(scores, bits, visible - low, top)
                _mix(scores, values, h, tables[s], low, visible, weight, mixed, out[t, g])
