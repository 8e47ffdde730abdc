"""A plan's estimated timeline: honest about traffic, never beyond what the plan allows, near what the judge really takes."""

from __future__ import annotations

import random
import statistics

import pytest

from inference.protocol.routes import WEIGHT_TOTAL_BP
from rollouts import plans
from rollouts.judge import Bin, JudgeSettings, judge
from rollouts.plans import Analyze, Approve, Pause, Plan, PlanSettings, SetWeight
from rollouts.timeline import FIRST_BUCKET, HUMP, estimate

SETTINGS = JudgeSettings()


@pytest.mark.parametrize("name", sorted(plans.TEMPLATES))
@pytest.mark.parametrize("rate", [0.0, 0.3, 12.0, 400.0])
def test_no_step_is_longer_than_the_plan_allows(name: str, rate: float) -> None:
    found = estimate(plans.TEMPLATES[name], rate_per_s=rate, settings=SETTINGS)
    assert len(found.steps) == len(plans.TEMPLATES[name].steps)
    assert all(0 <= step.expected_s <= step.most_s for step in found.steps)
    assert found.expected_s <= found.most_s
    starts = [step.starts_s for step in found.steps]
    assert starts == sorted(starts)


def test_more_traffic_never_takes_longer() -> None:
    times = [
        estimate(plans.TEMPLATES["standard"], rate_per_s=rate, settings=SETTINGS).expected_s
        for rate in (0.5, 2, 8, 32, 128, 512)
    ]
    assert times == sorted(times, reverse=True)
    assert times[0] > 10 * times[-1]


def test_words_tell_the_rate_and_what_it_waits_for() -> None:
    plan = Plan("p", [SetWeight(1000), Analyze(), Approve("operator", 2), Pause(), SetWeight(10_000)])
    assert estimate(plan, rate_per_s=50, settings=SETTINGS).words.startswith("about ")
    assert " at 50 requests/s, at most 15 min; and it waits for 2 approvals and a person" in (
        estimate(plan, rate_per_s=50, settings=SETTINGS).words
    )
    quiet = estimate(plan, rate_per_s=0, settings=SETTINGS)
    assert quiet.words.startswith("no traffic in the last minutes: each judgement waits for traffic, at most 15 min")
    slow = estimate(plan, rate_per_s=0.1, settings=SETTINGS)
    assert "at step 2 the judge needs more traffic" in slow.words
    assert slow.steps[1].waits_for == "more traffic or a person"


def test_fixed_pauses_and_loading_are_added() -> None:
    plan = Plan("p", [SetWeight(1000), Pause(60), SetWeight(10_000)], PlanSettings())
    found = estimate(plan, rate_per_s=10, settings=SETTINGS, load_s=5)
    assert (found.expected_s, found.most_s) == (65, 65)
    assert found.steps[2].starts_s == 65


def test_the_estimate_is_near_what_the_judge_takes_with_random_traffic() -> None:
    """Two versions that are alike, with requests that come and take as they like: the judge's own time to pass."""
    rate, share = 50.0, 0.1
    plan = Plan("p", [SetWeight(int(share * WEIGHT_TOTAL_BP)), Analyze(max_duration_s=3600), SetWeight(10_000)])
    told = estimate(plan, rate_per_s=rate, settings=SETTINGS).steps[1].expected_s
    taken = [_time_to_pass(random.Random(seed), rate, share) for seed in range(9)]
    assert told / 1.5 <= statistics.median(taken) <= told * 4, (told, taken)


def _time_to_pass(dice: random.Random, rate: float, share: float) -> float:
    arms: tuple[list[Bin], list[Bin]] = ([], [])
    for second in range(3600):
        for bins, mean in zip(arms, (rate * (1 - share), rate * share), strict=True):
            count = sum(dice.random() < mean / 200 for _ in range(200))
            latency: dict[int, int] = {}
            for bucket in dice.choices(range(len(HUMP)), HUMP, k=count):
                latency[FIRST_BUCKET + bucket] = latency.get(FIRST_BUCKET + bucket, 0) + 1
            bins.append(Bin(second, requests=count, latency=latency))
        if second % 10 == 9:
            found = judge(arms[0], arms[1], SETTINGS, now_unix_s=second, expected_share=None)
            if found.verdict == "pass":
                return second + 1
    return 3600
