"""Rollouts as the console reads them: those of the actor's teams, their track, arms and findings, in few queries."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from django.db.models import QuerySet
from django.utils import timezone

from accounts.permissions import Actor, Verb, can, visible
from console import rollout_words as words
from console.reading import stamp
from endpoints.models import Endpoint, Variant
from inference.errors import NotFound
from inference.protocol.routes import WEIGHT_TOTAL_BP
from rollouts import plans
from rollouts.actions import APPROVERS
from rollouts.models import Reading, Rollout, RolloutEvent
from rollouts.phases import ACTIVE, ON_THE_WAY, REASONS, Phase
from rollouts.plans import Approve, Plan
from rollouts.preflight import LIVE, rate_of
from rollouts.writing import plan_of
from telemetry.queries import Summary, series, summary
from telemetry.shadow_report import ShadowReport, shadow_report

CHART_S = 300
NOW_S = 30
MAX_LISTED = 50
MAX_EVENTS = 200
EVENTS_SHOWN = 60
MAX_ACTIVE = 12
PLOT_POINTS = 240
Data = dict[str, Any]


def rows(actor: Actor) -> QuerySet[Rollout]:
    """Those that the actor may see, with what a line about one needs."""
    known = Rollout.objects.select_related("endpoint", "team", "stable__model", "candidate__model")
    return visible(actor, known)


def named(actor: Actor, pk: uuid.UUID | str) -> Rollout:
    """Raises NotFound, also for what the actor may not see and for what is no id."""
    try:
        wanted = uuid.UUID(str(pk))
    except ValueError:
        raise NotFound(f"There is no rollout “{str(pk)[:40]}” in your teams.") from None
    found = rows(actor).filter(pk=wanted).first()
    if found is None:
        raise NotFound("There is no such rollout in your teams.")
    return found


@dataclass(frozen=True, slots=True)
class Line:
    """A rollout in a list or a strip."""

    rollout: Rollout
    step: int
    steps: int
    step_words: str

    @property
    def share(self) -> float:
        return self.step / self.steps if self.steps else 1.0


def line(rollout: Rollout) -> Line:
    plan = plan_of(rollout)
    step = min(rollout.step, len(plan.steps) - 1)
    return Line(rollout, step + 1, len(plan.steps), plans.words(plan.steps[step]))


def active_first(actor: Actor) -> list[Line]:
    """Every active one that the actor may see, at most MAX_LISTED, the newest first."""
    return [line(row) for row in rows(actor).filter(phase__in=ACTIVE).order_by("-created_at")[:MAX_LISTED]]


def active_of(actor: Actor, endpoint: Endpoint) -> Line | None:
    found = rows(actor).filter(endpoint=endpoint, phase__in=ACTIVE).first()
    return line(found) if found is not None else None


def last_of(actor: Actor, endpoint: Endpoint, most: int = 3) -> list[Line]:
    """The newest that have ended."""
    ended = rows(actor).filter(endpoint=endpoint).exclude(phase__in=ACTIVE).order_by("-created_at")
    return [line(row) for row in ended[:most]]


def endpoint_rollouts(actor: Actor, endpoint: Endpoint) -> Data:
    """What an endpoint's page says of rollouts: the active one, those before, where it could go back to."""
    found = active_of(actor, endpoint)
    back = None if found else back_of(endpoint)
    rate = rate_of(endpoint) if back else 0.0
    return {"moving": found, "moved": last_of(actor, endpoint), "back": back, "rate": rate}


def endpoint_stamp(endpoint: Endpoint) -> str:
    """Changes when what is said of its rollouts would look different."""
    rows = Rollout.objects.filter(endpoint=endpoint).order_by("-created_at")
    return stamp(list(rows.values_list("pk", "revision", "old_stage")[:4]))


def goes_back_to(rollout: Rollout) -> int | None:
    """The number of the version that could come back after this rollout, None when none can."""
    if rollout.phase != Phase.SUCCEEDED or not rollout.old_stage or rollout.endpoint is None:
        return None
    newest = Rollout.objects.filter(endpoint=rollout.endpoint, phase=Phase.SUCCEEDED).exclude(old_stage="")
    last = newest.order_by("-created_at").values_list("pk", flat=True).first()
    if last != rollout.pk or Rollout.objects.filter(endpoint=rollout.endpoint, phase__in=ACTIVE).exists():
        return None
    whole = Variant.objects.filter(endpoint=rollout.endpoint, weight_bp=WEIGHT_TOTAL_BP)
    return rollout.stable.number if whole.filter(version=rollout.candidate).exists() else None


