"""Phases and reasons of a rollout: the words that scripts rely on. Pure."""

from __future__ import annotations

from enum import StrEnum


class Phase(StrEnum):
    """Where a rollout stands (console.md 1.2, point 2)."""

    PENDING = "pending"
    LOADING = "loading"
    SMOKE = "smoke"
    PROGRESSING = "progressing"
    PAUSED = "paused"
    AWAITING_APPROVAL = "awaiting_approval"
    INCONCLUSIVE = "inconclusive"
    PROMOTING = "promoting"
    SUCCEEDED = "succeeded"
    ABORTING = "aborting"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"


FINAL = frozenset({Phase.SUCCEEDED, Phase.ROLLED_BACK, Phase.FAILED})
ACTIVE = frozenset(Phase) - FINAL
# Those in which the plan's steps are walked; the guards are armed in all of them and while promoting.
ON_THE_WAY = frozenset({Phase.PROGRESSING, Phase.PAUSED, Phase.AWAITING_APPROVAL, Phase.INCONCLUSIVE})
_END = frozenset({Phase.ABORTING})
MOVES: dict[Phase, frozenset[Phase]] = {
    Phase.PENDING: frozenset({Phase.LOADING}) | _END,
    Phase.LOADING: frozenset({Phase.SMOKE, Phase.PROMOTING}) | _END,
    Phase.SMOKE: frozenset({Phase.PROGRESSING, Phase.PROMOTING}) | _END,
    **{phase: (ON_THE_WAY - {phase}) | {Phase.PROMOTING, Phase.SUCCEEDED} | _END for phase in ON_THE_WAY},
    Phase.PROMOTING: frozenset({Phase.SUCCEEDED}) | _END,
    Phase.ABORTING: frozenset({Phase.ROLLED_BACK, Phase.FAILED}),
    Phase.SUCCEEDED: frozenset(),
    Phase.ROLLED_BACK: frozenset(),
    Phase.FAILED: frozenset(),
}


class Reason(StrEnum):
    """Why a rollout is where it is."""

    STARTED = "started"
    WAITING_FOR_REPLICAS = "waiting_for_replicas"
    LOAD_FAILED = "load_failed"
    LOAD_TIMEOUT = "load_timeout"
    SMOKE = "smoke"
    SMOKE_FAILED = "smoke_failed"
    STEP = "step"
    WAITING = "waiting"
    JUDGE_PASSED = "judge_passed"
    GUARDRAIL = "guardrail"
    HARD_STOP = "hard_stop"
    UNDECIDED = "undecided"
    UNHEALTHY = "unhealthy"
    CAPACITY = "capacity"
    PERSON = "person"
    APPROVAL = "approval"
    DECISION = "decision"
    SUPERSEDED = "superseded"
    DONE = "done"
    GONE = "gone"


REASONS: dict[str, str] = {
    Reason.STARTED: "It has been started.",
    Reason.WAITING_FOR_REPLICAS: "It waits for replicas of the candidate.",
    Reason.LOAD_FAILED: "The candidate cannot be loaded.",
    Reason.LOAD_TIMEOUT: "The candidate's replicas were not ready in time.",
    Reason.SMOKE: "The candidate is asked the golden inputs.",
    Reason.SMOKE_FAILED: "The candidate's answers to the golden inputs are wrong.",
    Reason.STEP: "It goes through its plan.",
    Reason.WAITING: "It waits as its plan says.",
    Reason.JUDGE_PASSED: "The judge is sure that the candidate is no worse.",
    Reason.GUARDRAIL: "The judge is sure that the candidate is worse.",
    Reason.HARD_STOP: "The candidate is plainly broken.",
    Reason.UNDECIDED: "The longest time is over and the judge cannot tell.",
    Reason.UNHEALTHY: "The traffic did not split as it should have, so nothing can be told from it.",
    Reason.CAPACITY: "Too few of the candidate's replicas are ready for its share.",
    Reason.PERSON: "A person did it.",
    Reason.APPROVAL: "It waits for an approval.",
    Reason.DECISION: "The plan is done; a person decides.",
    Reason.SUPERSEDED: "A newer candidate has been started.",
    Reason.DONE: "It is done.",
    Reason.GONE: "Its endpoint or one of its versions is gone.",
}
