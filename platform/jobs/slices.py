"""The law of slices: why no line of a batch is lost, and none is written twice.

A batch has lines 0 to total - 1. Its row holds a cursor, a fence and a lease; beside it lie journals, one a fence.

1. Claim: whoever finds the lease lapsed (by the database's clock) takes it with the next fence. A fence is held by one
   claimer only, ever.
2. Journal: the holder of fence f appends records (line, answer) to journal f and to no other, in whatever order answers
   come. What came before the cursor, or twice, or after the lease was lost, may stand there: it is never read as output.
3. Commit: (fence, first, count) moves the cursor from `first` to `first + count` if both the fence and the cursor are
   still those of the row, and adds that span to the fence's segment. The records of the span are on the disk before.
4. Adoption: a new holder copies from older journals what is whole there of lines at or after the cursor, so that a
   killed worker's answers are not asked for again. A frozen holder that wakes up may append on; its copies were taken.
5. Output: the segments in order, each line by the first record of it in the segment's own journal.

By 3 the segments are a partition of the lines before the cursor, whoever was killed or frozen when; by 5 each line
stands in the output exactly once, in the order of the input. A line may be *asked* twice (its answer was on the way
when its worker died); it is never *written* twice. Fencing tokens: Kleppmann, "How to do distributed locking" (2016).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

R = TypeVar("R")


class LeaseLost(Exception):
    """Somebody else holds this batch now: whatever was not committed is theirs to do."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Lines `first` to `first + count - 1`, whose records stand in journal `fence`."""

    fence: int
    first: int
    count: int

    @property
    def end(self) -> int:
        return self.first + self.count


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a batch's row says. leased: somebody holds it now; segment: the last one, None before any commit."""

    total: int
    cursor: int = 0
    fence: int = 0
    leased: bool = False
    segment: Segment | None = None

    def claim(self) -> Ledger | None:
        """The row after a claim, None while somebody holds it."""
        return None if self.leased else replace(self, fence=self.fence + 1, leased=True)

    def commit(self, fence: int, first: int, count: int) -> Ledger:
        """The row after lines first .. first + count - 1 are committed; count 0 only asks whether the lease stands.

        Raises LeaseLost when another fence has been given out since, ValueError for a span that is none.
        """
        if fence != self.fence:
            raise LeaseLost
        if first != self.cursor or count < 0 or first + count > self.total:
            raise ValueError(f"lines {first} to {first + count} do not follow {self.cursor} of {self.total}")
        if not count:
            return self
        last = self.segment
        grown = last if last is not None and last.fence == fence else Segment(fence, first, 0)
        return replace(self, cursor=first + count, segment=replace(grown, count=grown.count + count))

    def release(self, fence: int) -> Ledger:
        """The row when the holder leaves; another's lease stays."""
        return replace(self, leased=False) if fence == self.fence else self


def prefix(done: Collection[int], cursor: int) -> int:
    """How many lines from the cursor on are done without a gap."""
    count = 0
    while cursor + count in done:
        count += 1
    return count


def is_partition(segments: Iterable[Segment], cursor: int) -> bool:
    """Do the segments, in order, hold each line before the cursor exactly once?"""
    at = 0
    for segment in sorted(segments, key=lambda one: one.first):
        if segment.first != at or segment.count < 1:
            return False
        at = segment.end
    return at == cursor


def firsts(records: Iterable[tuple[int, R]]) -> dict[int, R]:
    """Line -> its first record."""
    found: dict[int, R] = {}
    for line, record in records:
        found.setdefault(line, record)
    return found


def assemble(segments: Iterable[Segment], journals: Mapping[int, Mapping[int, R]]) -> Iterator[tuple[int, R]]:
    """(line, record) of every committed line, in order. journals: fence -> line -> its first record."""
    for segment in sorted(segments, key=lambda one: one.first):
        for line in range(segment.first, segment.end):
            yield line, journals[segment.fence][line]