def back_of(endpoint: Endpoint) -> int | None:
    """The number of the version to which this endpoint could go back, None when there is none."""
    newest = Rollout.objects.filter(endpoint=endpoint, phase=Phase.SUCCEEDED).exclude(old_stage="")
    last = newest.select_related("endpoint", "stable", "candidate").order_by("-created_at").first()
    return goes_back_to(last) if last is not None else None


def deeds_of(actor: Actor, rollout: Rollout, plan: Plan) -> list[words.Deed]:
    """The buttons of this person at this moment."""
    step = plan.steps[rollout.step] if rollout.step < len(plan.steps) else None
    may_approve = (
        isinstance(step, Approve)
        and can(actor, APPROVERS[step.role], rollout)
        and (
            (actor.name != rollout.creator or actor.superuser)
            and all(one["by"] != actor.name for one in rollout.approvals)
        )
    )
    return words.deeds(rollout, plan, may_deploy=can(actor, Verb.DEPLOY, rollout), may_approve=may_approve)


@dataclass(frozen=True, slots=True)
class Told:
    """An event as the log shows it. moved: "25 % → 50 %" where the candidate's share changed."""

    event: RolloutEvent
    moved: str
    reason: str
    lines: list[str]


def told_events(rollout: Rollout, events: list[RolloutEvent]) -> list[Told]:
    """The newest first."""
    number = str(rollout.candidate.number)
    return [_told(event, number) for event in reversed(events[-EVENTS_SHOWN:])]


def _told(event: RolloutEvent, candidate: str) -> Told:
    before, after = event.weights_before, event.weights_after
    parts = []
    for key, name in ((candidate, f"version {candidate}"), ("mirror", "copies")):
        old, new = before.get(key, 0), after.get(key, 0)
        if old != new:
            parts.append(f"{name} {old / 100:g} % → {new / 100:g} %")
    return Told(event, ", ".join(parts), REASONS.get(event.reason, ""), words.evidence_lines(event.evidence))


def events_of(rollout: Rollout) -> list[RolloutEvent]:
    """The newest MAX_EVENTS, the oldest of them first."""
    newest = RolloutEvent.objects.filter(rollout=rollout).order_by("-seq")[:MAX_EVENTS]
    return list(reversed(newest))


def page_data(actor: Actor, rollout: Rollout) -> Data:
    """What the page and its parts show."""
    plan, now, events = plan_of(rollout), timezone.now(), events_of(rollout)
    figures = arms_now(rollout)
    rate = sum(arm["rps"] for arm in figures.values() if arm["is_live"])
    found = deeds_of(actor, rollout, plan)
    return {
        "rollout": rollout,
        "plan": plan,
        "track": words.track(rollout, plan, events, now),
        "waits_for": words.waits_for(rollout, plan, now),
        "reason": REASONS.get(rollout.reason, ""),
        "events": told_events(rollout, events),
        "deeds": [{"deed": deed, "asks": deed.asks(rate)} for deed in found],
        "approve": _approve_step(rollout, plan),
        "back": goes_back_to(rollout) if can(actor, Verb.DEPLOY, rollout) else None,
        "guards": words.guards(rollout.judgement),
        "silent": words.silent(rollout.judgement),
        "judged": words.JUDGED.get((rollout.judgement or {}).get("verdict", "none"), ("", "")),
        "shares": [(f"v{rollout.stable.number}", WEIGHT_TOTAL_BP - rollout.weight_bp), (f"v{rollout.candidate.number}", rollout.weight_bp)],
        "arms": figures,
        "shadow": shadow_of(rollout),
    }  # fmt: skip


def _approve_step(rollout: Rollout, plan: Plan) -> Approve | None:
    if Phase(rollout.phase) not in ON_THE_WAY or rollout.step >= len(plan.steps):
        return None
    step = plan.steps[rollout.step]
    return step if isinstance(step, Approve) else None


def shadow_of(rollout: Rollout) -> ShadowReport | None:
    """What copies said, where there were any."""
    if rollout.judged_from is None or not any(one.get("kind") == "mirror" for one in rollout.plan.get("steps", [])):
        return None
    found = shadow_report(rollout.endpoint_name, rollout.candidate.number, rollout.judged_from.timestamp())
    return found if found["candidate"]["requests"] else None


def arm_of(rollout: Rollout, version: int, arm: str) -> str | None:
    """Which side of the page a sample's version and arm belong to."""
    if arm == "primary" and version == rollout.stable.number:
        return "stable"
    if arm == "canary" and version == rollout.candidate.number:
        return "candidate"
    return "copies" if arm == "shadow" and version == rollout.candidate.number else None


