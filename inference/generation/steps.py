"""A plan's flat arrays as the tensors that a model takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from inference.models.language import Step

if TYPE_CHECKING:
    from inference.generation.plan import Flat


def step_of(flat: Flat) -> Step:
    """The same memory as tensors, without a copy."""
    rows = len(flat.lengths)
    tables = torch.frombuffer(flat.tables, dtype=torch.int32).view(rows, flat.width)
    wanted = torch.frombuffer(flat.wanted, dtype=torch.int64) if len(flat.wanted) else torch.empty(0, dtype=torch.int64)
    return Step(
        torch.frombuffer(flat.tokens, dtype=torch.int64),
        torch.frombuffer(flat.positions, dtype=torch.int64),
        torch.frombuffer(flat.slots, dtype=torch.int64),
        torch.frombuffer(flat.starts, dtype=torch.int32),
        torch.frombuffer(flat.lengths, dtype=torch.int32),
        tables,
        wanted,
        torch.frombuffer(flat.adapters, dtype=torch.int32) if flat.adapters is not None else None,
    )
