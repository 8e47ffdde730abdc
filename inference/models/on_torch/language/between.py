"""What happens between the matrix products, row by row: the CPU path in float32, compiled by numba, each member of a team with its rows.

A decoding step has some three hundred of these small operations; torch's cost of calling them would be a third of it.
Arrays are C-contiguous. T: rows; D: head_width; H: heads; K: kv_heads; B: block_size.
"""

# mypy: disable-error-code="misc, no-untyped-call, untyped-decorator, assignment, no-any-return"
from __future__ import annotations

from typing import Any

import numba
import numpy as np

from inference.models.on_torch import addresses

Array = np.ndarray[Any, Any]
LOG2E = 1.4426950408889634
GELU = 0.7978845608028654  # sqrt(2 / pi)
_FAST = {"nsz", "arcp", "contract", "afn", "reassoc"}
_FLAGS: Any = {"nogil": True, "fastmath": _FAST, "error_model": "numpy"}


@addresses.apart("i" * 9 + "f", fastmath=_FAST)
def add_and_norm(  # noqa: PLR0917
    hidden: int,
    added: int,
    weight: int,
    summed: int,
    normed: int,
    width: int,
    wanted: int,
    first: int,
    last: int,
    eps: float,
) -> None:
    """Summed = hidden + added (where that is not 0); normed = its RMS norm times `weight`, for rows first to last of the
    results. All float32 [T, width], weight [width]; wanted: 0, or int64: from which rows they come.
    """
    scales = addresses.floats(weight, 1, width)[0]
    for row in range(first, last):
        source = addresses.words(wanted, last)[row] if wanted else row
        one = addresses.floats(hidden + source * width * 4, 1, width)[0]
        two = addresses.floats((added or hidden) + source * width * 4, 1, width)[0]
        sums, out = (
            addresses.floats(summed + row * width * 4, 1, width)[0],
            addresses.floats(normed + row * width * 4, 1, width)[0],
        )
        total = np.float32(0)
        for d in range(width):
            value = one[d] + two[d] if added else one[d]
            sums[d] = value
            total += value * value
        scale = np.float32(1 / np.sqrt(total / width + eps))
        for d in range(width):
            out[d] = sums[d] * scale * scales[d]


@addresses.apart("i" * 7, fastmath=_FAST)
def gated(both_: int, out_: int, inner: int, is_gelu: int, first: int, last: int, work_: int) -> None:  # noqa: PLR0917
    """Out [T, inner] = the activation (SiLU, or GELU by tanh) of both's first half, times the second; both [T, 2 inner].

    work: float32 [inner]. x * sigmoid(y), where y is x, or for GELU 2 * sqrt(2 / pi) * (x + 0.044715 x^3).
    """
    both, out = addresses.floats(both_, last, 2 * inner), addresses.floats(out_, last, inner)
    shares = addresses.floats(work_, 1, inner)[0]
    powers = shares.view(np.int32)
    for t in range(first, last):
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
def _rotate_row(  # noqa: PLR0917
    mixed: int, cosine: int, sine: int, half: int, keys: int, values: int, query_norm: int, key_norm: int, queries_: int,
    row: int, place: int, slot: int, heads: int, kv_heads: int, block: int, width: int, eps: float,
) -> None:  # fmt: skip
    source = addresses.floats(mixed + row * (heads + 2 * kv_heads) * width * 4, heads + 2 * kv_heads, width)
    queries = addresses.floats(queries_ + row * heads * width * 4, heads, width)
    near, far = (
        addresses.floats(cosine + place * half * 4, 1, half)[0],
        addresses.floats(sine + place * half * 4, 1, half)[0],
    )
    for h in range(heads + kv_heads):
        in_cache = ((slot // block * kv_heads + h - heads) * block + slot % block) * width * 4
        target = queries[h] if h < heads else addresses.floats(keys + in_cache, 1, width)[0]
        own = source[h]
        norm = query_norm if h < heads else key_norm
        for d in range(width):
            target[d] = own[d]
        if norm:
            scales, total = addresses.floats(norm, 1, width)[0], np.float32(0)
            for d in range(width):
                total += own[d] * own[d]
            scale = np.float32(1 / np.sqrt(total / width + eps))
            for d in range(width):
                target[d] *= scale * scales[d]
        for d in range(half):
            first, second = target[d], target[half + d]
            target[d] = first * near[d] - second * far[d]
            target[half + d] = second * near[d] + first * far[d]
    for h in range(kv_heads):
        in_cache = ((slot // block * kv_heads + h) * block + slot % block) * width * 4
        target, own = addresses.floats(values + in_cache, 1, width)[0], source[heads + kv_heads + h]
        for d in range(width):
            target[d] = own[d]


@addresses.apart("i" * 17 + "f", fastmath=_FAST)
def rotate_and_store(  # noqa: PLR0917
    mixed: int, cosine: int, sine: int, half: int, keys: int, values: int, query_norm: int, key_norm: int, queries_: int,
    positions: int, slots: int, first: int, last: int, heads: int, kv_heads: int, block: int, width: int, eps: float,
) -> None:  # fmt: skip
    """Of tokens first to last: queries [T, H, D] out of mixed [T, H + 2K, D]; keys and values go into their slots of
    [blocks, K, B, D]. positions, slots: int64 [T].

    cosine, sine: [context, half of what is rotated], half may be 0; norms [D], or 0.
    """
    for row in range(first, last):
        place, slot = addresses.words(positions, last)[row], addresses.words(slots, last)[row]
        _rotate_row(
            mixed, cosine, sine, half, keys, values, query_norm, key_norm, queries_, row, place, slot, heads, kv_heads, block,
            width, eps,
        )  # fmt: skip
