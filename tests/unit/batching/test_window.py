"""Promises of the batch window, as properties and in a small simulation."""

import heapq
import itertools
import random
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from inference.batching.estimates import Arrivals, StepEstimate
from inference.batching.window import Outlook, Release, Rules, StepTime, Wait, Waiting, decide

seconds = st.floats(0, 1, allow_nan=False)
rules = st.builds(Rules, max_batch_size=st.integers(1, 256), window_s=st.floats(0, 0.05))
steps = st.builds(StepTime, per_row_s=st.floats(0, 0.05), fixed_s=st.floats(0, 0.5))
outlooks = st.builds(
    Outlook, gap_s=st.one_of(seconds, st.just(inf)), expected_rows=st.integers(0, 300), last_arrival_at=seconds
)


@st.composite
def queues(draw):
    rows = draw(st.integers(1, 300))
    oldest = draw(seconds)
    return Waiting(rows, rows + draw(st.integers(0, 50)), oldest, draw(st.one_of(st.just(inf), st.floats(0, 3))))


any_case = given(waiting=queues(), rule=rules, step=steps, outlook=outlooks, after=seconds)


def run(waiting, rule, step, outlook, now, *, idle_since=0.0):
    return decide(waiting, rules=rule, step=step, outlook=outlook, idle_since=idle_since, now=now)


@any_case
def test_it_never_exceeds_the_maximum_nor_invents_rows(waiting, rule, step, outlook, after):
    decision = run(waiting, rule, step, outlook, waiting.oldest_at + after)
    if isinstance(decision, Release):
        assert 1 <= decision.rows <= min(rule.max_batch_size, waiting.rows)


@any_case
def test_it_never_holds_an_idle_executor_past_the_window(waiting, rule, step, outlook, after):
    now = waiting.oldest_at + after
    for idle_since in (0.0, now - after / 2, now):
        decision = run(waiting, rule, step, outlook, now, idle_since=idle_since)
        if isinstance(decision, Wait):
            assert decision.until <= max(waiting.oldest_at, idle_since) + rule.window_s


@any_case
def test_it_never_waits_past_the_slack_of_the_earliest_deadline(waiting, rule, step, outlook, after):
    decision = run(waiting, rule, step, outlook, waiting.oldest_at + after)
    if isinstance(decision, Wait):
        assert decision.until + step.of(waiting.rows) < waiting.earliest_deadline


@any_case
def test_it_never_starves_asking_again_at_until_moves_on(waiting, rule, step, outlook, after):
    now = waiting.oldest_at + after
    decision = run(waiting, rule, step, outlook, now)
    if isinstance(decision, Wait):
        assert decision.until > now
        assert isinstance(run(waiting, rule, step, outlook, decision.until), Release)


@any_case
def test_a_busy_executor_is_waited_for(waiting, rule, step, outlook, after):
    assert run(waiting, rule, step, outlook, after, idle_since=None) == Wait(inf)


@given(rule=rules, step=steps, gap=seconds, at=seconds)
def test_a_lone_request_runs_at_once_when_nobody_else_was_about(rule, step, gap, at):
    lone = Waiting(rows=1, present_rows=1, oldest_at=at)
    assert run(lone, rule, step, Outlook(gap, 1, at), at) == Release(1)


def test_a_full_batch_goes_at_once():
    full = Waiting(rows=9, present_rows=9, oldest_at=0.0)
    assert run(full, Rules(8, 0.05), StepTime(0, 1.0), Outlook(0.0, 100, 0.0), 0.0) == Release(8)


def test_it_waits_for_rows_that_are_about_to_come_back():
    some = Waiting(rows=3, present_rows=3, oldest_at=0.0)
    decision = run(some, Rules(32, 0.005), StepTime(0, 0.02), Outlook(0.0002, 32, 0.001), 0.001)
    assert isinstance(decision, Wait)
    assert 0.001 < decision.until <= 0.005


def test_it_does_not_wait_when_that_costs_more_than_a_pass_saves():
    some = Waiting(rows=3, present_rows=3, oldest_at=0.0)
    assert run(some, Rules(32, 0.05), StepTime(0, 0.001), Outlook(0.004, 32, 0.0), 0.0) == Release(3)


class Simulation:
    """One executor and a policy under test, driven by events; arrivals are pushed as (time, deadline)."""

    def __init__(self, rule, step, respawn):
        self.rule, self.step, self.respawn = rule, step, respawn
        self.arrivals, self.estimate = Arrivals(), StepEstimate()
        self.queue, self.events, self.batches, self.latencies = [], [], [], []
        self.order, self.idle_since = itertools.count(), 0.0

    def push(self, at, kind, value=None):
        heapq.heappush(self.events, (at, next(self.order), kind, value))

    def play(self, until):
        while self.events and self.events[0][0] <= until:
            now, _, kind, value = heapq.heappop(self.events)
            if kind == "arrive":
                self.queue.append(now)
                self.arrivals.arrived(now, len(self.queue) + (self.batches[-1] if self.idle_since is None else 0))
            elif kind == "done":
                self.idle_since = now
                self.latencies += [now - start for start in value]
                for _ in value:
                    self.respawn(self, now)
            self.decide(now)

    def decide(self, now):
        if not self.queue:
            return
        waiting = Waiting(len(self.queue), len(self.queue), self.queue[0])
        outlook = self.arrivals.outlook()
        decision = run(waiting, self.rule, self.estimate.value, outlook, now, idle_since=self.idle_since)
        if isinstance(decision, Wait):
            if decision.until < inf:
                self.push(decision.until, "look")
            return
        taken, self.queue = self.queue[: decision.rows], self.queue[decision.rows :]
        took = self.step.of(len(taken))
        self.estimate.observe(len(taken), took)
        self.arrivals.released()
        self.idle_since = None
        self.batches.append(len(taken))
        self.push(now + took, "done", taken)


def closed_loop(clients, step, seed=7):
    rng = random.Random(seed)

    def respawn(sim, now):
        sim.push(now + rng.uniform(0.0001, 0.0015), "arrive")

    sim = Simulation(Rules(64, 0.005), step, respawn)
    for _ in range(clients):
        sim.push(rng.uniform(0, 0.001), "arrive")
    sim.play(until=5.0)
    return sim


def test_a_closed_loop_of_32_clients_does_not_degenerate_into_1_and_31():
    sim = closed_loop(32, StepTime(0.0001, 0.010))
    settled = sim.batches[20:]
    assert sum(settled) / len(settled) > 28
    assert sum(size < 4 for size in settled) / len(settled) < 0.05


def test_one_client_in_a_closed_loop_never_waits_for_the_window():
    sim = closed_loop(1, StepTime(0.0, 0.002))
    assert max(sim.latencies) < 0.0021


def test_under_light_open_traffic_the_median_request_pays_no_window():
    rng = random.Random(3)
    sim = Simulation(Rules(32, 0.005), StepTime(0.0001, 0.001), lambda *_: None)
    at = 0.0
    for _ in range(2000):
        at += rng.expovariate(100)
        sim.push(at, "arrive")
    sim.play(until=at + 1)
    assert len(sim.latencies) == 2000
    assert sorted(sim.latencies)[1000] < 0.0012


def test_when_the_crowd_leaves_the_last_client_is_served_alone_again():
    sim = closed_loop(32, StepTime(0.0001, 0.010))
    sim.respawn = lambda s, now: s.push(now + 0.0005, "arrive") if not s.queue and not s.events else None
    sim.play(until=8.0)
    assert sim.batches[-1] == 1
    assert sim.latencies[-1] < 0.0102
