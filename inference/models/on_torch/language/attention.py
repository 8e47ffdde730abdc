"""What happens between the matrix products: norms, rotation, the cache, attention, the gate, each as torch's operations
where a step is no compiled program (`walker`). Attention is over the blocks where they lie on the CPU in float32, by
compiled loops, and on CUDA, by a Triton kernel; elsewhere torch gathers each sequence's blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812

if TYPE_CHECKING:
    from inference.models.language import Step

Tensor = torch.Tensor
FP8, FP8_MOST = torch.float8_e4m3fn, 448.0
FEW_QUERIES = 8  # with more new tokens in a sequence, a copy of its keys and values in panels is worth its cost


@dataclass(frozen=True, slots=True)
class Shape:
    """scale of the scores; window: 0, or how many tokens a token sees; softcap: 0 for none."""

    scale: float
    window: int
    softcap: float


@dataclass(slots=True)
class Batch:
    """A step on its device. spans: (begin, end, length) of each sequence. is_compiled: attention by compiled loops.
    tiles, tile_tokens: for the Triton kernel (`paged_triton`), else None and 0; starts and lengths are on the device then.
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    tables: Tensor
    wanted: Tensor
    starts: Tensor
    lengths: Tensor
    spans: list[tuple[int, int, int]]
    is_compiled: bool
    tiles: Tensor | None = None
    tile_tokens: int = 0


def tiled_batch_of(step: Step, device: str, group: int) -> Batch:
    """For the Triton kernel. group: query heads that share a head of keys."""
    from inference.models.on_torch.language import paged_triton

    batch = batch_of(step, device, is_compiled=False)
    batch.tile_tokens = paged_triton.tokens_of_a_tile(group, max(end - begin for begin, end, _ in batch.spans))
    batch.tiles = paged_triton.tiles_of(batch.spans, batch.tile_tokens).to(device)
    batch.starts, batch.lengths = step.starts.to(device), step.lengths.to(device)
    return batch


def batch_of(step: Step, device: str, *, is_compiled: bool) -> Batch:
    """is_compiled: all is float32 on the CPU, so that compiled loops can take it."""
    starts, lengths = step.starts.tolist(), step.lengths.tolist()
    spans = list(zip(starts[:-1], starts[1:], lengths, strict=True))
    return Batch(
        tokens=step.tokens.to(device),
        positions=step.positions.to(device),
        slots=step.slots.to(device),
        tables=step.tables.to(device),
        wanted=step.wanted.to(device),
        starts=step.starts,
        lengths=step.lengths,
        spans=spans,
        is_compiled=is_compiled,
    )


