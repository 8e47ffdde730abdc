"""Classification heads over packed rows: the class scores of rows whose hidden states were computed without padding.

The head is the architecture's own. It is a copy of the network that shares all weights, in which the encoder is replaced
by one that gives out the hidden states it is given. Most heads look at a row's first token only; then all rows go through
together. Which it is, and whether it works at all, is proven by comparing logits.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from inference.models.on_torch import packing

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np


@dataclass(frozen=True, slots=True)
class Scored:
    """What a classifier gave, as far as class scores need it: [rows, labels]."""

    logits: torch.Tensor


class _Given(nn.Module):
    """Stands for the encoder: its hidden states are the embeddings that it is called with."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self._pooler = getattr(encoder, "pooler", None)

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> BaseModelOutputWithPooling:
        pooled = self._pooler(inputs_embeds) if self._pooler is not None else None
        return BaseModelOutputWithPooling(last_hidden_state=inputs_embeds, pooler_output=pooled)


class Logits:
    """Hidden states of rows, [its tokens, width] each, to logits [rows, labels]."""

    def __init__(self, network: Any, *, is_first_only: bool) -> None:
        self._is_first_only = is_first_only
        self._head = copy.copy(network)
        parts = dict(network.named_children()) | {network.base_model_prefix: _Given(network.base_model)}
        self._head._modules = parts  # noqa: SLF001 (assigned one by one, they would be the network's own too)

    def __call__(self, hidden: Sequence[torch.Tensor]) -> torch.Tensor:
        if self._is_first_only:
            logits: torch.Tensor = self._head(inputs_embeds=torch.stack([row[:1] for row in hidden])).logits
            return logits
        return torch.cat([self._head(inputs_embeds=row[None]).logits for row in hidden])


def proven(network: Any, pad_id: int, max_tokens: int) -> Logits | None:
    """The head of a classifier where it gives the classifier's own logits, or None."""
    rows = packing.rows(int(network.config.vocab_size), pad_id, max_tokens)
    with torch.inference_mode():
        wanted = torch.cat([_logits(network, row) for row in rows])
        hidden = [packing.alone(network.base_model, row) for row in rows]
        for is_first_only in (True, False):
            found = Logits(network, is_first_only=is_first_only)
            if _agrees(found, hidden, wanted):
                return found
    return None


def _agrees(head: Logits, hidden: list[torch.Tensor], wanted: torch.Tensor) -> bool:
    try:
        found = head(hidden)
    except Exception:  # noqa: BLE001 (whatever the architecture makes of it: its head cannot be used so)
        return False
    return found.shape == wanted.shape and torch.allclose(found, wanted, atol=packing.TOLERANCE, rtol=packing.TOLERANCE)


def _logits(network: Any, ids: np.ndarray[Any, Any]) -> torch.Tensor:
    row = torch.from_numpy(ids)[None]
    found: torch.Tensor = network(input_ids=row, attention_mask=torch.ones_like(row)).logits
    return found
