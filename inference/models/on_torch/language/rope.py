"""Rotary positions: cosine and sine of every position, float32 [context, rotated / 2], for each kind of scaling.

Source: the papers' formulas as transformers has them (`modeling_rope_utils`): YaRN (Peng et al. 2023), Llama 3's
smooth cut, LongRoPE (Ding et al. 2024), NTK-aware dynamic scaling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from inference.models.on_torch.language.spec import RopeSpec


def table(rope: RopeSpec, head_width: int, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(cosine, sine) for positions 0..positions-1; what the scaling multiplies attention by is already in them."""
    width = int(head_width * rope.share)
    frequencies, factor = _frequencies(rope, width, positions)
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * frequencies[None, :]
    return (angles.cos() * factor).contiguous(), (angles.sin() * factor).contiguous()


def _frequencies(rope: RopeSpec, width: int, positions: int) -> tuple[torch.Tensor, float]:
    plain = _inverse(rope.theta, width)
    scaling = rope.scaling
    if rope.kind == "linear":
        return plain / float(scaling["factor"]), 1.0
    if rope.kind == "dynamic":
        return _dynamic(rope, width, positions), 1.0
    if rope.kind == "llama3":
        return _llama3(rope, plain), 1.0
    if rope.kind == "yarn":
        return _yarn(rope, plain, width)
    if rope.kind == "longrope":
        return _longrope(rope, plain, positions)
    return plain, 1.0


def _inverse(theta: float, width: int) -> torch.Tensor:
    return 1.0 / (theta ** (torch.arange(0, width, 2, dtype=torch.int64).float() / width))


def _dynamic(rope: RopeSpec, width: int, positions: int) -> torch.Tensor:
    """As for a text of `positions` tokens: the scaling begins beyond the trained context."""
    if positions <= rope.original:
        return _inverse(rope.theta, width)
    factor = float(rope.scaling["factor"])
    grown = (factor * positions / rope.original) - (factor - 1)
    return _inverse(rope.theta * grown ** (width / (width - 2)), width)


def _llama3(rope: RopeSpec, plain: torch.Tensor) -> torch.Tensor:
    factor = float(rope.scaling["factor"])
    low, high = float(rope.scaling["low_freq_factor"]), float(rope.scaling["high_freq_factor"])
    length = 2 * math.pi / plain
    slow = torch.where(length > rope.original / low, plain / factor, plain)
    smooth = (rope.original / length - low) / (high - low)
    between = (1 - smooth) * slow / factor + smooth * slow
    is_between = ~(length < rope.original / high) & ~(length > rope.original / low)
    return torch.where(is_between, between, slow)


def _yarn(rope: RopeSpec, plain: torch.Tensor, width: int) -> tuple[torch.Tensor, float]:
    scaling = rope.scaling
    factor = float(scaling.get("factor") or rope.context / rope.original)
    fast, slow = float(scaling.get("beta_fast") or 32), float(scaling.get("beta_slow") or 1)

    def place(rotations: float) -> float:
        return width * math.log(rope.original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    first, last = place(fast), place(slow)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    ramp = ((torch.arange(width // 2, dtype=torch.float32) - first) / max(last - first, 0.001)).clamp(0, 1)
    frequencies = plain / factor * ramp + plain * (1 - ramp)
    return frequencies, _yarn_attention(scaling, factor)


def _yarn_attention(scaling: object, factor: float) -> float:
    assert isinstance(scaling, dict)
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])

    def grown(scale: float = 1.0) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    own, all_dims = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return grown(float(own)) / grown(float(all_dims)) if own and all_dims else grown()


def _longrope(rope: RopeSpec, plain: torch.Tensor, positions: int) -> tuple[torch.Tensor, float]:
    """One set of factors for all positions: the long ones where texts may be longer than the trained context."""
    scaling = rope.scaling
    chosen: Sequence[float] = scaling["long_factor"] if positions > rope.original else scaling["short_factor"]
    factor = float(scaling.get("factor") or rope.context / rope.original)
    attention = scaling.get("attention_factor")
    if attention is None:
        attention = math.sqrt(1 + math.log(factor) / math.log(rope.original)) if factor > 1 else 1.0
    return plain / torch.tensor(chosen, dtype=torch.float32), float(attention)
