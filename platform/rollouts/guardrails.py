"""What is judged and how strictly: metrics, margins, levels. Values only; every default has its reason beside it."""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass
from typing import Literal

METRICS = (
    "error_rate",
    "refusal_rate",
    "invalid_rate",
    "slow_p50",
    "slow_p95",
    "slow_p99",
    "first_token_p95",
    "next_token_p95",
    "queue_p95",
    "drift_rate",
    "drift",
    "score",
)
Kind = Literal["guardrail", "signal"]
Direction = Literal["increase", "decrease"]


@dataclass(frozen=True, slots=True)
class Guardrail:
    """One metric with what is tolerated, as a share of requests (0.002 = 0.2 percentage points).

    margin: worse by more than this -> fail (JudgeSettings.proof says how much must be proven). ceiling: proven not to be worse by more than this -> pass
    (None: the margin itself); see JudgeSettings.ease for small weights. kind: a guardrail rolls back, a signal only
    holds. direction: in which direction the metric gets worse. weight: its part of alpha, compared with the others'.
    """

    metric: str
    margin: float
    kind: Kind = "guardrail"
    direction: Direction = "increase"
    ceiling: float | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"unknown metric {self.metric!r}: choose one of {', '.join(METRICS)}")
        if not 0 < self.margin < 1:
            raise ValueError(f"{self.metric}: the margin is a share between 0 and 1, not {self.margin}")
        if self.ceiling is not None and not self.margin <= self.ceiling < 1:
            raise ValueError(f"{self.metric}: the ceiling lies between the margin and 1, not at {self.ceiling}")
        if self.kind not in ("guardrail", "signal") or self.direction not in ("increase", "decrease"):
            raise ValueError(f"{self.metric}: kind is guardrail or signal, direction is increase or decrease")


DEFAULT_GUARDRAILS: tuple[Guardrail, ...] = (
    Guardrail("error_rate", 0.002, ceiling=0.005, weight=6),
    Guardrail("refusal_rate", 0.002, ceiling=0.005),
    Guardrail("invalid_rate", 0.001, ceiling=0.005),
    Guardrail("slow_p50", 0.05, weight=2),
    Guardrail("slow_p95", 0.02, weight=2),
    Guardrail("slow_p99", 0.007, ceiling=0.01),
    Guardrail("first_token_p95", 0.02),
    Guardrail("next_token_p95", 0.02),
    # A canary has few replicas, so its queue says as much about their number as about the version.
    Guardrail("queue_p95", 0.05, kind="signal"),
    Guardrail("drift_rate", 0.05, kind="signal"),
    Guardrail("score", 0.05, kind="signal", direction="decrease"),
)


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """How sure the judge has to be.

    alpha: chance that an equal canary is ever rolled back, over all guardrails and all looks together. pass_alpha:
    chance that a canary beyond its ceiling ever passes. proof: to fail, a metric's estimate lies beyond its margin and
    this part of the margin is proven (1: all of it; less finds small harm sooner, at the same alpha). min_units: canary requests before any statistical verdict.
    unit_s: seconds of one unit of comparison. warmup_s: seconds from the canary's first request whose times (not
    errors) count for neither arm. srm_p: below it the split of requests is broken. ease: ceilings may grow by at most
    this factor at small weights (1: never). crashes: so many are a crash loop. settle_s: seconds after a change of
    weight that say nothing about the split.
    """

    guardrails: tuple[Guardrail, ...] = DEFAULT_GUARDRAILS
    alpha: float = 0.05
    pass_alpha: float = 0.05
    proof: float = 0.5
    min_units: int = 150
    unit_s: int = 10
    warmup_s: int = 5
    srm_p: float = 0.001
    ease: float = 5.0
    crashes: int = 3
    settle_s: int = 5

    def __post_init__(self) -> None:
        for name in ("alpha", "pass_alpha", "srm_p"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is a chance between 0 and 1, not {getattr(self, name)}")
        if not 0 <= self.proof <= 1:
            raise ValueError(f"proof is a part of the margin, 0 to 1, not {self.proof}")
        if self.min_units < 1 or self.unit_s < 1 or self.warmup_s < 0 or self.ease < 1 or self.crashes < 1:
            raise ValueError("min_units, unit_s, ease and crashes are at least 1, warmup_s is at least 0")
        if len({item.metric for item in self.guardrails}) != len(self.guardrails):
            raise ValueError("each metric has one guardrail at most")

    def ceiling(self, guardrail: Guardrail, share: float) -> float:
        """The difference to be excluded for a pass while the canary has `share` of the requests.

        Grows as 1 / sqrt(share x (1 - share)) from its value at one half, so that every step of a rollout needs about
        the same number of requests over both arms, and little exposure needs little proof.
        """
        base = guardrail.margin if guardrail.ceiling is None else guardrail.ceiling
        spread = 4 * share * (1 - share)
        factor = self.ease if spread <= self.ease**-2 else spread**-0.5
        return min(0.5, base * factor)

    def levels(self, metrics: Container[str]) -> dict[str, float]:
        """Log of the evidence at which each of `metrics` fails: alpha is split over the guardrails among them."""
        total = sum(item.weight for item in self.guardrails if item.metric in metrics and item.kind == "guardrail")
        return {
            item.metric: math.log(max(total, item.weight) / item.weight / self.alpha)
            for item in self.guardrails
            if item.metric in metrics
        }
