"""Plans: read strictly, templates that make sense, and what they want of the traffic."""

from __future__ import annotations

import pytest

from inference.errors import InvalidInput
from rollouts import plans
from rollouts.judge import METRICS
from rollouts.plans import Analyze, Mirror, Plan, PlanSettings, SetScale, SetWeight, Traffic


def test_every_template_makes_sense_and_survives_its_json() -> None:
    for plan in plans.TEMPLATES.values():
        assert plans.checked(plan) is plan
        assert plans.read(plans.as_json(plan)) == plan
        assert all(plans.words(step) for step in plan.steps)


def test_plans_and_the_judge_know_the_same_metrics() -> None:
    assert set(plans.METRICS) == set(METRICS)


def test_the_standard_plan_copies_first_and_then_ramps_up() -> None:
    weights = [step.weight_bp for step in plans.TEMPLATES["standard"].steps if isinstance(step, SetWeight)]
    assert isinstance(plans.TEMPLATES["standard"].steps[0], Mirror)
    assert weights == [100, 500, 2500, 5000, 10_000]


@pytest.mark.parametrize("name", ["standard", "Default", "A/B", "shadow", "fast", "cautious"])
def test_templates_are_found_by_the_names_people_use(name: str) -> None:
    assert plans.template(name) is not None


def _plan(**changes: object) -> dict[str, object]:
    return {"name": "mine", "steps": [{"kind": "set_weight", "weight_bp": 10_000}], **changes}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": []}, "no steps"),
        ({"steps": [{"kind": "set_weigth", "weight_bp": 1}]}, "set_weigth"),
        ({"steps": [{"kind": "set_weight", "weight_bp": 10_001}]}, "10000"),
        ({"steps": [{"kind": "set_weight", "weight_bp": 500}, {"kind": "set_weight", "weight_bp": 100}]}, "must rise"),
        ({"steps": [{"kind": "analyze", "metrics": ["latency"]}]}, "no metric 'latency'"),
        ({"steps": [{"kind": "analyze", "min_duration_s": 50, "max_duration_s": 10}]}, "above max_duration_s"),
        ({"steps": [{"kind": "set_scale"}]}, "either replicas or percent"),
        ({"steps": [{"kind": "route", "match": [{"source": "cookie"}]}]}, "source must be one of"),
        ({"steps": [{"kind": "route", "match": [{"source": "header"}]}]}, "needs its name"),
        ({"settings": {"guardrails": []}}, "no guardrail"),
        ({"settings": {"guardrails": [{"metric": "drift", "margin": 0.1, "kind": "signal"}]}}, "no guardrail"),
        ({"settings": {"on_inconclusive": "pass"}}, "on_inconclusive"),
        ({"surge": True}, "surge"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_in_words(changes: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        plans.read(_plan(**changes))


def test_a_plan_without_guardrails_needs_a_reason() -> None:
    plan = plans.read(_plan(settings={"guardrails": [], "unguarded": "a toy"}))
    assert plan.settings.unguarded == "a toy"


def test_what_a_step_wants_follows_from_the_steps_before_it() -> None:
    plan = Plan("p", [Mirror(5000), SetWeight(100), Analyze(), Mirror(0), SetWeight(2500)])
    assert [plans.traffic_at(plan, step) for step in range(5)] == [
        Traffic(0, 5000), Traffic(100, 5000), Traffic(100, 5000), Traffic(100, 0), Traffic(2500, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("weight", "capacity", "wanted"), [(0, 4, 1), (1, 4, 1), (2500, 4, 1), (2501, 4, 2), (10_000, 3, 3)]
)
def test_a_share_needs_the_replicas_that_carry_it(weight: int, capacity: int, wanted: int) -> None:
    assert plans.scale_at(Plan("p", [SetWeight(weight)]), 0, capacity) == wanted


def test_a_wished_scale_counts_when_it_is_more_than_the_share_needs() -> None:
    plan = Plan("p", [SetScale(percent=50), SetWeight(100), SetWeight(7500)], PlanSettings())
    assert [plans.scale_at(plan, step, 4) for step in range(3)] == [2, 2, 3]


def test_durations_are_said_as_people_say_them() -> None:
    assert [plans.spoken(s) for s in (5, 90, 5400, 172_800)] == ["5 s", "1.5 min", "1.5 h", "2 d"]
