"""What a rollout's page says: figures, intervals as pictures, evidence, effects of buttons."""

from __future__ import annotations

from typing import Any

import pytest

from console import rollout_words as words
from registry.models import Version
from rollouts.models import Rollout
from rollouts.plans import Analyze, Plan, PlanSettings, SetWeight


def finding(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "metric": "error_rate", "stable": 0.002, "canary": 0.004, "difference": 0.002, "lower": -0.001, "upper": 0.005,
        "margin": 0.004, "ceiling": 0.01, "verdict": "hold", "n_requests": 900, "n_units": 12, "needed_requests": 1234,
        "eta_s": 150.0, "kind": "guardrail", "direction": "increase",
    }  # fmt: skip
    return found | changes


def only(**changes: Any) -> words.Guard:
    (found,) = words.guards({"findings": [finding(**changes)]})
    return found


@pytest.mark.parametrize(
    ("metric", "value", "signed", "said"),
    [("error_rate", 0.0021, False, "0.21 %"), ("error_rate", 0.0021, True, "+0.21 %"), ("slow_p50", 0.5, False, "50.0 %"),
     ("score", 0.4214, False, "0.421"), ("score", -0.02, True, "-0.02"), ("drift", None, True, "\N{EN DASH}")],
)  # fmt: skip
def test_values(metric: str, value: float | None, signed: bool, said: str) -> None:
    assert words.value_words(metric, value, signed=signed) == said


def test_a_guard_tells_what_it_needs() -> None:
    assert only().needs == "about 1,234 more requests (~2.5 min)"
    assert only(eta_s=None).needs == "about 1,234 more requests"
    assert only(needed_requests=None).needs == "cannot be said yet"
    assert only(needed_requests=1, eta_s=1.0).needs == "about 1 more request (~1 s)"
    assert only(verdict="pass").needs == ""


def test_an_interval_is_drawn_against_zero_and_the_margin() -> None:
    picture = only().picture
    # Four margins of 0.004 to each side: 0.016 is the whole half.
    assert picture == {"low": 46.9, "width": 18.7, "at": 56.2, "margin": 62.5}


def test_what_is_wider_than_the_picture_is_cut_off_at_its_edge() -> None:
    picture = only(lower=None, upper=0.9, difference=0.5).picture
    assert picture is not None
    assert (picture["low"], picture["low"] + picture["width"], picture["at"]) == (0.0, 100.0, 100.0)


def test_a_metric_that_gets_worse_by_falling_has_its_margin_below_zero() -> None:
    guard = only(metric="score", direction="decrease", margin=0.05, difference=-0.01, lower=-0.03, upper=0.01)
    assert guard.margin == "-0.05"
    assert guard.picture is not None
    assert guard.picture["margin"] < 50


def test_metrics_without_data_are_named_apart() -> None:
    judgement = {"findings": [finding(), finding(metric="score", verdict="no_data", difference=None)]}
    assert [one.metric for one in words.guards(judgement)] == ["error_rate"]
    assert words.silent(judgement) == ["Business score"]
    assert words.guards(None) == words.silent(None) == []


def test_evidence_is_told_in_lines() -> None:
    lines = words.evidence_lines(
        {"verdict": "fail", "srm_p": 0.5, "findings": [finding(verdict="fail")], "raw": {"x": 1}}
    )
    assert lines == [
        "verdict: fail",
        "srm p: 0.5",
        "Errors: stable 0.20 %, candidate 0.40 %, difference -0.10 % to 0.50 %: fails",
    ]


def rollout(phase: str = "progressing", *, step: int = 1, weight_bp: int = 1000, held: bool = False) -> Rollout:
    return Rollout(
        phase=phase, step=step, weight_bp=weight_bp, held=held, stable=Version(number=7), candidate=Version(number=8)
    )


RAMP = Plan("ramp", [SetWeight(1000), Analyze(), SetWeight(3500), Analyze(), SetWeight(10_000)])


def asks(verb: str, plan: Plan = RAMP, rate: float = 48.0, **where: Any) -> str:
    found = {one.verb: one for one in words.deeds(rollout(**where), plan, may_deploy=True, may_approve=False)}
    return found[verb].asks(rate)


def test_a_button_says_its_effect_in_numbers() -> None:
    assert asks("promote") == (
        "Goes on to “35 % of the traffic”, whatever the judge says. Moves 25 % = about 12 requests/s more to version 8."
    )
    assert asks("promote", step=2, weight_bp=3500).endswith("Version 8 keeps its share.")
    assert "Moves 90 % = about 43.2 requests/s more to version 8" in asks("promote_full")
    assert asks("abort").startswith("Moves 10 % = about 4.8 requests/s back to version 7, within a second.")
    assert asks("pause", rate=0.0).startswith("Version 8 keeps 10 % until")
    assert asks("abort", weight_bp=0).startswith("Version 7 has all of the traffic and keeps it")


def test_a_plan_that_only_reports_can_be_ended() -> None:
    plan = Plan("report", [SetWeight(1000), Analyze()], PlanSettings(outcome="report"))
    assert "ends here with its report" in asks("promote", plan)
    assert "promote" not in [
        one.verb for one in words.deeds(rollout(), Plan("end", plan.steps), may_deploy=True, may_approve=False)
    ]


def test_without_surge_nothing_is_promised_within_a_second() -> None:
    plan = Plan("tight", RAMP.steps, PlanSettings(surge=False))
    assert "within a second" not in asks("abort", plan)
    assert "replica by replica" in asks("abort", plan)


@pytest.mark.parametrize(
    ("phase", "verbs"),
    [("pending", ["abort"]), ("promoting", ["abort"]), ("aborting", []), ("succeeded", []), ("rolled_back", []),
     ("inconclusive", ["promote", "pause", "extend", "promote_full", "abort"])],
)  # fmt: skip
def test_there_are_only_buttons_that_the_phase_allows(phase: str, verbs: list[str]) -> None:
    found = words.deeds(rollout(phase), RAMP, may_deploy=True, may_approve=True)
    assert [one.verb for one in found] == verbs
    assert words.deeds(rollout(phase), RAMP, may_deploy=False, may_approve=True) == []
