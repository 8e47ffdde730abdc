"""Who waits, in the order in which they are admitted.

The law: the lower priority number first; within one, those who ran before and were preempted, then by arrival.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field

from inference.generation.sequence import Sequence

Rank = tuple[int, int]


def rank_of(sequence: Sequence) -> Rank:
    """Importance among the running ones, the most important first."""
    return (sequence.priority, sequence.order)


def _place_of(sequence: Sequence) -> tuple[int, bool, int]:
    return (sequence.priority, not sequence.returning, sequence.order)


@dataclass(slots=True)
class Line:
    """Waiting sequences. `tokens`: of all of them, those made before a preemption included."""

    tokens: int = 0
    _waiting: list[Sequence] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._waiting)

    @property
    def head(self) -> Sequence | None:
        """The first that is not held."""
        return next((sequence for sequence in self._waiting if not sequence.held), None)

    def add(self, sequence: Sequence) -> None:
        self.tokens += sequence.length
        insort(self._waiting, sequence, key=_place_of)

    def remove(self, sequence: Sequence) -> None:
        waiting = self._waiting
        place = bisect_left(waiting, _place_of(sequence), key=_place_of)
        assert waiting[place] is sequence, f"sequence {sequence.id} is not where it should wait"
        del waiting[place]
        self.tokens -= sequence.length