def arms_now(rollout: Rollout) -> dict[str, Data]:
    """Figures of both sides over the last NOW_S seconds; of an ended rollout nothing."""
    lines: list[Summary] = summary(rollout.endpoint_name, NOW_S) if rollout.is_active else []
    found: dict[str, Data] = {name: _figures(None) for name in ("stable", "candidate")}
    for one in lines:
        side = arm_of(rollout, one["version"], one["arm"])
        if side == "copies":
            # While it answers copies alone these are the candidate's figures.
            if not found["candidate"]["rps"]:
                found["candidate"] = {**_figures(one), "is_live": False}
        elif side is not None:
            found[side] = _figures(one)
    return found


def _figures(one: Summary | None) -> Data:
    if one is None:
        return {"rps": 0.0, "error_share": None, "p50_ms": None, "p99_ms": None, "is_live": True}
    share = one["errors"] / one["requests"] if one["requests"] else None
    return {
        "rps": round(one["requests_per_s"], 2),
        "error_share": share,
        "p50_ms": one["p50_ms"],
        "p99_ms": one["p99_ms"],
        "is_live": one["arm"] in LIVE,
    }


def points(rollout: Rollout) -> list[Data]:
    """One a second: sides -> [requests, errors' share, p50 ms, p99 ms]. Copies are the candidate's where it has no live
    requests.
    """
    by_time: dict[int, Data] = {}
    for point in series(rollout.endpoint_name, CHART_S):
        side = arm_of(rollout, point["version"], point["arm"])
        if side is None or not point["requests"]:
            continue
        share = round(point["errors"] / point["requests"], 4)
        p50, p99 = (None if value is None else round(value, 2) for value in (point["p50_ms"], point["p99_ms"]))
        by_time.setdefault(int(point["at"].timestamp()), {})[side] = [point["requests"], share, p50, p99]
    found = []
    for at, sides in sorted(by_time.items()):
        copies = sides.pop("copies", None)
        if copies is not None:
            sides.setdefault("candidate", copies)
        found.append({"at": at, "arms": sides})
    return found


def rollout_data(pk: uuid.UUID) -> Data:
    """The live topic of a rollout's page."""
    rollout = Rollout.objects.select_related("endpoint", "stable", "candidate").filter(pk=pk).first()
    if rollout is None:
        raise NotFound("This rollout is gone.")
    figures = arms_now(rollout)
    flat = {f"{side}_{name}": arm[name] for side, arm in figures.items() for name in ("rps", "error_share", "p50_ms", "p99_ms")}  # fmt: skip
    return {
        **flat,
        "rate_per_s": round(sum(arm["rps"] for arm in figures.values() if arm["is_live"]), 2),
        "phase": rollout.phase,
        "weight_bp": rollout.weight_bp,
        "window_s": CHART_S,
        "points": points(rollout) if rollout.is_active else [],
        "stamps": stamps(rollout),
    }


def stamps(rollout: Rollout) -> dict[str, str]:
    """A mark for each part of the page that is asked for anew when it would look different."""
    judged = rollout.judgement or {}
    return {
        "rollout": stamp(rollout.revision, rollout.phase, rollout.step, rollout.held, len(rollout.approvals), rollout.old_stage),
        "gates": stamp(rollout.smoke, rollout.override),
        "judge": stamp(judged.get("verdict"), judged.get("findings"), judged.get("srm_p")),
        "events": stamp(rollout.events_count),
    }  # fmt: skip


def list_data(actor: Actor) -> Data:
    """The live topic of the list."""
    return {"stamps": {"rollouts": list_stamp(active_first(actor))}}


def list_stamp(found: list[Line]) -> str:
    return stamp([(str(one.rollout.pk), one.rollout.revision) for one in found])


def plot(rollout: Rollout, metric: str) -> list[Data]:
    """A metric's interval over time, thinned to about PLOT_POINTS readings."""
    held = list(Reading.objects.filter(rollout=rollout).order_by("at").values_list("pk", flat=True))
    step = -(-len(held) // PLOT_POINTS) or 1
    # The newest is always there.
    chosen = held[(len(held) - 1) % step :: step] if held else []
    kept = Reading.objects.filter(pk__in=chosen).order_by("at").values_list("at", "findings")
    found = []
    for at, findings in kept:
        one = next((one for one in findings if one.get("metric") == metric), None)
        if one is None or one.get("difference") is None:
            continue
        margin = -one["margin"] if one.get("direction") == "decrease" else one["margin"]
        found.append({"at": round(at.timestamp(), 1), "low": one["lower"], "high": one["upper"], "difference": one["difference"], "margin": margin, "verdict": one["verdict"]})  # fmt: skip
    return found
