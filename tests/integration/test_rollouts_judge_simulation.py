"""What the judge promises, measured: 400 seeded runs of each kind of traffic, looked at every ten seconds.

50 requests per second, 10 % of them to the canary, 0.5 % errors, where nothing else is said. No clock, no process.
"""

from __future__ import annotations

import numpy as np
import pytest

from rollouts.contrasts import SLOW, sums_of
from rollouts.guardrails import JudgeSettings
from rollouts.hard_stops import hard_stop
from rollouts.judge import judge
from tests.support.judges import JUDGES, defaults
from tests.support.rollout_looks import contrasts, watched
from tests.support.rollout_traffic import START_UNIX_S, Arm, Scenario, Shape, simulated

RUNS = 400
HALF_AN_HOUR = 1800
ALL = ("error_rate", "slow_p50", "slow_p95", "slow_p99")
FALSE_ALARMS = {
    "equal": (Scenario(), ALL),
    "batches of 4 fail together": (Scenario(batch=4, is_timed=False), ("error_rate",)),
    "batches of 16 fail together": (Scenario(batch=16, is_timed=False), ("error_rate",)),
    "batches of 16 fail in one second": (Scenario(batch=16, at_once=True, is_timed=False), ("error_rate",)),
    "half a canary request per second": (Scenario(per_second=5.0), ALL),
}
FOUND = {
    "errors 5 %": (Scenario(canary_errors=0.05, is_timed=False), ("error_rate",), 60),
    "errors 2 %": (Scenario(canary_errors=0.02, is_timed=False), ("error_rate",), 150),
    "latency x 1.25": (Scenario(slower=1.25), ALL[1:], 70),
    "latency x 1.25, wider": (Scenario(slower=1.25, shape=Shape(sigma=0.5, tail=0.01)), ALL[1:], 70),
}


@pytest.mark.parametrize("kind", FALSE_ALARMS)
def test_an_equal_canary_is_not_rolled_back(kind: str) -> None:
    scenario, metrics = FALSE_ALARMS[kind]
    arms = simulated(scenario, RUNS, HALF_AN_HOUR, seed=5)
    course = watched(arms, defaults(*metrics), share=0.1, is_passing=False)
    most = 0.0 if scenario.per_second < 50 else 0.01
    assert np.isfinite(course.failed_s).mean() <= most


@pytest.mark.parametrize("kind", [kind for kind in FALSE_ALARMS if "batches of 16" in kind])
def test_failed_batches_are_no_hard_stop(kind: str) -> None:
    """Looked at after every second that ends half a minute with ten errors or more: fewer stop nothing."""
    _, canary = simulated(FALSE_ALARMS[kind][0], RUNS, HALF_AN_HOUR, seed=8)
    upto = np.cumsum(canary.errors, axis=1)
    recent = upto - np.pad(upto, ((0, 0), (30, 0)))[:, :-30]
    looks = np.argwhere((recent >= 10) & (canary.errors > 0))
    stopped = {int(run) for run, second in looks if _is_stopped(canary, run, second)}
    assert len(looks) > RUNS
    assert len(stopped) <= 0.005 * RUNS


def _is_stopped(canary: Arm, run: int, second: int) -> bool:
    bins = canary.bins(run, second + 1, max(0, second - 40))
    return hard_stop([], bins, crashes=0, crash_loop=3, load_failed=False) is not None


@pytest.mark.parametrize("kind", FOUND)
def test_a_worse_canary_is_found_in_time(kind: str) -> None:
    scenario, metrics, within_s = FOUND[kind]
    arms = simulated(scenario, RUNS, 600, seed=5)
    course = watched(arms, defaults(*metrics), share=0.1, is_passing=False)
    assert np.median(course.failed_s) <= within_s
    assert np.isfinite(course.failed_s).mean() > 0.99


@pytest.mark.parametrize(
    ("scenario", "within_s"),
    [
        pytest.param(Scenario(), 300, id="at a tenth"),
        pytest.param(Scenario(share=0.5), 240, id="at a half"),
        pytest.param(Scenario(share=0.01, per_second=200), 300, id="at a hundredth"),
        pytest.param(Scenario(stable_errors=0.0005, canary_errors=0.0005), 200, id="hardly any errors"),
        pytest.param(Scenario(sway=0.2), 300, id="load moves both arms"),
    ],
)
def test_an_equal_canary_passes_in_minutes(scenario: Scenario, within_s: float) -> None:
    arms = simulated(scenario, 60, 900, seed=6)
    course = watched(arms, defaults(*ALL), share=scenario.share)
    assert np.median(course.passed_s) <= within_s


def test_what_must_not_pass_hardly_ever_does() -> None:
    arms = simulated(Scenario(share=0.5, canary_errors=0.012), 100, 900, seed=6)
    course = watched(arms, defaults(*ALL), share=0.5)
    assert np.isfinite(course.passed_s).mean() <= 0.05


def test_thresholds_on_windows_roll_equal_canaries_back() -> None:
    """The contrast the table shows: without it, a fault in the simulation could make every judge look good."""
    arms = simulated(Scenario(), 100, HALF_AN_HOUR, seed=5)
    flagger = next(item for item in JUDGES if item.name.startswith("Flagger"))
    assert np.isfinite(flagger.errors(arms)).mean() > 0.5


@pytest.mark.parametrize("metric", ALL)
def test_the_simulation_adds_up_what_the_judge_adds_up(metric: str) -> None:
    settings = JudgeSettings()
    for scenario in (Scenario(batch=16), Scenario(sway=0.2, slower=1.2), Scenario(share=0.5, canary_errors=0.1)):
        arms = simulated(scenario, 4, 300, seed=3)
        for now_s in (40, 150, 300):
            columns = contrasts(metric, *arms, now_s, settings)
            for run in range(4):
                stable, canary = (arm.bins(run, now_s) for arm in arms)
                start = canary[0].at_unix_s + (settings.warmup_s if metric in SLOW else 0)
                kept = ([item for item in bins if item.at_unix_s >= start] for bins in (stable, canary))
                sums = sums_of(metric, *kept, unit_s=settings.unit_s)
                assert sums is not None
                data = sums.contrast
                found = (data.n, data.total, data.expected, data.leverage, data.ratio)
                found = (*found, data.spread, data.stable_spread)
                np.testing.assert_allclose(found, [column[run] for column in columns], rtol=1e-6, atol=1e-9)


def test_the_judge_itself_decides_at_the_same_look_as_the_simulation() -> None:
    settings = defaults(*ALL)
    arms = simulated(Scenario(canary_errors=0.02), 6, 400, seed=4)
    course = watched(arms, settings, share=0.1)
    for run in range(6):
        bins = [arm.bins(run, 400) for arm in arms]
        failed_s = next(now_s for now_s in range(10, 410, 10) if _verdict(bins, settings, now_s) == "fail")
        assert failed_s == course.failed_s[run]


def _verdict(bins: list, settings: JudgeSettings, now_s: int) -> str:
    seen = ([item for item in arm if item.at_unix_s < START_UNIX_S + now_s] for arm in bins)
    return judge(*seen, settings, now_unix_s=START_UNIX_S + now_s, expected_share=0.1).verdict
