"""Which rows of an iteration's logits are whose, and what they are to judge."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
import torch

from inference.generation.rows import Guesses

if TYPE_CHECKING:
    from inference.generation.draws import Ints
    from inference.generation.plan import Flat, Item, Plan
    from inference.generation.requests import Run


@dataclass(frozen=True, slots=True)
class Asked:
    """Rows [first, first + count) of the logits belong to `run`: a new token after each of its drafts, and one."""

    item: Item
    run: Run
    first: int
    count: int

    @property
    def first_new(self) -> int:
        """The row of the first new token: where every logit of a prompt is wanted, others come before."""
        return self.first + self.count - 1 - len(self.item.drafts)


def asked_of(plan: Plan, flat: Flat) -> list[Asked]:
    found, at = [], 0
    for item, count in zip(plan.items, flat.rows, strict=True):
        if count:
            found.append(Asked(item, item.sequence.request, at, count))
        at += count
    return found


def guesses_of(choosing: list[Asked]) -> Guesses | None:
    """The drafts that were drawn from a distribution, by the rows that judge them; the runs forget them."""
    rows: list[int] = []
    drafts: list[int] = []
    weights: list[torch.Tensor] = []
    first = 0
    for one in choosing:
        many = min(len(one.item.drafts), len(one.run.guesses))
        rows += range(first, first + many)
        drafts += one.item.drafts[:many]
        weights += one.run.guesses[:many]
        one.run.guesses = []
        first += 1 + len(one.item.drafts)
    return Guesses(ints(rows), ints(drafts), torch.stack(weights)) if rows else None


def before_stop(stops: frozenset[int], drafts: list[int]) -> tuple[int, ...]:
    """The drafts up to the first that ends the text: a grammar says nothing about what comes behind it."""
    return tuple(takewhile(lambda token: token not in stops, drafts))


def ints(values: list[int]) -> Ints:
    return np.array(values, np.int64)
