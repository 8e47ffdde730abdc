"""sequences and contrasts: the arithmetic against exact figures, and spreads of values that fail together."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollouts.bins import Bin
from rollouts.contrasts import slow_values, sums_of
from rollouts.sequences import (
    Contrast,
    better_evidence,
    lower_bound,
    split_evidence,
    upper_bound,
    worse_evidence,
)

T0 = 1_800_000_000
LEVEL = math.log(20)


def contrast(n: float, errors: float, rate: float, **more: float) -> Contrast:
    return Contrast(n=n, total=errors, expected=n * rate, leverage=n / 9, **more)


def test_the_evidence_stays_below_the_likelihood_ratio_at_its_best() -> None:
    """No mixture beats the best single tilt: Poisson against Poisson, stable's rate known."""
    known = Contrast(n=1000, total=20, expected=5, leverage=1e-9)
    best = 20 * math.log(20 / 5) - 15
    assert 0.6 * best < worse_evidence(known, 0.0) < best


def test_more_errors_are_more_evidence() -> None:
    found = [worse_evidence(contrast(1000, errors, 0.005), 0.001) for errors in range(5, 60, 5)]
    assert found == sorted(found)


@given(st.integers(50, 5000), st.floats(0, 0.3), st.floats(0, 0.3))
def test_evidence_falls_with_the_difference_it_speaks_against(n: int, canary: float, stable: float) -> None:
    data = contrast(n, n * canary, stable)
    worse = [worse_evidence(data, d / 100) for d in range(0, 30, 3)]
    better = [better_evidence(data, d / 100, 0.01) for d in range(0, 30, 3)]
    assert all(a >= b - 1e-9 for a, b in pairwise(worse))
    assert all(a <= b + 1e-9 for a, b in pairwise(better))


def test_bounds_are_where_the_evidence_crosses() -> None:
    data = contrast(2000, 30, 0.005)
    lower, upper = lower_bound(data, LEVEL), upper_bound(data, LEVEL, 0.01)
    assert worse_evidence(data, lower) == pytest.approx(LEVEL, abs=1e-3)
    assert better_evidence(data, upper, 0.01) == pytest.approx(LEVEL, abs=1e-3)


def test_values_that_fail_together_weigh_less() -> None:
    alone, together = contrast(500, 16, 0.005), contrast(500, 16, 0.005, spread=16.0)
    assert worse_evidence(alone, 0.002) > 6
    assert worse_evidence(together, 0.002) < 1


def test_nothing_seen_is_not_impossible() -> None:
    assert worse_evidence(contrast(150, 1, 0.0), 0.0) < math.log(20)
    assert upper_bound(contrast(150, 0, 0.0), LEVEL, 0.01) > 3 / 150


def test_equal_arms_are_hardly_ever_called_worse_however_often_one_looks() -> None:
    """Ville: at level 1/20 at most one run in twenty, over all looks together."""
    rng, alarms = random.Random(7), 0
    for _ in range(200):
        total = expected = 0.0
        for look in range(1, 41):
            total += sum(rng.random() < 0.02 for _ in range(50))
            expected += sum(rng.random() < 0.02 for _ in range(450)) / 9
            data = Contrast(n=50.0 * look, total=total, expected=expected, leverage=50.0 * look / 9)
            if worse_evidence(data, 0.0) >= LEVEL:
                alarms += 1
                break
    assert alarms <= 10


def test_the_split_is_right_at_the_share_and_wrong_far_from_it() -> None:
    assert split_evidence(500, 4500, 0.1) < 0
    assert split_evidence(700, 4300, 0.1) > math.log(1000)
    assert split_evidence(300, 4700, 0.1) > math.log(1000)


def test_slow_values_make_stables_share_exact() -> None:
    counts = {10: 700, 12: 260, 14: 40}
    for quantile in (0.5, 0.95, 0.99):
        values = slow_values(counts, quantile)
        share = sum(values[bucket] * count for bucket, count in counts.items()) / 1000
        assert share == pytest.approx(1 - quantile)
        assert values == sorted(values)


def _errors(pattern: list[int], per_second: int) -> list[Bin]:
    return [Bin(T0 + s, requests=per_second, errors=k) for s, k in enumerate(pattern)]


def _spread(canary: list[int], stable: list[int] | None = None) -> float:
    control = _errors(stable or [0] * len(canary), 45)
    sums = sums_of("error_rate", control, _errors(canary, 5), unit_s=10)
    assert sums is not None
    return sums.contrast.spread


def test_single_errors_have_no_spread_and_batches_have_theirs() -> None:
    rng = random.Random(3)
    assert _spread([int(rng.random() < 0.1) for _ in range(300)]) == 1.0
    burst = [0] * 300
    for start in (40, 121, 250):
        burst[start : start + 4] = [5, 5, 5, 1]
    assert 10 < _spread(burst) < 25


def test_a_canary_without_errors_borrows_stables_spread() -> None:
    stable = [0] * 300
    for second in range(7, 300, 60):
        stable[second] = 16
    assert 10 < _spread([0] * 300, stable) < 25


def test_what_moves_both_arms_has_no_spread() -> None:
    wave = [1 if second // 20 % 2 else 0 for second in range(300)]
    assert _spread(wave, [9 * k for k in wave]) == 1.0


def test_seconds_without_stable_are_compared_with_the_next_that_have_some() -> None:
    control = [Bin(T0 + s, requests=4) for s in range(0, 300, 30)]
    sums = sums_of("error_rate", control, _errors([0] * 300, 1), unit_s=10)
    assert sums is not None
    assert sums.contrast.n == 300
    assert sums.units < 10
