"""What the batcher learns."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.batching.estimates import Arrivals, StepEstimate


def test_a_linear_cost_is_found():
    estimate = StepEstimate()
    for rows in (1, 8, 3, 32, 16, 5):
        estimate.observe(rows, 0.001 * rows + 0.004)
    assert estimate.value.per_row_s == pytest.approx(0.001)
    assert estimate.value.fixed_s == pytest.approx(0.004)


def test_equal_batches_keep_the_slope_and_move_the_fixed_part():
    estimate = StepEstimate()
    for rows in (1, 32):
        estimate.observe(rows, 0.001 * rows + 0.004)
    for _ in range(300):
        estimate.observe(32, 0.040)
    assert estimate.value.of(32) == pytest.approx(0.040, rel=0.02)


def test_a_hiccup_does_not_move_it_far():
    estimate = StepEstimate()
    for _ in range(50):
        estimate.observe(4, 0.010)
    estimate.observe(4, 30.0)
    assert estimate.value.of(4) < 0.013


@given(st.lists(st.tuples(st.integers(1, 512), st.floats(0, 10)), min_size=1, max_size=60))
def test_it_is_never_negative(passes):
    estimate = StepEstimate()
    for rows, seconds in passes:
        estimate.observe(rows, seconds)
        assert estimate.value.per_row_s >= 0
        assert estimate.value.fixed_s >= -1e-9


def test_nothing_seen_means_nothing_expected():
    outlook = Arrivals().outlook()
    assert (outlook.gap_s, outlook.expected_rows) == (inf, 0)


def test_the_usual_gap_is_that_of_a_burst_not_the_pause_between_bursts():
    arrivals, now = Arrivals(), 0.0
    for _ in range(4):
        now += 1.0
        for present in range(1, 9):
            now += 0.001
            arrivals.arrived(now, present)
        arrivals.released()
    assert arrivals.outlook().gap_s == pytest.approx(0.001)
    assert arrivals.outlook().expected_rows == 8


def test_a_peak_is_forgotten_after_some_batches():
    arrivals = Arrivals()
    arrivals.arrived(0.0, 32)
    arrivals.released()
    for at in range(1, 9):
        arrivals.arrived(float(at), 1)
        arrivals.released()
    assert arrivals.outlook().expected_rows == 1
