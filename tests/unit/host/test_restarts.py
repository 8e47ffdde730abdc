"""Restart policy: immediate once, jittered, capped, given up; forgiving after the window."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inference.host.restarts import RestartPolicy, after_crash, wait_s

POLICY = RestartPolicy()


def test_the_first_restart_is_immediate() -> None:
    assert after_crash(POLICY, (), 100.0, 0.99).delay_s == 0.0


def test_the_fifth_crash_in_ten_minutes_is_the_last() -> None:
    crashes: tuple[float, ...] = ()
    delays = []
    for at in range(5):
        verdict = after_crash(POLICY, crashes, at * 100.0, 0.5)
        crashes = verdict.crashes
        delays.append(verdict.delay_s)
    assert delays == [0.0, 1.5, 2.5, 4.5, None]


def test_crashes_are_forgiven_after_ten_minutes() -> None:
    crashes: tuple[float, ...] = ()
    for at in range(50):
        verdict = after_crash(POLICY, crashes, at * 151.0, 0.5)
        crashes = verdict.crashes
        assert verdict.delay_s is not None
    assert len(crashes) == 4


@given(count=st.integers(2, 10_000), chance=st.floats(0, 1))
def test_a_wait_is_between_its_bounds(count: int, chance: float) -> None:
    assert POLICY.low_s <= wait_s(POLICY, count, chance) <= POLICY.cap_s


@given(st.lists(st.floats(0, 2000), max_size=40), st.floats(0, 1))
def test_it_gives_up_exactly_when_five_fall_into_one_window(gaps: list[float], chance: float) -> None:
    now, crashes, times = 0.0, (), []
    for gap in gaps:
        now += gap
        times.append(now)
        verdict = after_crash(POLICY, crashes, now, chance)
        crashes = verdict.crashes
        recent = sum(now - at < POLICY.window_s for at in times)
        assert (verdict.delay_s is None) == (recent >= POLICY.max_crashes)


def test_late_waits_spread_over_the_whole_range() -> None:
    assert wait_s(POLICY, 100, 0.0) == 1.0
    assert wait_s(POLICY, 100, 1.0) == 60.0
