"""What happens between the matrix products, for few rows: the CPU path in float32, compiled by numba, on one thread.

A decoding step has some three hundred of these small operations; torch's cost of calling them would be a third of it.
Arrays are C-contiguous. T: rows; D: head_width; H: heads; K: kv_heads; B: block_size.
"""

# mypy: disable-error-code="misc, no-untyped-call, untyped-decorator, assignment, no-any-return"
from __future__ import annotations

from typing import Any

import numba
import numpy as np

Array = np.ndarray[Any, Any]
LOG2E = 1.4426950408889634
GELU = 0.7978845608028654  # sqrt(2 / pi)
_FLAGS: Any = {"nogil": True, "fastmath": {"nsz", "arcp", "contract", "afn", "reassoc"}, "error_model": "numpy"}


@numba.njit(**_FLAGS)
def add_and_norm(hidden: Array, added: Array, weight: Array, eps: float, summed: Array, normed: Array) -> None:  # noqa: PLR0917
    """Summed = hidden + added; normed = its RMS norm times `weight`. All [T, width] but weight [width]."""
    rows, width = hidden.shape
    for t in range(rows):
        total = np.float32(0)
        for d in range(width):
            value = hidden[t, d] + added[t, d]
            summed[t, d] = value
            total += value * value
        scale = np.float32(1 / np.sqrt(total / width + eps))
        for d in range(width):
            normed[t, d] = summed[t, d] * scale * weight[d]


@numba.njit(**_FLAGS)
def gated(both: Array, is_gelu: bool, powers: Array, out: Array) -> None:
    """Out [T, inner] = the activation (SiLU, or GELU by tanh) of both's first half, times the second; both [T, 2 inner].

    powers: int32 [inner], for work. x * sigmoid(y), where y is x, or for GELU 2 * sqrt(2 / pi) * (x + 0.044715 x^3).
    """
    rows, inner = out.shape
    shares = powers.view(np.float32)
    for t in range(rows):
        for d in range(inner):
            x = both[t, d]
            y = np.float32(2 * GELU) * (x + np.float32(0.044715) * x * x * x) if is_gelu else x
            power = min(max(-y * np.float32(LOG2E), np.float32(-126)), np.float32(126))
            whole = np.floor(power)
            part = power - whole
            powers[d] = (np.int32(whole) + 127) << 23
            out[t, d] = (
                ((((np.float32(1.8775767e-3) * part + np.float32(8.9893397e-3)) * part + np.float32(5.5826318e-2)) * part
                  + np.float32(2.4015361e-1)) * part + np.float32(6.9315308e-1)) * part + np.float32(9.9999994e-1)
            )  # fmt: skip
        for d in range(inner):
            out[t, d] = both[t, d] * both[t, inner + d] / (np.float32(1) + out[t, d] * shares[d])


@numba.njit(**_FLAGS)
def rotate_and_store(  # noqa: PLR0917
    mixed: Array, cosine: Array, sine: Array, positions: Array, slots: Array, keys: Array, values: Array,
    query_norm: Array, key_norm: Array, eps: float, queries: Array,
) -> None:  # fmt: skip
    """Queries [T, H, D] out of mixed [T, H + 2K, D]; keys and values go into their slots of [blocks, K, B, D].

    cosine, sine [context, half of what is rotated], or empty for no rotation; norms [D], or empty for none.
    """
    heads, kv_heads, block, width = queries.shape[1], keys.shape[1], keys.shape[2], keys.shape[3]
    half = cosine.shape[1]
    for t in range(mixed.shape[0]):
        number, offset, place = slots[t] // block, slots[t] % block, positions[t]
        for h in range(heads + kv_heads):
            source = mixed[t, h]
            target = queries[t, h] if h < heads else keys[number, h - heads, offset]
            norm = query_norm if h < heads else key_norm
            for d in range(width):
                target[d] = source[d]
            if norm.shape[0]:
                total = np.float32(0)
                for d in range(width):
                    total += source[d] * source[d]
                scale = np.float32(1 / np.sqrt(total / width + eps))
                for d in range(width):
                    target[d] *= scale * norm[d]
            for d in range(half):
                first, second = target[d], target[half + d]
                target[d] = first * cosine[place, d] - second * sine[place, d]
                target[half + d] = second * cosine[place, d] + first * sine[place, d]
        for h in range(kv_heads):
            for d in range(width):
                values[number, h, offset, d] = mixed[t, heads + kv_heads + h, d]
