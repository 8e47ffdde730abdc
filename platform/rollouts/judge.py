"""The canary's judge: pure, the same sums give the same verdict; how it judges is told in docs/rollouts.md.

pass: every guardrail is proven to lie below its ceiling. fail: a hard stop, or one guardrail is proven to lie above
its margin. unhealthy: the split of requests is not what was asked for, so nothing can be concluded. hold: all else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rollouts.bins import Bin, by_second, coarsened
from rollouts.contrasts import Sums, sums_of
from rollouts.guardrails import DEFAULT_GUARDRAILS, METRICS, Guardrail, JudgeSettings
from rollouts.hard_stops import hard_stop
from rollouts.sequences import (
    Contrast,
    better_evidence,
    lower_bound,
    split_evidence,
    upper_bound,
    worse_evidence,
)

__all__ = [
    "DEFAULT_GUARDRAILS",
    "METRICS",
    "Bin",
    "Finding",
    "Guardrail",
    "JudgeSettings",
    "Judgement",
    "coarsened",
    "judge",
]

WORDS = {
    "error_rate": "errors",
    "refusal_rate": "refusals",
    "invalid_rate": "invalid answers",
    "slow_p50": "requests slower than the stable version's median",
    "slow_p95": "requests slower than the stable version's 95th percentile",
    "slow_p99": "requests slower than the stable version's 99th percentile",
    "first_token_p95": "first tokens later than the stable version's 95th percentile",
    "next_token_p95": "gaps between tokens longer than the stable version's 95th percentile",
    "queue_p95": "waits in the queue longer than the stable version's 95th percentile",
    "drift_rate": "outputs that differ beyond the tolerance",
    "drift": "distance between outputs",
    "score": "business score",
}
# Metrics of time, which say nothing while a replica warms up.
TIMED = ("slow_p50", "slow_p95", "slow_p99", "first_token_p95", "next_token_p95", "queue_p95")
FARTHEST = 1e4
RATE_OVER_S = 120

FindingVerdict = Literal["pass", "fail", "hold", "no_data"]
Verdict = Literal["pass", "fail", "hold", "unhealthy"]
ExpectedShare = float | Sequence[tuple[float, float]] | None


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


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict, a sentence for people, and what it rests on. hard_stop: take all traffic away at once."""

    verdict: Verdict
    reason: str
    findings: tuple[Finding, ...]
    hard_stop: bool
    srm_p: float | None
    canary_requests: int
    stable_requests: int


@dataclass(frozen=True, slots=True)
class _Case:
    stable: tuple[Bin, ...]
    canary: tuple[Bin, ...]
    settings: JudgeSettings
    per_second: float
    share: float
    tests: int


def judge(
    stable: Sequence[Bin],
    canary: Sequence[Bin],
    settings: JudgeSettings,
    *,
    now_unix_s: float,
    expected_share: ExpectedShare,
    crashes: int = 0,
    load_failed: bool = False,
) -> Judgement:
    """What the bins of both arms say at `now_unix_s`.

    1. Bins are added up per second; those before the canary's first request and after now count for nothing.
    2. Hard stops. 3. One finding per guardrail. 4. The split. 5. The worst verdict wins: fail, unhealthy, hold, pass.

    expected_share: the canary's share of both arms' requests (0..1), or the shares with the second from which each
    held, oldest first; None: the split is not checked (sticky keys, steering, copies).
    """
    before, after = _concurrent(stable, canary, now_unix_s)
    requests = sum(item.requests for item in after), sum(item.requests for item in before)
    stop = hard_stop(before, after, crashes=crashes, crash_loop=settings.crashes, load_failed=load_failed)
    case = _case(before, after, settings, now_unix_s)
    findings = tuple(_finding(case, guardrail) for guardrail in settings.guardrails)
    srm_p = _split_p(before, after, expected_share, settings)
    verdict, reason = _verdict(findings, srm_p, settings, requests[0])
    if stop is not None:
        verdict, reason = "fail", stop
    return Judgement(verdict, reason, findings, stop is not None, srm_p, *requests)


def _concurrent(stable: Sequence[Bin], canary: Sequence[Bin], now_unix_s: float) -> tuple[tuple[Bin, ...], ...]:
    after = by_second(item for item in canary if item.at_unix_s <= now_unix_s)
    start = next((item.at_unix_s for item in after if item.requests or item.compared), None)
    if start is None:
        return (), ()
    before = by_second(item for item in stable if start <= item.at_unix_s <= now_unix_s)
    return before, tuple(item for item in after if item.at_unix_s >= start)


def _case(stable: tuple[Bin, ...], canary: tuple[Bin, ...], settings: JudgeSettings, now_unix_s: float) -> _Case:
    treated, control = sum(item.requests for item in canary), sum(item.requests for item in stable)
    since = now_unix_s - RATE_OVER_S
    recent = [item for item in canary if item.at_unix_s > since]
    span_s = min(RATE_OVER_S, now_unix_s - recent[0].at_unix_s + 1) if recent else RATE_OVER_S
    tests = sum(item.kind == "guardrail" for item in settings.guardrails)
    return _Case(
        stable,
        canary,
        settings,
        sum(item.requests or item.compared for item in recent) / max(1.0, span_s),
        treated / (treated + control) if treated + control else 0.0,
        max(1, tests),
    )


