"""How many lines are on the way at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.pace import MAX_PAUSE_S, Pace


def test_it_grows_by_about_one_a_windowful() -> None:
    pace = Pace(most=32, window=4)
    for _ in range(4):
        pace.answered()
    assert 4.7 < pace.window < 5.0


def test_refusals_of_one_overload_count_once() -> None:
    pace = Pace(most=32, window=16)
    for moment in range(10):
        pace.refused(10.0 + moment / 100, None)
    assert pace.window == 8
    pace.refused(12.0, None)
    assert pace.window == 4


def test_retry_after_is_kept_to() -> None:
    pace = Pace(most=32, window=16)
    pace.refused(10.0, 7.0)
    assert not pace.may_start(16.9, 0)
    assert pace.wait_s(12.0) == 5.0
    assert pace.may_start(17.0, 0)


def test_without_it_each_refusal_waits_longer() -> None:
    pace, waits, now = Pace(most=8), [], 0.0
    for _ in range(12):
        pace.refused(now, None)
        waits.append(pace.wait_s(now))
        now += waits[-1] + 1
    assert waits[:3] == [0.5, 1.0, 2.0]
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(MAX_PAUSE_S)


def test_a_keys_rate_spreads_the_starts() -> None:
    pace = Pace(most=32, window=32, rate_per_s=10.0)
    started = 0
    for tick in range(1000):
        now = tick / 1000
        if pace.may_start(now, 0):
            pace.started(now)
            started += 1
    assert 9 <= started <= 10


@given(st.lists(st.one_of(st.none(), st.floats(0, 1e6), st.booleans()), max_size=200), st.floats(-10, 1e6))
def test_the_window_stays_within_its_bounds(events: list[float | bool | None], window: float) -> None:
    pace, now = Pace(most=8, window=window), 0.0
    for event in events:
        now += 0.7
        if event is True:
            pace.answered()
        elif event is not False:
            pace.refused(now, event)
        assert 1 <= pace.window <= 8
        assert pace.wait_s(now) <= MAX_PAUSE_S + 1e-6
