"""One finding per guardrail: both arms' means, the always-valid bounds of their difference, what is decided by them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rollouts.bins import Bin
from rollouts.contrasts import SLOW, Sums, sums_of
from rollouts.guardrails import Guardrail, JudgeSettings
from rollouts.sequences import Contrast, better_evidence, lower_bound, upper_bound, worse_evidence

FARTHEST = 1e4
RATE_OVER_S = 120

FindingVerdict = Literal["pass", "fail", "hold", "no_data"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One metric: means of both arms, the difference canary - stable with its always-valid bounds, the verdict.

    margin: a proven difference beyond it fails; ceiling: what must be excluded for a pass at this weight. n_requests:
    the canary's values; n_units: units of time with values in both arms; needed_requests: about so many more requests
    of the canary until this metric is decided if rates stay (0: decided, None: cannot be said); eta_s: how long at the
    canary's present rate.
    """

    metric: str
    stable: float | None
    canary: float | None
    difference: float | None
    lower: float | None
    upper: float | None
    margin: float
    verdict: FindingVerdict
    n_requests: int
    n_units: int
    needed_requests: int | None
    eta_s: float | None
    kind: str = "guardrail"
    ceiling: float | None = None
    direction: str = "increase"


def findings_of(
    stable: Sequence[Bin], canary: Sequence[Bin], settings: JudgeSettings, now_unix_s: float
) -> tuple[Finding, ...]:
    """A finding for each of the guardrails, over concurrent bins, oldest first."""
    share = _share(stable, canary)
    per_second = _per_second(canary, now_unix_s)
    found = {item.metric: _sums(item, stable, canary, settings) for item in settings.guardrails}
    levels = settings.levels([metric for metric, sums in found.items() if sums is not None])
    findings = []
    for item in settings.guardrails:
        sums, ceiling = found[item.metric], settings.ceiling(item, share)
        if sums is None:
            findings.append(_nothing(item, ceiling))
        else:
            rule = Rule(item, settings, ceiling, levels[item.metric])
            findings.append(_finding(rule, sums, per_second))
    return tuple(findings)


@dataclass(frozen=True, slots=True)
class Rule:
    """A guardrail with the ceiling and the level in force. Decides on a contrast."""

    guardrail: Guardrail
    settings: JudgeSettings
    ceiling: float
    level: float

    def verdict(self, data: Contrast) -> FindingVerdict:
        """pass, fail or hold."""
        if data.n < self.settings.min_units:
            return "hold"
        if self.fails(data):
            return "fail"
        return "pass" if self.passes(data) else "hold"

    def fails(self, data: Contrast) -> bool:
        """The estimate lies beyond the margin, and `proof` of the margin is proven."""
        margin = self.guardrail.margin
        return data.difference > margin and worse_evidence(data, margin * self.settings.proof) >= self.level

    def passes(self, data: Contrast) -> bool:
        """The ceiling is excluded."""
        return better_evidence(data, self.ceiling, self.ceiling) >= self.safe_level

    @property
    def safe_level(self) -> float:
        """Log of the evidence at which the ceiling is excluded: all have to pass, so this one is not split."""
        return -math.log(self.settings.pass_alpha)

    def needed(self, data: Contrast) -> int | None:
        """About how many more requests at the same rates decide it, to within a few per cent."""
        low, high = 1.0, max(FARTHEST, 2 * self.settings.min_units / data.n)
        if self.verdict(data.scaled(high)) == "hold":
            return None
        while high / low > 1.03:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.verdict(data.scaled(middle)) == "hold" else (low, middle)
        return max(1, math.ceil(data.n * (high - 1)))


def _finding(rule: Rule, sums: Sums, per_second: float) -> Finding:
    data, guardrail = sums.contrast, rule.guardrail
    verdict = rule.verdict(data)
    needed = rule.needed(data) if verdict == "hold" else 0
    lower, upper = lower_bound(data, rule.level), upper_bound(data, rule.safe_level, rule.ceiling)
    is_decrease = guardrail.direction == "decrease"
    return Finding(
        guardrail.metric,
        sums.stable,
        sums.canary,
        -data.difference if is_decrease else data.difference,
        -upper if is_decrease else lower,
        -lower if is_decrease else upper,
        guardrail.margin,
        verdict,
        round(data.n),
        sums.units,
        needed,
        None if needed is None or not per_second else needed / per_second,
        guardrail.kind,
        rule.ceiling,
        guardrail.direction,
    )


def _nothing(guardrail: Guardrail, ceiling: float) -> Finding:
    return Finding(
        guardrail.metric,
        stable=None,
        canary=None,
        difference=None,
        lower=None,
        upper=None,
        margin=guardrail.margin,
        verdict="no_data",
        n_requests=0,
        n_units=0,
        needed_requests=None,
        eta_s=None,
        kind=guardrail.kind,
        ceiling=ceiling,
        direction=guardrail.direction,
    )


def _sums(guardrail: Guardrail, stable: Sequence[Bin], canary: Sequence[Bin], settings: JudgeSettings) -> Sums | None:
    if guardrail.metric in SLOW and canary:
        warm = canary[0].at_unix_s + settings.warmup_s
        stable, canary = ([item for item in arm if item.at_unix_s >= warm] for arm in (stable, canary))
    is_decrease = guardrail.direction == "decrease"
    return sums_of(guardrail.metric, stable, canary, unit_s=settings.unit_s, is_decrease=is_decrease)


def _share(stable: Sequence[Bin], canary: Sequence[Bin]) -> float:
    treated, control = (sum(item.requests for item in arm) for arm in (canary, stable))
    return treated / (treated + control) if treated + control else 0.0


def _per_second(canary: Sequence[Bin], now_unix_s: float) -> float:
    recent = [item for item in canary if item.at_unix_s > now_unix_s - RATE_OVER_S]
    if not recent:
        return 0.0
    span_s = max(1.0, min(RATE_OVER_S, now_unix_s - recent[0].at_unix_s + 1))
    return sum(item.requests or item.compared for item in recent) / span_s
