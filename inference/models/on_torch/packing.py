"""Encoders without padding: the rows of a batch laid end to end, and attention that keeps them apart.

Everything but attention works on single tokens, so one long row of all tokens costs what the tokens cost and nothing for
padding. Attention is computed row by row. The idea is that of variable-length FlashAttention (Dao 2023) and NestedTensor;
here on a CPU, through transformers' own attention interface. Whether an architecture takes part is not listed anywhere:
`proven` compares its answers with the padded ones and packs only where they are the same.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.nn import functional
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

if TYPE_CHECKING:
    from collections.abc import Sequence

ATTENTION = "serinus_rows"
PROOF_SIZES = (7, 3, 12, 33)
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Hidden:
    """What a network gave, as far as pooling looks at it: [1, tokens, width]."""

    last_hidden_state: torch.Tensor


def attend(
    _module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    row_sizes: list[int] | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """[batch, heads, tokens, width] -> [batch, tokens, heads, width]. `row_sizes`: the rows that lie end to end."""
    if row_sizes is None:
        found = functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling)
        return found.transpose(1, 2).contiguous(), None
    parts = zip(*(torch.split(one, row_sizes, 2) for one in (query, key, value)), strict=True)
    apart = [functional.scaled_dot_product_attention(q, k, v, scale=scaling) for q, k, v in parts]
    return torch.cat(apart, 2).transpose(1, 2), None


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class Way(Protocol):
    """A way to compute rows without padding. from_tokens: how long a batch's longest is at least, where that pays."""

    @property
    def from_tokens(self) -> int: ...

    def hidden(self, network: Any, ids: Sequence[np.ndarray[Any, Any]]) -> list[torch.Tensor]:
        """The last hidden states of each row, [its tokens, width]."""
        ...


@dataclass(frozen=True, slots=True)
class Packed:
    """How this architecture is given packed rows. first_position: of every row; types: whether it takes segment ids."""

    first_position: int
    types: bool

    # Attention is computed row by row; with short rows only that costs more than a little padding does.
    @property
    def from_tokens(self) -> int:
        """How long a batch's longest row is at least, where packing pays."""
        return 48

    def hidden(self, network: Any, ids: Sequence[np.ndarray[Any, Any]]) -> list[torch.Tensor]:
        """The last hidden states of each row, [its tokens, width]."""
        sizes = [one.size for one in ids]
        together = torch.from_numpy(np.concatenate(ids))[None]
        places = np.concatenate([np.arange(size) for size in sizes]) + self.first_position
        given = {"token_type_ids": torch.zeros_like(together)} if self.types else {}
        found = network(input_ids=together, position_ids=torch.from_numpy(places)[None], row_sizes=sizes, **given)
        return list(found.last_hidden_state[0].split(sizes))


def proven(network: Any, pad_id: int, max_tokens: int) -> Packed | None:
    """The way to pack that gives what padding gives, or None. Tried on rows of several lengths."""
    network = network.eval()
    names = set(inspect.signature(network.forward).parameters)
    if network.config._attn_implementation != ATTENTION or "position_ids" not in names:  # noqa: SLF001 (no other way to ask)
        return None
    types = "token_type_ids" in names and getattr(network.config, "type_vocab_size", 0) > 0
    ids = rows(int(network.config.vocab_size), pad_id, max_tokens)
    wanted = [alone(network, one) for one in ids]
    for first in first_positions(pad_id):
        way = Packed(first, types)
        if agrees(way, network, ids, wanted):
            return way
    return None


def first_positions(pad_id: int) -> tuple[int, int]:
    """Where an architecture's positions may begin: RoBERTa and its kin count from behind the padding's own."""
    return 0, pad_id + 1


def agrees(way: Way, network: Any, ids: list[np.ndarray[Any, Any]], wanted: list[torch.Tensor]) -> bool:
    """Whether it gives the wanted hidden states."""
    try:
        with torch.inference_mode():
            found = way.hidden(network, ids)
    except Exception:  # noqa: BLE001 (whatever the architecture makes of it: it cannot be packed this way)
        return False
    return all(torch.allclose(a, b, atol=TOLERANCE, rtol=TOLERANCE) for a, b in zip(found, wanted, strict=True))


def alone(network: Any, ids: np.ndarray[Any, Any]) -> torch.Tensor:
    """The hidden states of one row, as the network by itself computes them."""
    row = torch.from_numpy(ids)[None]
    with torch.inference_mode():
        hidden: torch.Tensor = network(input_ids=row, attention_mask=torch.ones_like(row)).last_hidden_state[0]
    return hidden


def rows(vocabulary: int, pad_id: int, max_tokens: int) -> list[np.ndarray[Any, Any]]:
    """Rows of several lengths to try it with."""
    generator = np.random.default_rng(0)
    made = [generator.integers(0, vocabulary, min(size, max_tokens)) for size in PROOF_SIZES]
    return [np.where(row == pad_id, (pad_id + 1) % vocabulary, row) for row in made]
