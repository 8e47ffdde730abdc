"""Attention over blocks where they lie, without gathering them: the CUDA path, in Triton.

A program computes a tile of one sequence's new tokens, for all query heads that share one head of keys, and goes once over
the keys that they see with a running softmax (FlashAttention, Dao 2023; over a block table as in PagedAttention, Kwon et
al. 2023). Decodes and chunks of prompts differ in the number of their tiles only. Imported on a CUDA device alone; tests run
the same code on a CPU in Triton's interpreter.
"""

# ruff: noqa: ANN001, N803 (a kernel is written as Triton wants it)
# mypy: disable-error-code="import-not-found,import-untyped,misc,untyped-decorator,no-untyped-call"
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from inference.models.on_torch.language.attention import Shape

Tensor = torch.Tensor
LEAST_ROWS = 16  # of a tile: a tensor core's
MANY_ROWS = 64  # of a tile of a prompt's chunk
KEYS = 64  # looked at at once


@triton.jit
def _attend(  # type: ignore[no-untyped-def]  # noqa: ANN202, PLR0917
    queries, keys, values, out, tiles, starts, lengths, tables, scale, softcap,
    table_width, query_stride, block_stride, head_stride,
    GROUP: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
    BLOCK: tl.constexpr, KEYS: tl.constexpr, WINDOW: tl.constexpr, HAS_CAP: tl.constexpr,
):  # fmt: skip
    # Row r of a tile is token r // GROUP of it, and query head r % GROUP of those that share the head of keys.
    tile, head = tl.program_id(0), tl.program_id(1)
    sequence, first = tl.load(tiles + 2 * tile), tl.load(tiles + 2 * tile + 1)
    begin, end = tl.load(starts + sequence), tl.load(starts + sequence + 1)
    length = tl.load(lengths + sequence)
    row = tl.arange(0, ROWS)
    token = begin + first + row // GROUP
    is_row = (row < TOKENS * GROUP) & (token < end)
    place = length - end + token
    width = tl.arange(0, PADDED)
    at = token.to(tl.int64)[:, None] * query_stride + (head * GROUP + row % GROUP)[:, None] * WIDTH + width[None, :]
    inside = is_row[:, None] & (width < WIDTH)[None, :]
    query = tl.load(queries + at, mask=inside, other=0.0)
    top = tl.full([ROWS], -1.0e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, PADDED], tl.float32)
    visible = tl.minimum(length, length - end + begin + first + TOKENS)
    low = 0
    if WINDOW > 0:
        low = tl.maximum(0, length - end + begin + first + 1 - WINDOW) // KEYS * KEYS
    for base in range(low, visible, KEYS):
        near = base + tl.arange(0, KEYS)
        is_key = near < visible
        block = tl.load(tables + sequence.to(tl.int64) * table_width + near // BLOCK, mask=is_key, other=0)
        held = block.to(tl.int64) * block_stride + head * head_stride + (near % BLOCK) * WIDTH
        cell = held[:, None] + width[None, :]
        is_cell = is_key[:, None] & (width < WIDTH)[None, :]
        key = tl.load(keys + cell, mask=is_cell, other=0.0).to(query.dtype)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        if HAS_CAP:
            score = softcap * (2.0 * tl.sigmoid(2.0 * score / softcap) - 1.0)
        sees = is_key[None, :] & (near[None, :] <= place[:, None])
        if WINDOW > 0:
            sees = sees & (near[None, :] > place[:, None] - WINDOW)
        score = tl.where(sees, score, -1.0e30)
        higher = tl.maximum(top, tl.max(score, 1))
        share = tl.where(sees, tl.exp(score - higher[:, None]), 0.0)
        faded = tl.exp(top - higher)
        total = total * faded + tl.sum(share, 1)
        value = tl.load(values + cell, mask=is_cell, other=0.0).to(query.dtype)
        mixed = mixed * faded[:, None] + tl.dot(share.to(query.dtype), value, input_precision="ieee")
        top = higher
    found = mixed / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out + at, found.to(out.dtype.element_ty), mask=inside)


def tokens_of_a_tile(group: int, longest: int) -> int:
    """How many tokens a tile has, where `group` query heads share a head of keys and a sequence brings up to `longest`."""
    rows = LEAST_ROWS if longest * group <= LEAST_ROWS else MANY_ROWS
    return max(1, rows // group)


def tiles_of(spans: list[tuple[int, int, int]], tokens: int) -> Tensor:
    """int32 [tiles, 2] on the host: (sequence, its first new token that is in the tile). spans: as in `Batch`."""
    every = [(number, first) for number, (begin, end, _) in enumerate(spans) for first in range(0, end - begin, tokens)]
    return torch.tensor(every, dtype=torch.int32).reshape(-1, 2)


def attend(  # noqa: PLR0917
    queries: Tensor, keys: Tensor, values: Tensor, starts: Tensor, lengths: Tensor, tables: Tensor, tiles: Tensor,
    tokens: int, shape: Shape,
) -> Tensor:  # fmt: skip
    """Causal attention of every new token over its own sequence: [T, H, D], in the queries' dtype.

    queries: [T, H, D]; keys, values: [blocks, K, B, D], of the same dtype or a narrower one; starts int32 [S + 1];
    lengths int32 [S]; tables int32 [S, width]; tiles, of `tokens` each: as from `tiles_of`. All contiguous, on one device.
    Nothing is asked of the device, so that the call can be part of a CUDA graph.
    """
    heads, width = queries.shape[1:]
    kv_heads, block = keys.shape[1:3]
    group = heads // kv_heads
    out = torch.empty_like(queries)
    rows = max(LEAST_ROWS, triton.next_power_of_2(tokens * group))
    kernel: Any = _attend
    kernel[len(tiles), kv_heads](
        queries, keys, values, out, tiles, starts, lengths, tables, shape.scale, shape.softcap or 1.0,
        tables.shape[1], heads * width, keys.stride(0), keys.stride(1),
        GROUP=group, TOKENS=tokens, ROWS=rows, WIDTH=width, PADDED=max(16, triton.next_power_of_2(width)),
        BLOCK=block, KEYS=KEYS, WINDOW=shape.window, HAS_CAP=shape.softcap > 0,
    )  # fmt: skip
    return out