def add_and_norm(hidden: Tensor, added: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Hidden + added (where it has rows), and the RMS norm of that times `weight`; [T, width] each."""
    if added.numel():
        hidden = hidden + added
    return hidden, F.rms_norm(hidden, (hidden.shape[-1],), weight, eps)


def gated(both: Tensor, activation: str) -> Tensor:
    """[T, inner]: the activation of the first half, times the second."""
    gate, up = both.chunk(2, dim=-1)
    if activation == "silu":
        return F.silu(gate) * up
    return F.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none") * up


def rotate_and_store(  # noqa: PLR0917 (a pass's tensors)
    mixed: Tensor,
    cosine: Tensor,
    sine: Tensor,
    batch: Batch,
    keys: Tensor,
    values: Tensor,
    norms: tuple[Tensor, Tensor, float],
    heads: int,
) -> Tensor:
    """Queries [T, H, D] out of [T, (H + 2K) * D]; the keys and values go into their slots of the cache."""
    kv_heads, block, width = keys.shape[1], keys.shape[2], keys.shape[3]
    query_norm, key_norm, eps = norms
    query, key, value = torch.split(mixed.view(mixed.shape[0], -1, width), [heads, kv_heads, kv_heads], dim=1)
    if query_norm.numel():
        query = F.rms_norm(query, (width,), query_norm, eps)
        key = F.rms_norm(key, (width,), key_norm, eps)
    if cosine.numel():
        near, far = cosine[batch.positions, None], sine[batch.positions, None]
        query, key = _rotated(query, near, far), _rotated(key, near, far)
    block_of, offset = batch.slots // block, batch.slots % block
    store(keys, block_of, offset, key)
    store(values, block_of, offset, value)
    return query.contiguous()


def store(cache: Tensor, block: Tensor, offset: Tensor, rows: Tensor) -> None:
    """Rows [T, K, D] into those places of cache [blocks, K, B, D], in its dtype; in fp8 what is too large is cut off."""
    if cache.dtype is FP8:
        plain(cache)[block, :, offset] = rows.clamp(-FP8_MOST, FP8_MOST).to(FP8).view(torch.uint8)
    else:
        cache[block, :, offset] = rows.to(cache.dtype)


def plain(cache: Tensor) -> Tensor:
    """The same memory as bytes where it is fp8, in which torch cannot index everywhere."""
    return cache.view(torch.uint8) if cache.dtype is FP8 else cache


def _rotated(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    half = cosine.shape[-1]
    first, second, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
    cosine, sine = cosine.to(heads.dtype), sine.to(heads.dtype)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine, rest), dim=-1)


def attend(  # noqa: PLR0917
    queries: Tensor, keys: Tensor, values: Tensor, batch: Batch, shape: Shape, sinks: Tensor | None = None
) -> Tensor:
    """[T, H, width of a value]: causal attention of each new token over its own sequence.

    sinks: [H], for each head a score that takes its share of the attention and gives nothing.
    """
    is_plain = sinks is None and keys.shape == values.shape
    if is_plain and batch.tiles is not None:
        from inference.models.on_torch.language import paged_triton

        places = batch.starts, batch.lengths, batch.tables, batch.tiles, batch.tile_tokens
        return paged_triton.attend(queries, keys, values, *places, shape)
    if is_plain and batch.is_compiled:
        from inference.models.on_torch.language import walker

        return walker.attend(queries, keys, values, batch, shape)
    out = queries.new_empty(*queries.shape[:2], values.shape[3])
    for number, (begin, end, length) in enumerate(batch.spans):
        out[begin:end] = _gathered(queries[begin:end], keys, values, batch.tables[number], length, shape, sinks)
    return out


def _gathered(  # noqa: PLR0917
    query: Tensor, keys: Tensor, values: Tensor, table: Tensor, length: int, shape: Shape, sinks: Tensor | None
) -> Tensor:
    """One sequence: query [n, H, D] -> [n, H, width of a value]."""
    kv_heads, block = keys.shape[1], keys.shape[2]
    blocks = table[: (length + block - 1) // block].long()
    key, value = (
        plain(one)[blocks].view(one.dtype).transpose(0, 1).to(query.dtype).flatten(1, 2)[:, :length]
        for one in (keys, values)
    )
    count = query.shape[0]
    mask = _mask(count, length, shape.window, query.device)
    query = query.transpose(0, 1)
    if shape.softcap or sinks is not None:
        group = query.shape[0] // kv_heads
        scores = query @ key.repeat_interleave(group, 0).transpose(1, 2) * shape.scale
        scores = torch.tanh(scores / shape.softcap) * shape.softcap if shape.softcap else scores
        scores = scores.masked_fill(~mask, float("-inf"))
        if sinks is not None:
            scores = torch.cat((scores, sinks.to(scores.dtype)[:, None, None].expand(-1, count, 1)), dim=2)
        return (scores.softmax(-1)[..., :length] @ value.repeat_interleave(group, 0)).transpose(0, 1)
    found = F.scaled_dot_product_attention(
        query[None], key[None], value[None], attn_mask=mask, scale=shape.scale, enable_gqa=True
    )
    return found[0].transpose(0, 1)


def _mask(count: int, length: int, window: int, device: Any) -> Tensor:
    """[count, length]: which keys each of the last `count` tokens sees."""
    places = torch.arange(length, device=device)
    own = torch.arange(length - count, length, device=device)[:, None]
    mask = places <= own
    return mask & (places > own - window) if window else mask
