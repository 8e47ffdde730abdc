"""Where the fused pass finds an encoder's weights: BERT and its kin, DistilBERT, MPNet. Told apart by the weights' names alone.

All are the same network: embeddings, then in each layer attention and two linear layers with GELU between them, each
followed by the residual and LayerNorm. MPNet adds to its scores a bias that depends on the distance of two tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TILE = 32  # that the widths of heads and middle are multiples of


@dataclass(frozen=True, slots=True)
class Family:
    """Names of weights. types: whether there are embeddings of segments; relative: of the bias by distance, or empty."""

    layers: str
    query: str
    key: str
    value: str
    back: str
    attended: str
    up: str
    down: str
    done: str
    types: bool = False
    relative: str = ""

    def embeddings(self) -> Iterator[str]:
        """Of words, positions, segments where there are any, and of LayerNorm's weight and bias."""
        tables = ("word_embeddings", "position_embeddings", *(("token_type_embeddings",) if self.types else ()))
        yield from (f"embeddings.{name}.weight" for name in (*tables, "LayerNorm"))
        yield "embeddings.LayerNorm.bias"

    def names(self, layers: int) -> set[str]:
        """Of all weights that such an encoder has."""
        inside = (self.query, self.key, self.value, self.back, self.attended, self.up, self.down, self.done)
        kinds = ("weight", "bias")
        found = {f"{self.layers}.{n}.{name}.{kind}" for n in range(layers) for name in inside for kind in kinds}
        return found | set(self.embeddings()) | ({self.relative} if self.relative else set())


FAMILIES = (
    Family("encoder.layer", "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
           "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm", types=True),
    Family("transformer.layer", "attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin",
           "sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm"),
    Family("encoder.layer", "attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o",
           "attention.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm",
           relative="encoder.relative_attention_bias.weight"),
)  # fmt: skip


def family_of(config: Any, weights: Mapping[str, torch.Tensor]) -> Family | None:
    """The family whose weights these are, all of them, in float32 on the CPU and of widths that the kernels take."""
    given = {name for name in weights if not name.startswith("pooler.") and not name.endswith("_ids")}
    layers, heads = getattr(config, "num_hidden_layers", 0), getattr(config, "num_attention_heads", 0) or 1
    depth, rest = divmod(getattr(config, "hidden_size", 0), heads)
    activation = getattr(config, "hidden_act", None) or getattr(config, "activation", "")
    if activation != "gelu" or getattr(config, "is_decoder", False) or rest or depth % TILE:
        return None
    for family in FAMILIES:
        if layers and given == family.names(layers):
            is_plain = all(
                weights[name].dtype == torch.float32 and weights[name].device.type == "cpu" for name in given
            )
            middle = len(weights[f"{family.layers}.0.{family.up}.weight"])
            return family if is_plain and middle % TILE == 0 else None
    return None


def distances(network: Any, longest: int) -> torch.Tensor:
    """[heads, 2 longest - 1]: what an MPNet adds to a query's score of the key `d - longest + 1` tokens behind it."""
    biases = network.encoder.compute_position_bias(torch.empty(1, longest, 1))[0]
    return torch.cat([biases[:, 1:, 0].flip(1), biases[:, 0]], 1).detach()
