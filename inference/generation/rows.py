"""What the sampler is asked and answers: rows of logits in, tokens out. L: rows of logits. V: vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from inference.generation.draws import Ints


@dataclass(frozen=True, slots=True)
class Guesses:
    """Drafts that were drawn. rows: int64 [G], rows of R that judge one. drafts: int64 [G]. weights: float32 [G, V], the
    distributions they were drawn from.
    """

    rows: Ints
    drafts: Ints
    weights: torch.Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """Which rows of the logits give a token. rows: int64 [R], rows of L (one may be there twice, for `n` choices).
    slots: int64 [R]. numbers: int64 [R], how many tokens of the answer precede. masks: int32 [L, words] or None, bit i
    of word w set where token 32 * w + i may come; masked: rows of R that have one. guesses: None where no draft of these
    rows was drawn.
    """

    rows: Ints
    slots: Ints
    numbers: Ints
    masks: np.ndarray[Any, np.dtype[np.int32]] | None = None
    masked: Ints | None = None
    guesses: Guesses | None = None


@dataclass(frozen=True, slots=True)
class Guessed:
    """What a draft model says next. tokens: of each row; -1 where its logits were not numbers. weights: the distribution
    [V] that the token was drawn from, for a row whose draft is judged by it; None for the others.
    """

    tokens: list[int]
    weights: list[torch.Tensor | None]


@dataclass(frozen=True, slots=True)
class Sampled:
    """tokens: of each row; -1 where its logits were not numbers. logprobs and top (ids, logprobs): None for a row that
    wants none.
    """

    tokens: list[int]
    logprobs: list[float | None]
    top: list[tuple[list[int], list[float]] | None]
