"""The latency objective: found by itself from step times and measured latencies, in a simulation."""

import heapq
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.batching.estimates import Arrivals, StepEstimate
from inference.batching.objective import MARGIN_MAX, MARGIN_MIN, Objective
from inference.batching.window import Release, Rules, StepTime, Waiting, decide

LARGEST = Rules(256, 0.05)


def play(step, rate, objective_s, *, seconds=30.0, seed=1):
    """Poisson arrivals at `rate` on one lane whose passes take `step`; the latencies of the second half."""
    rng, order = random.Random(seed), itertools.count()
    control, arrivals, estimate = Objective(objective_s, LARGEST), Arrivals(), StepEstimate()
    rules, queue, idle_since, running, latencies = LARGEST, [], 0.0, [], []
    events = [(rng.expovariate(rate), next(order), "arrive")]
    while events[0][0] < seconds:
        now, _, kind = heapq.heappop(events)
        if kind == "arrive":
            queue.append(now)
            arrivals.arrived(now, len(queue) + len(running))
            heapq.heappush(events, (now + rng.expovariate(rate), next(order), "arrive"))
        elif kind == "done":
            idle_since = now
            latencies += [(now, now - came) for came in running]
            control.saw(now, [now - came for came in running])
            running = []
            rules = control.rules(estimate.value, len(queue))
        if not queue:
            continue
        waiting, outlook = Waiting(len(queue), len(queue), queue[0]), arrivals.outlook()
        found = decide(
            waiting,
            rules=rules,
            step=estimate.value,
            outlook=outlook,
            idle_since=None if running else idle_since,
            now=now,
        )
        if isinstance(found, Release):
            running, queue = queue[: found.rows], queue[found.rows :]
            took = step.of(len(running)) * rng.uniform(0.95, 1.05)
            estimate.observe(len(running), took)
            arrivals.released()
            heapq.heappush(events, (now + took, next(order), "done"))
        elif found.until < seconds:
            heapq.heappush(events, (found.until, next(order), "look"))
    return sorted(took for at, took in latencies if at > seconds / 2), control


@pytest.mark.parametrize(
    ("fixed_s", "per_row_s", "rate", "objective_s"),
    [
        pytest.param(0.005, 0.0005, 300, 0.050, id="light"),
        pytest.param(0.005, 0.0005, 1200, 0.050, id="heavy"),
        pytest.param(0.020, 0.0001, 500, 0.100, id="dear-pass"),
        pytest.param(0.0005, 0.002, 300, 0.050, id="dear-rows"),
    ],
)
def test_it_converges_and_holds_the_objective_under_poisson_arrivals(fixed_s, per_row_s, rate, objective_s):
    latencies, control = play(StepTime(per_row_s, fixed_s), rate, objective_s)
    assert len(latencies) > 0.9 * rate * 15
    assert latencies[int(0.99 * len(latencies))] <= objective_s
    assert MARGIN_MIN <= control.margin <= MARGIN_MAX


def test_a_line_that_grows_gets_larger_batches_not_smaller_ones():
    control = Objective(0.01, LARGEST)
    step = StepTime(0.0005, 0.005)
    assert control.rules(step, 0).max_batch_size < 10
    assert control.rules(step, 200).max_batch_size == 200


def test_what_the_author_set_stays():
    own = Rules(16, 0.002)
    assert Objective(0.5, own, keeps_window=True).rules(StepTime(0.001, 0.001), 1).window_s == 0.002
    delayed = Rules(16, 0.002, (4, 8), 0.01)
    found = Objective(0.5, delayed).rules(StepTime(0.001, 0.001), 1)
    assert (found.preferred, found.max_delay_s) == ((4, 8), 0.01)


@given(
    st.floats(0, 0.1),
    st.floats(0, 0.1),
    st.floats(0.001, 1),
    st.integers(0, 1000),
    st.lists(st.floats(0, 5), max_size=200),
)
def test_its_rules_are_always_usable(per_row_s, fixed_s, objective_s, waiting, latencies):
    control = Objective(objective_s, LARGEST)
    for n, latency in enumerate(latencies):
        control.saw(float(n), [latency] * 60)
    rules = control.rules(StepTime(per_row_s, fixed_s), waiting)
    assert 1 <= rules.max_batch_size <= LARGEST.max_batch_size
    assert 0 <= rules.window_s <= 0.05
    assert rules.window_s <= objective_s
