"""The window over the real line, with arbitrary arrivals: whatever comes and when, nothing is late that need not be."""

import heapq
import itertools
from collections import Counter
from math import inf

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from inference.batching.estimates import Arrivals
from inference.batching.line import Line
from inference.batching.window import DEADLINE_MARGIN_S, Release, Rules, StepTime, Waiting, decide
from inference.runtime.work import Ticket

INPUTS = {"x": np.zeros((1, 1))}
steps = st.builds(
    StepTime, per_row_s=st.sampled_from([0.0, 0.0005, 0.004]), fixed_s=st.sampled_from([0.0, 0.001, 0.02])
)
arrivals = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 0.0003, 0.003, 0.05]),  # after the one before
        st.integers(1, 3),  # rows
        st.integers(1, 2),  # level
        st.sampled_from([inf, 0.004, 0.02, 0.1]),  # seconds that it has
    ),
    min_size=1,
    max_size=40,
)


class Machine:
    """One lane whose passes take exactly `step`; notes each batch with what was known when it was formed."""

    def __init__(self, rules, step):
        self.rules, self.step = rules, step
        self.line, self.rhythm = Line(levels=2), Arrivals()
        self.events, self.turns = [], itertools.count()
        self.now = self.idle_since = self.changed_at = 0.0
        self.running_rows = 0
        self.batches, self.expired = [], []

    def play(self, came):
        for at, ticket, level in came:
            heapq.heappush(self.events, (at, next(self.turns), "came", (ticket, level)))
        while self.events:
            self.now, _, kind, value = heapq.heappop(self.events)
            if kind == "came":
                self.line.add(*value)
                self.rhythm.arrived(self.now, self.line.rows + self.running_rows)
            elif kind == "done":
                self.idle_since, self.running_rows = self.now, 0
            self.changed_at = self.now if kind != "look" else self.changed_at
            self.expired += self.line.expired(self.now)
            self.consider()

    def consider(self):
        if self.running_rows or not (groups := self.line.groups()):
            return
        oldest, group = groups[0]
        waiting = Waiting(
            group.rows,
            self.line.rows,
            oldest.arrived_at,
            group.earliest_deadline,
            urgent_rows=group.rows_to_most_urgent(),
        )
        found = decide(
            waiting,
            rules=self.rules,
            step=self.step,
            outlook=self.rhythm.outlook(),
            idle_since=self.idle_since,
            now=self.now,
        )
        if not isinstance(found, Release):
            assert self.now < found.until < inf
            heapq.heappush(self.events, (found.until, next(self.turns), "look", None))
            return
        batch = self.line.take(group, found.rows)
        self.running_rows = sum(ticket.rows for ticket in batch)
        self.rhythm.released()
        self.batches.append((self.now, self.changed_at, waiting, batch))
        heapq.heappush(self.events, (self.now + self.step.of(self.running_rows), next(self.turns), "done", None))


def played(came, largest, window_s, step):
    machine, at, given_in = Machine(Rules(largest, window_s), step), 0.0, []
    for after, rows, level, seconds in came:
        at += after
        given_in.append((at, Ticket(INPUTS, rows, at + seconds, at, lambda *_: None), level))
    machine.play(given_in)
    return machine, [ticket for _, ticket, _ in given_in]


any_arrivals = given(
    came=arrivals, largest=st.integers(3, 12), window_s=st.sampled_from([0.0, 0.005, 0.05]), step=steps
)


@any_arrivals
def test_every_request_runs_once_or_expires_once_in_batches_that_fit(came, largest, window_s, step):
    machine, tickets = played(came, largest, window_s, step)
    ended = Counter(id(one) for *_, batch in machine.batches for one in batch) + Counter(map(id, machine.expired))
    assert ended == Counter(map(id, tickets))
    assert all(1 <= sum(one.rows for one in batch) <= largest for *_, batch in machine.batches)
    assert all(one.deadline <= machine.now for one in machine.expired)
    assert all(one.deadline > at for at, _, _, batch in machine.batches for one in batch)


@any_arrivals
def test_the_order_within_a_priority_is_kept_and_a_higher_one_goes_first(came, largest, window_s, step):
    machine, _ = played(came, largest, window_s, step)
    ran = [one for *_, batch in machine.batches for one in batch]
    for level in (1, 2):
        orders = [one.order for one in ran if one.rank[0] == level]
        assert orders == sorted(orders)
    for *_, batch in machine.batches:
        assert [one.rank[0] for one in batch] == sorted(one.rank[0] for one in batch)


URGENT_BEHIND_A_CROWD = [(0.0, 1, 1, inf), (0.0003, 1, 1, inf), (0.0, 1, 1, 0.02), *[(0.0, 3, 1, inf)] * 4]


@any_arrivals
@example(came=URGENT_BEHIND_A_CROWD, largest=12, window_s=0.0, step=StepTime(0.004, 0.001))
def test_no_deadline_is_missed_that_could_be_met(came, largest, window_s, step):
    machine, _ = played(came, largest, window_s, step)
    for at, changed_at, waiting, batch in machine.batches:
        ends = at + step.of(sum(one.rows for one in batch))
        if at > changed_at:  # it was held: then for company, and nobody in it pays for that
            assert ends <= waiting.earliest_deadline
        urgent = [one for one in batch if one.deadline == waiting.earliest_deadline]
        could = at + step.of(waiting.urgent_rows) + DEADLINE_MARGIN_S <= waiting.earliest_deadline
        if urgent and could:  # company that came with it, or before it, does not make it late either
            assert ends <= waiting.earliest_deadline
