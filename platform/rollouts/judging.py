"""From stored sums to the judge's verdict: which arms are compared, what was asked for, and what a step is told.

The judge is pure and reads sums alone, so what is here is only fetching, remembering what is old enough to be final,
and words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from rollouts.facts import Verdict
from rollouts.judge import DEFAULT_GUARDRAILS, Bin, Guardrail, Judgement, JudgeSettings, coarsened, judge
from rollouts.models import Rollout, RolloutEvent
from rollouts.plans import Plan
from telemetry.judged import JudgedBin, judged_bins

# Sums that are older than this do not change any more: a gateway that could not send them sooner has dropped them.
FINAL_AFTER_S = 60.0
REMEMBERED = 64
SECONDS_FOR_S = 900
COARSE_S = 10
PROCESS_CRASHES = 2
Arms = dict[tuple[int, str], list[Bin]]


@dataclass(frozen=True, slots=True)
class Told:
    """A judgement of live traffic, one of the copies where there are any, and the candidate's bins of each."""

    live: Judgement
    copies: Judgement | None
    live_bins: Sequence[Bin]
    copy_bins: Sequence[Bin]
    record: dict[str, Any] | None

    def verdict(self, since: datetime, of: str) -> Verdict:
        """For a step that began at `since` and judges live traffic or the mirror's copies. A guard that fails on the
        other of the two counts too.
        """
        other = self.live if of == "mirror" else self.copies
        chosen = (self.copies if of == "mirror" else self.live) or self.live
        if other is not None and other.verdict == "fail" and chosen.verdict != "fail":
            chosen = other
        bins = self.copy_bins if of == "mirror" else self.live_bins
        from_s = since.timestamp()
        return Verdict(
            verdict=chosen.verdict,
            words=chosen.reason,
            is_hard_stop=chosen.hard_stop,
            unmet=tuple(one.metric for one in chosen.findings if one.verdict not in {"pass", "no_data"}),
            requests=sum(one.requests for one in bins if one.at_unix_s >= from_s),
            evidence=_record(chosen),
        )


class Remembered:
    """The bins of each rollout's endpoint since it has traffic: old ones are kept, by ten seconds where they are older
    than the judge's eye for single seconds, and the newest are read anew.
    """

    def __init__(self) -> None:
        self._final: dict[str, tuple[int, Arms]] = {}

    def bins(self, rollout: Rollout, now: datetime) -> Arms:
        assert rollout.judged_from is not None
        key, now_s = str(rollout.pk), now.timestamp()
        until, held = self._final.pop(key, (int(rollout.judged_from.timestamp()), {}))
        fresh = _converted(judged_bins(rollout.endpoint_name, until, now_s + 1))
        final_until = max(until, int(now_s - FINAL_AFTER_S))
        coarse_until = int(now_s - SECONDS_FOR_S) // COARSE_S * COARSE_S
        kept: Arms = {}
        for arm in held.keys() | fresh.keys():
            final = [*held.get(arm, []), *(one for one in fresh.get(arm, []) if one.at_unix_s < final_until)]
            old = [one for one in final if one.at_unix_s < coarse_until]
            kept[arm] = [*coarsened(old, COARSE_S), *final[len(old) :]]
        self._final[key] = (final_until, kept)
        while len(self._final) > REMEMBERED:
            self._final.pop(next(iter(self._final)))
        return {arm: [*held.get(arm, []), *fresh.get(arm, [])] for arm in held.keys() | fresh.keys()}


_remembered = Remembered()


def judge_rollout(rollout: Rollout, plan: Plan, crashes: int, now: datetime) -> Told:
    """Judges what the rollout's endpoint did since the candidate has traffic or copies."""
    arms = _remembered.bins(rollout, now)
    candidate, settings = rollout.candidate.number, settings_of(plan)
    stable = arms.get((rollout.stable.number, "primary"), [])
    live, copies = arms.get((candidate, "canary"), []), arms.get((candidate, "shadow"), [])
    now_s = now.timestamp()
    told = judge(
        stable, _with_drift(live, copies), settings, now_unix_s=now_s, expected_share=asked_shares(rollout),
        crashes=crashes,
    )  # fmt: skip
    copied = None
    if any(one.requests for one in copies):
        copied = judge(stable, copies, settings, now_unix_s=now_s, expected_share=None, crashes=crashes)
    shown = copied if copied is not None and not any(one.requests for one in live) else told
    return Told(told, copied, live, copies, _record(shown))


def settings_of(plan: Plan) -> JudgeSettings:
    """The judge's settings from a plan's. A score is judged as a guardrail where the plan says so."""
    asked = plan.settings.guardrails
    usual = {one.metric: one for one in DEFAULT_GUARDRAILS}
    if asked is None:
        guardrails = DEFAULT_GUARDRAILS
    else:
        guardrails = tuple(
            Guardrail(
                one.metric, max(one.margin, 1e-6), one.kind, "decrease" if one.metric == "score" else "increase",
                ceiling=_ceiling(one.margin, usual.get(one.metric)),
                weight=usual[one.metric].weight if one.metric in usual else 1.0,
            )
            for one in asked
        )  # fmt: skip
    return JudgeSettings(guardrails=guardrails, alpha=plan.settings.alpha, crashes=PROCESS_CRASHES)


def _ceiling(margin: float, usual: Guardrail | None) -> float | None:
    """As far above the margin as the metric's usual ceiling is above its usual margin."""
    if usual is None or usual.ceiling is None:
        return None
    return min(0.99, max(margin, margin * usual.ceiling / usual.margin))


def asked_shares(rollout: Rollout) -> list[tuple[float, float]]:
    """(since, the candidate's share 0..1) as the rollout's events say, oldest first."""
    number, found = str(rollout.candidate.number), []
    rows = RolloutEvent.objects.filter(rollout=rollout).order_by("seq").values_list("at", "weights_after")
    last: float | None = None
    for at, weights in rows:
        share = weights.get(number, 0) / 10_000
        if share != last:
            found.append((at.timestamp(), share))
            last = share
    return found


def _converted(found: Mapping[tuple[int, str], Sequence[JudgedBin]]) -> Arms:
    return {arm: [_bin(one) for one in bins] for arm, bins in found.items()}


def _bin(one: JudgedBin) -> Bin:
    names = (name for name in Bin.__dataclass_fields__ if name != "at_unix_s")
    return Bin(one.at_unix_s, **{name: getattr(one, name) for name in names})


def _with_drift(live: list[Bin], copies: list[Bin]) -> list[Bin]:
    """The live bins, with the comparisons that copies of the same seconds brought."""
    compared = {one.at_unix_s: one for one in copies if one.compared}
    if not compared:
        return live
    return [
        replace(one, compared=c.compared, drifted=c.drifted, drift_sum=c.drift_sum, drift_sq=c.drift_sq)
        if (c := compared.pop(one.at_unix_s, None)) is not None
        else one
        for one in live
    ]


def _record(judgement: Judgement) -> dict[str, Any]:
    """As it is stored, shown and put into events."""
    return {
        "verdict": judgement.verdict,
        "words": judgement.reason,
        "hard_stop": judgement.hard_stop,
        "srm_p": judgement.srm_p,
        "canary_requests": judgement.canary_requests,
        "stable_requests": judgement.stable_requests,
        "findings": [_finding(one) for one in judgement.findings],
    }


def _finding(one: Any) -> dict[str, Any]:
    return {name: _rounded(getattr(one, name)) for name in one.__dataclass_fields__}


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
