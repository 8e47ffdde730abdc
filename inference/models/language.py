"""What a language model is to the engine: one step over many sequences at once, and a cache of keys and values in blocks.

A step has no phases: a sequence brings one new token or many (a chunk of its prompt, or drafts to be verified), and
all of them go through the layers in one flat batch. T: new tokens of all sequences; S: sequences; L: rows of logits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from inference.protocol.oip import Signature


@dataclass(slots=True, eq=False)
class Step:
    """One iteration's input. All tensors are on the host; the model brings them to its device.

    tokens, positions: int64 [T], sequence after sequence. slots: int64 [T], where each token's keys and values go:
    block * block_size + offset. starts: int32 [S + 1], where each sequence's new tokens begin. lengths: int32 [S],
    tokens of each sequence in the cache once this step is done (new ones included). tables: int32 [S, blocks of the
    longest], block ids in the order of the text, padded with 0. wanted: int64 [L], rows of T whose logits are wanted.
    adapters: int32 [S], 0 for none, else the slot of a LoRA adapter; None when nobody uses one.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor
    tables: torch.Tensor
    wanted: torch.Tensor
    adapters: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class LanguageFacts:
    """What engine and doors need to know of a model.

    family: "llama", "qwen3", ... (model_type). max_context: tokens of prompt and answer together. stops: ids of every
    end-of-sequence token. vocabulary: rows of the logits. path: "decoder" for our own, "transformers" for the slower one.
    """

    family: str
    vocabulary: int
    max_context: int
    stops: frozenset[int]
    bos: int | None = None
    path: str = "decoder"
    notes: list[str] = field(default_factory=list)


class LanguageModel(Protocol):
    """A loaded language model. Called by one thread, the engine's."""

    signature: Signature
    facts: LanguageFacts

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights as they are held, tied ones once."""
        ...

    def block_bytes(self, block_size: int) -> int:
        """Bytes of one block over all layers, keys and values."""
        ...

    def allocate(self, blocks: int, block_size: int) -> None:
        """Makes the cache. Raises OutOfMemory."""
        ...

    def forward(self, step: Step) -> torch.Tensor:
        """Logits, float32 [L, vocabulary], on the model's device. Writes the new tokens' keys and values."""
        ...

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies whole blocks (source, target), all layers, before the next step."""
        ...

    def save_blocks(self, blocks: Sequence[int]) -> torch.Tensor:
        """Those blocks' contents on the host, first axis by block (for the offload tier)."""
        ...

    def load_blocks(self, blocks: Sequence[int], saved: torch.Tensor) -> None: ...

    def close(self) -> None: ...
