"""The canary's judge: pure, the same sums give the same verdict; how it judges is told in docs/rollouts.md.

pass: every guardrail is proven to lie below its ceiling. fail: a hard stop, or one guardrail lies beyond its margin and
enough of that is proven. unhealthy: the split of requests is not what was asked for, so nothing can be concluded. hold: all else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rollouts.bins import Bin, by_second, coarsened
from rollouts.contrasts import SLOW
from rollouts.findings import Finding, findings_of
from rollouts.guardrails import DEFAULT_GUARDRAILS, METRICS, Guardrail, JudgeSettings
from rollouts.hard_stops import hard_stop
from rollouts.sequences import split_evidence

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

Verdict = Literal["pass", "fail", "hold", "unhealthy"]
ExpectedShare = float | Sequence[tuple[float, float]] | None


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
    findings = findings_of(before, after, settings, now_unix_s)
    srm_p = _split_p(before, after, expected_share, settings)
    verdict, reason = _verdict(findings, srm_p, settings, requests[0])
    if verdict == "pass" and _is_warming(after, settings):
        verdict, reason = "hold", "The new version warms up; how long it takes is judged from then on."
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


def _is_warming(canary: Sequence[Bin], settings: JudgeSettings) -> bool:
    """Whether times are to be judged, and none have come that count: a busy endpoint is sure of the rest in a second."""
    is_timed = any(item.metric in SLOW for item in settings.guardrails)
    return is_timed and bool(canary) and canary[-1].at_unix_s < canary[0].at_unix_s + settings.warmup_s


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
    holding = _holding(findings, guards, settings, requests)
    if holding is not None:
        return "hold", holding
    return "pass", "Every guardrail is proven to lie within what is tolerated."


def _holding(
    findings: tuple[Finding, ...], guards: list[Finding], settings: JudgeSettings, requests: int
) -> str | None:
    most = max((item.n_requests for item in findings), default=0)
    if max(most, requests) < settings.min_units:
        return f"{max(most, requests)} of at least {settings.min_units} requests to the new version so far."
    signals = [item for item in findings if item.kind == "signal" and item.verdict == "fail"]
    if signals:
        return f"A signal asks for a look: {_told(signals[0])}"
    waiting = [item for item in guards if item.verdict == "hold"]
    if waiting:
        return _waiting(waiting)
    if not any(item.verdict == "pass" for item in guards):
        return "No data to judge by yet."
    return None


def _told(item: Finding) -> str:
    told = f"{WORDS[item.metric][0].upper()}{WORDS[item.metric][1:]}: {_percent(item.canary)}"
    if item.stable is not None:
        told += f" against {_percent(item.stable)} on the stable version"
    bound = item.lower if item.direction == "increase" else item.upper
    return f"{told}; {_points(bound)} worse at the very least, tolerated are {_points(item.margin)}."


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
