"""What is asked of a candidate before it gets traffic: the golden inputs, and, where the plan says so, what was recorded."""

from __future__ import annotations

from typing import Any

from endpoints.models import Endpoint
from inference.errors import Conflict
from rollouts import replay
from rollouts.models import Replay, Rollout
from rollouts.plans import Plan
from rollouts.smoke import smoke
from rollouts.writing import AUTOPILOT, plan_of


def ask(rollout: Rollout, endpoint: Endpoint) -> dict[str, Any] | None:
    """The report of both; None while a replay goes on, to be asked again later."""
    plan = plan_of(rollout)
    replayed = _replayed(rollout, endpoint, plan) if plan.settings.replay else (True, "")
    if replayed is None:
        return None
    report = smoke(endpoint, rollout.candidate).record()
    passed, words = replayed
    return {
        **report,
        "passed": report["passed"] and passed,
        "words": f"{report['words']} {words}".strip(),
        "replay": words,
    }


def _replayed(rollout: Rollout, endpoint: Endpoint, plan: Plan) -> tuple[bool, str] | None:
    """Whether the newest replay against the candidate went well, in words; starts one where there is none."""
    since = Replay.objects.filter(endpoint=endpoint, candidate=rollout.candidate, created_at__gte=rollout.created_at)
    if since.filter(status__in=replay.ACTIVE).exists():
        return None
    if not since.exists():
        try:
            replay.start_replay(
                endpoint=endpoint, version=rollout.candidate, actor=AUTOPILOT, comparison=plan.settings.comparison,
                max_drift_share=plan.settings.max_drift_share,
            )  # fmt: skip
        except Conflict as error:
            return False, f"The plan asks for a replay: {error.message}."
        return None
    verdict, words = replay.replay_gate(endpoint, rollout.candidate)
    return verdict == "passed", words
