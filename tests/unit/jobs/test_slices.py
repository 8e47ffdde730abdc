"""The law of slices under arbitrary deaths, freezes and awakenings of workers."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from jobs.slices import LeaseLost, Ledger, Segment, assemble, firsts, is_partition, prefix

SLICE = 5


@dataclass
class Worker:
    """What a worker knows, which may be long out of date. done: lines that it has written to its journal."""

    fence: int
    cursor: int
    last: int
    done: set[int] = field(default_factory=set)


class Slices(RuleBasedStateMachine):
    """Workers of one batch. Journals keep what any worker ever wrote; only the ledger says what counts."""

    @initialize(total=st.integers(1, 23))
    def begin(self, total: int) -> None:
        self.row = Ledger(total)
        self.segments: dict[int, Segment] = {}
        self.journals: dict[int, list[tuple[int, str]]] = {}
        self.workers: list[Worker] = []
        self.answers = 0

    @rule()
    def lapse(self) -> None:
        """The database's clock passes the lease: its holder is dead, frozen, or merely slow."""
        self.row = Ledger(self.row.total, self.row.cursor, self.row.fence, False, self.row.segment)

    @rule(adopts=st.booleans())
    def claim(self, adopts: bool) -> None:
        after = self.row.claim()
        if after is None:
            assert self.row.leased
            return
        self.row = after
        worker = Worker(after.fence, after.cursor, min(after.total, after.cursor + SLICE))
        assert after.fence not in self.journals, "a fence was given out twice"
        self.journals[after.fence] = []
        self.workers.append(worker)
        if adopts:
            for fence in sorted(self.journals, reverse=True):
                for line, answer in list(self.journals[fence]):
                    if worker.cursor <= line < worker.last and line not in worker.done and fence < worker.fence:
                        self._write(worker, line, answer)

    def _write(self, worker: Worker, line: int, answer: str) -> None:
        worker.done.add(line)
        self.journals[worker.fence].append((line, answer))

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        """Any worker, however old its fence, gets an answer to any line of its slice, even one it had."""
        worker = data.draw(st.sampled_from(self.workers))
        if worker.cursor < worker.last:
            self.answers += 1
            self._write(worker, data.draw(st.integers(worker.cursor, worker.last - 1)), f"answer {self.answers}")

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        count = prefix(worker.done, worker.cursor)
        held = worker.fence == self.row.fence
        try:
            self.row = self.row.commit(worker.fence, worker.cursor, count)
        except LeaseLost:
            assert not held
            self.workers.remove(worker)
            return
        assert held
        worker.cursor += count
        if count and self.row.segment is not None:
            self.segments[self.row.segment.fence] = self.row.segment

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        self.workers.remove(data.draw(st.sampled_from(self.workers)))

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """Anybody may say that they leave; only the holder's word counts."""
        fence = data.draw(st.integers(0, self.row.fence))
        before = self.row
        self.row = self.row.release(fence)
        assert self.row.leased == (before.leased and fence != before.fence)

    @invariant()
    def every_committed_line_stands_once_and_in_order(self) -> None:
        if not hasattr(self, "row"):
            return
        assert is_partition(self.segments.values(), self.row.cursor)
        read = list(assemble(self.segments.values(), {fence: firsts(j) for fence, j in self.journals.items()}))
        assert [line for line, _ in read] == list(range(self.row.cursor))

    def teardown(self) -> None:
        """Whatever happened, one worker that lives ends the batch."""
        while hasattr(self, "row") and self.row.cursor < self.row.total:
            self.lapse()
            self.claim(adopts=True)
            worker = self.workers[-1]
            for line in range(worker.cursor, worker.last):
                if line not in worker.done:
                    self._write(worker, line, "late")
            self.row = self.row.commit(worker.fence, worker.cursor, prefix(worker.done, worker.cursor))
            assert self.row.segment is not None
            self.segments[worker.fence] = self.row.segment
            self.every_committed_line_stands_once_and_in_order()


TestSlices = Slices.TestCase
TestSlices.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_commit_must_follow_the_cursor() -> None:
    row = Ledger(10, cursor=4, fence=2, leased=True)
    for first, count in ((3, 1), (5, 1), (4, 7), (4, -1)):
        with pytest.raises(ValueError, match="do not follow"):
            row.commit(2, first, count)
    assert row.commit(2, 4, 6).cursor == 10


def test_an_older_fence_commits_nothing() -> None:
    with pytest.raises(LeaseLost):
        Ledger(10, cursor=4, fence=2, leased=True).commit(1, 4, 1)


def test_a_held_batch_cannot_be_claimed() -> None:
    assert Ledger(3, leased=True).claim() is None


@pytest.mark.parametrize(
    ("segments", "cursor", "good"),
    [
        ([], 0, True),
        ([Segment(1, 0, 3), Segment(2, 3, 2)], 5, True),
        ([Segment(2, 3, 2), Segment(1, 0, 3)], 5, True),
        ([Segment(1, 0, 3), Segment(2, 2, 3)], 5, False),
        ([Segment(1, 0, 3), Segment(2, 4, 1)], 5, False),
        ([Segment(1, 0, 3)], 5, False),
    ],
)
def test_a_partition_has_no_gap_and_no_overlap(segments: list[Segment], cursor: int, good: bool) -> None:
    assert is_partition(segments, cursor) is good
