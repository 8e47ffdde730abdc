"""How well a language model foretells a text: exp of the mean negative log-likelihood of each token given those before.

Used by validation, on a short text of our own, to prove that a model works and what quantising its weights costs it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from inference.errors import InvalidOutput
from inference.models.language import Step

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from inference.models.language import LanguageModel

BLOCK_SIZE = 16
CHUNK = 128  # new tokens of one pass: bounds the memory for logits
TEXT = """\
The canary sang in the window of the kitchen, and nobody in the house knew that it was the last warm day of the year. \
In the afternoon the wind turned to the north, the leaves of the lime tree came down all at once, and the children ran \
out to catch them before they touched the ground. "Whoever catches ten may make a wish," said the eldest, who had \
caught nine and was looking at the sky.

A language model reads a text from left to right and says, at each place, how likely each word is to come next. If it \
gives the word that really comes a high probability, it is said to understand the text well. For example, after "the \
capital of France is" a good model expects "Paris", and after "two plus two is" it expects "four".

def mean(values):
    \"\"\"The arithmetic mean of a list of numbers.\"\"\"
    if not values:
        raise ValueError("there is nothing to take the mean of")
    return sum(values) / len(values)

Water boils at 100 degrees Celsius at sea level, and freezes at zero. On high mountains it boils earlier, because the \
air presses less on it; this is why it takes longer to cook potatoes there.
"""


def perplexity(model: LanguageModel, ids: Sequence[int]) -> float:
    """Of `ids` (at least two), 1 or more. Allocates a cache of its own size, in the place of the one that was there.

    Raises InvalidOutput where the logits hold NaN or infinity.
    """
    total = 0.0
    for logits, following in _passes(model, ids):
        told = torch.log_softmax(logits, dim=-1)
        total -= float(told.gather(1, following.to(told.device)[:, None]).sum())
    if not math.isfinite(total):
        raise InvalidOutput("the model's logits hold NaN or infinity")
    return math.exp(total / (len(ids) - 1))


def agreement(model: LanguageModel, draft: LanguageModel, ids: Sequence[int]) -> float:
    """At what share of the places of `ids` both models find the same token likeliest, 0..1. Allocates as `perplexity`."""
    likeliest = [torch.cat([logits.argmax(dim=-1).cpu() for logits, _ in _passes(one, ids)]) for one in (model, draft)]
    return float((likeliest[0] == likeliest[1]).float().mean())


def _passes(model: LanguageModel, ids: Sequence[int]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Chunk by chunk: (logits, float32 [n, V], after each of its tokens; the tokens that follow, int64 [n])."""
    assert len(ids) > 1, "one token foretells nothing"
    model.allocate(-(-len(ids) // BLOCK_SIZE), BLOCK_SIZE)
    for begin in range(0, len(ids) - 1, CHUNK):
        end = min(begin + CHUNK, len(ids) - 1)
        logits = model.forward(step_of([ids[begin:end]], begin, wanted=range(end - begin))).float()
        yield logits, torch.tensor(ids[begin + 1 : end + 1])


def step_of(texts: Sequence[Sequence[int]], begin: int, *, wanted: Sequence[int], blocks: int = 0) -> Step:
    """One pass over equally long pieces of several sequences, each of which has `begin` tokens in the cache.

    Sequence i has the blocks i * n, ..., i * n + n - 1, where n is `blocks`, else as many as it needs after this pass.
    """
    count, many = len(texts[0]), len(texts)
    blocks = blocks or -(-(begin + count) // BLOCK_SIZE)
    places = torch.arange(begin, begin + count).repeat(many)
    first = torch.arange(many).repeat_interleave(count) * blocks * BLOCK_SIZE
    return Step(
        tokens=torch.tensor([token for text in texts for token in text]),
        positions=places,
        slots=first + places,
        starts=torch.arange(0, many * count + 1, count, dtype=torch.int32),
        lengths=torch.full((many,), begin + count, dtype=torch.int32),
        tables=torch.arange(many * blocks, dtype=torch.int32).reshape(many, blocks),
        wanted=torch.tensor(list(wanted)),
    )
