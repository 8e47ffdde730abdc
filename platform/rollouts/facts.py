"""What stepping is told and what it answers: values. Times are unix seconds, shares are basis points."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from inference.protocol.routes import Match
from rollouts.phases import Phase, Reason
from rollouts.plans import Traffic


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge says: "pass", "fail", "hold", "unhealthy" or "none" (nothing to judge yet), in words. unmet: the
    guardrails that are not met yet; requests: the candidate's since this step began.
    """

    verdict: str = "none"
    words: str = ""
    is_hard_stop: bool = False
    unmet: tuple[str, ...] = ()
    requests: int = 0
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class State:
    """Where a rollout stands. Times are unix seconds; weight_bp, mirror_bp: as last written on the endpoint."""

    phase: Phase
    step: int
    step_at: float
    phase_at: float
    weight_bp: int = 0
    mirror_bp: int = 0
    match: tuple[Match, ...] = ()
    capacity: int = 1
    candidate_before: int = 0
    held: bool = False
    approvals: int = 0
    has_had_traffic: bool = False
    is_rollback: bool = False
    reason: Reason = Reason.STARTED


@dataclass(frozen=True, slots=True)
class Facts:
    """What is seen now. wanted: replicas that are wished for; running: that have not stopped yet, ready or not; crashes:
    of the candidate's processes since it started; canary_message: what one of them says of itself; load_error: why its replicas were given up, "" while they were not.
    smoke: (passed, words) of the golden inputs, None while they are not known.
    """

    now: float
    stable_ready: int
    stable_wanted: int
    stable_running: int
    canary_ready: int
    canary_wanted: int
    crashes: int = 0
    load_error: str = ""
    canary_message: str = ""
    smoke: tuple[bool, str] | None = None
    verdict: Verdict = Verdict()


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be written, all at once. None: as it is. words: for the event, "" where none is worth one."""

    phase: Phase | None = None
    reason: Reason = Reason.STEP
    words: str = ""
    step: int | None = None
    traffic: Traffic | None = None
    stable_replicas: int | None = None
    canary_replicas: int | None = None
    ask_smoke: bool = False
    evidence: dict[str, Any] = field(default_factory=dict)

    @property
    def is_nothing(self) -> bool:
        return (
            not self.ask_smoke
            and not self.words
            and all(
                one is None for one in (self.phase, self.step, self.traffic, self.stable_replicas, self.canary_replicas)
            )
        )


NOTHING = Decision()