def _finding(case: _Case, guardrail: Guardrail) -> Finding:
    settings, metric = case.settings, guardrail.metric
    warm = case.canary[0].at_unix_s + settings.warmup_s if case.canary and metric in TIMED else 0
    stable, canary = ([b for b in arm if b.at_unix_s >= warm] for arm in (case.stable, case.canary))
    is_decrease = guardrail.direction == "decrease"
    sums = sums_of(metric, stable, canary, unit_s=settings.unit_s, is_decrease=is_decrease)
    ceiling = settings.ceiling(guardrail, case.share)
    if sums is None:
        return Finding(
            metric, None, None, None, None, None, guardrail.margin, "no_data", 0, 0, None, None,
            guardrail.kind, ceiling, guardrail.direction,
        )  # fmt: skip
    worse, better = math.log(case.tests / settings.alpha), math.log(1 / settings.pass_alpha)
    verdict = _decided(sums.contrast, guardrail.margin, ceiling, settings, worse, better)
    needed = 0 if verdict != "hold" else _needed(sums.contrast, guardrail.margin, ceiling, settings, worse, better)
    bounds = lower_bound(sums.contrast, worse), upper_bound(sums.contrast, better, ceiling)
    lower, upper = (-bounds[1], -bounds[0]) if is_decrease else bounds
    return Finding(
        metric,
        sums.stable,
        sums.canary,
        -sums.contrast.difference if is_decrease else sums.contrast.difference,
        lower,
        upper,
        guardrail.margin,
        verdict,
        round(sums.contrast.n),
        sums.units,
        needed,
        None if needed is None or not case.per_second else needed / case.per_second,
        guardrail.kind,
        ceiling,
        guardrail.direction,
    )


def _decided(
    data: Contrast, margin: float, ceiling: float, settings: JudgeSettings, worse: float, better: float
) -> FindingVerdict:
    if data.n < settings.min_units:
        return "hold"
    if worse_evidence(data, margin) >= worse:
        return "fail"
    return "pass" if better_evidence(data, ceiling, ceiling) >= better else "hold"


def _needed(
    data: Contrast, margin: float, ceiling: float, settings: JudgeSettings, worse: float, better: float
) -> int | None:
    """About how many more requests at the same rates decide it, to within a few per cent."""

    def is_open(factor: float) -> bool:
        return _decided(data.scaled(factor), margin, ceiling, settings, worse, better) == "hold"

    low, high = 1.0, max(FARTHEST, 2 * settings.min_units / data.n)
    if is_open(high):
        return None
    while high / low > 1.03:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if is_open(middle) else (low, middle)
    return max(1, math.ceil(data.n * (high - 1)))


def _split_p(
    stable: Sequence[Bin], canary: Sequence[Bin], expected: ExpectedShare, settings: JudgeSettings
) -> float | None:
    """Always-valid p-value of the split: the inverse of the evidence against it, multiplied over the weights held."""
    if expected is None:
        return None
    steps = [(0.0, expected)] if isinstance(expected, (int, float)) else sorted(expected)
    evidence, seen = 0.0, 0
    for (since, share), (until, _) in zip(steps, [*steps[1:], (math.inf, 0.0)], strict=True):
        if not 0 < share < 1:
            continue
        after = since + settings.settle_s if since else 0.0
        treated, control = (
            sum(item.drawn for item in arm if after <= item.at_unix_s < until) for arm in (canary, stable)
        )
        seen += treated + control
        evidence += split_evidence(treated, max(0, control), share)
    return min(1.0, math.exp(-max(0.0, evidence))) if seen else None


def _verdict(
    findings: tuple[Finding, ...], srm_p: float | None, settings: JudgeSettings, requests: int
) -> tuple[Verdict, str]:
    guards = [item for item in findings if item.kind == "guardrail"]
    failed = [item for item in guards if item.verdict == "fail"]
    if failed:
        return "fail", _told(failed[0])
    if srm_p is not None and srm_p < settings.srm_p:
        return "unhealthy", (
            "The split of requests between the versions is not the one that was asked for "
            f"(p = {srm_p:.2g}), so nothing can be concluded."
        )
    if requests < settings.min_units:
        return "hold", f"{requests} of at least {settings.min_units} requests to the new version so far."
    signals = [item for item in findings if item.kind == "signal" and item.verdict == "fail"]
    if signals:
        return "hold", f"A signal asks for a look: {_told(signals[0])}"
    waiting = [item for item in guards if item.verdict == "hold"]
    if waiting:
        return "hold", _waiting(waiting)
    if not any(item.verdict == "pass" for item in guards):
        return "hold", "No data to judge by yet."
    return "pass", "Every guardrail is proven to lie within what is tolerated."


def _told(item: Finding) -> str:
    told = f"{WORDS[item.metric][0].upper()}{WORDS[item.metric][1:]}: {_percent(item.canary)}"
    if item.stable is not None:
        told += f" against {_percent(item.stable)} on the stable version"
    bound = item.lower if item.direction == "increase" else item.upper
    return f"{told}; proven worse by {_points(bound)} at least, tolerated are {_points(item.margin)}."


def _waiting(waiting: list[Finding]) -> str:
    slowest = max(waiting, key=lambda item: math.inf if item.needed_requests is None else item.needed_requests)
    word = WORDS[slowest.metric]
    if slowest.needed_requests is None:
        return f"Not decided: {word}; at these rates more requests will not decide it."
    more = f"about {slowest.needed_requests:,} more requests to the new version"
    soon = "" if slowest.eta_s is None else f" (about {max(1, round(slowest.eta_s / 60))} min at the present rate)"
    return f"Not decided yet: {word} needs {more}{soon}."


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.2f} %"


def _points(share: float | None) -> str:
    return "none" if share is None else f"{100 * abs(share):.2f} points"
