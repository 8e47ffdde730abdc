"""Rollouts: the list; one with its track, both arms, guardrails and events; what a person does to it; going back."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET, require_POST

from accounts.permissions import Verb, actor_of, can, require
from console import rollouts as reading
from console.pages import attempt, page
from console.reading import endpoint_named
from console.rollout_words import METRICS
from rollouts import actions
from rollouts.models import Rollout
from rollouts.phases import ACTIVE

PAGE_SIZE = 30
MAX_REASON = 400
PARTS = {"rollout": "part/rollout.html", "judge": "part/rollout_judge.html", "events": "part/rollout_events.html",
         "gates": "part/rollout_gates.html"}  # fmt: skip
DO: dict[str, tuple[Callable[..., Rollout], dict[str, Any], str]] = {
    "promote": (actions.promote, {}, "It goes on."),
    "promote_full": (actions.promote, {"full": True}, "It gets all of the traffic as soon as its replicas carry it."),
    "pause": (actions.pause, {}, "It is paused. The guards stay armed."),
    "resume": (actions.resume, {}, "It goes on."),
    "extend": (actions.extend, {}, "The step has its whole time again."),
    "approve": (actions.approve, {}, "Your approval is noted."),
    "abort": (actions.abort, {}, "It is aborted: the traffic goes back to the stable version."),
}


@require_GET
@page
def rollouts(request: HttpRequest) -> HttpResponse:
    """The active ones, then those that have ended, the newest first."""
    actor = actor_of(request)
    require(actor, Verb.VIEW)
    before = _moment(request.GET.get("before", ""))
    ended = reading.rows(actor).exclude(phase__in=ACTIVE)
    held = list(_older(ended, before)[: PAGE_SIZE + 1])
    more = f"?before={held[PAGE_SIZE - 1].created_at.timestamp():.6f}" if len(held) > PAGE_SIZE else ""
    active = [] if before else reading.active_first(actor)
    context: dict[str, Any] = {
        "active": active,
        "ended": [reading.line(row) for row in held[:PAGE_SIZE]],
        "more": more,
        "may_start": can(actor, Verb.DEPLOY),
    }
    if request.GET.get("part") == "rollouts":
        return render(request, "part/rollouts.html", context)
    live_stamps = {"rollouts": reading.list_stamp(active)} if not before else {}
    return render(request, "rollouts.html", {**context, "live": {"topic": "rollouts", "stamps": live_stamps}})


def _older(rows: QuerySet[Rollout], before: datetime | None) -> QuerySet[Rollout]:
    rows = rows.order_by("-created_at", "-pk")
    return rows.filter(created_at__lt=before) if before else rows


def _moment(text: str) -> datetime | None:
    """Unix seconds as a moment; None for what is none."""
    try:
        return datetime.fromtimestamp(float(text), timezone.get_default_timezone()) if text else None
    except (ValueError, OverflowError, OSError):
        return None


@require_GET
@page
def rollout(request: HttpRequest, rollout: uuid.UUID) -> HttpResponse:
    actor = actor_of(request)
    found = reading.named(actor, rollout)
    context = reading.page_data(actor, found)
    part = PARTS.get(request.GET.get("part", ""))
    if part is not None:
        return render(request, part, context)
    topic = f"rollout:{found.pk}"
    versions = {"stable": found.stable.number, "candidate": found.candidate.number}
    context |= {
        "live": {"topic": topic, "stamps": reading.stamps(found)},
        "charts": {"topic": topic, **versions},
        "plot": {
            "topic": topic,
            "url": reverse("console:rollout_readings", args=[found.pk]),
            "candidate": found.candidate.number,
        },
        "metrics": _metrics(found),
    }
    return render(request, "rollout.html", context)


def _metrics(found: Rollout) -> list[dict[str, Any]]:
    """What the plot may show; that which decided, or decides last, is chosen at first."""
    findings = [one for one in (found.judgement or {}).get("findings", []) if one["difference"] is not None]
    names = [one["metric"] for one in findings] or ["error_rate"]
    failed = [one["metric"] for one in findings if one["verdict"] == "fail"]
    late = sorted((one for one in findings if one["verdict"] == "hold"), key=lambda one: -(one.get("eta_s") or 0.0))
    scores = [name for name in names if name == "score"]
    chosen = (failed or scores or [one["metric"] for one in late] or names)[0]
    return [{"name": name, "words": METRICS.get(name, (name, ""))[0], "chosen": name == chosen} for name in names]


@require_GET
@page
def readings(request: HttpRequest, rollout: uuid.UUID) -> HttpResponse:
    """A metric's interval over time, as the plot draws it."""
    found = reading.named(actor_of(request), rollout)
    metric = request.GET.get("metric", "error_rate")
    if metric not in METRICS:
        return JsonResponse({"metric": "", "points": []}, status=404)
    return JsonResponse({"metric": metric, "points": reading.plot(found, metric)})


def act(verb: str) -> Callable[..., Any]:
    """The view of one of the buttons."""
    do, more, said = DO[verb]

    @require_POST
    @page
    def view(request: HttpRequest, rollout: uuid.UUID) -> HttpResponse:
        actor = actor_of(request)
        found = reading.named(actor, rollout)
        reason = _reason(request)
        back = reverse("console:rollout", args=[found.pk])
        return attempt(request, back, said, lambda: do(rollout=found, actor=actor, reason=reason, **more))

    return view


@require_POST
@page
def rollback(request: HttpRequest, name: str) -> HttpResponse:
    """Back to the version that the newest rollout replaced."""
    actor = actor_of(request)
    found = endpoint_named(actor, name)
    require(actor, Verb.DEPLOY, found)
    made: list[Rollout] = []
    reason = _reason(request)
    back = reverse("console:endpoint", args=[name])
    said = "It goes back."
    response = attempt(
        request, back, said, lambda: made.append(actions.rollback(endpoint=found, actor=actor, reason=reason))
    )
    if made:
        response["Location"] = reverse("console:rollout", args=[made[0].pk])
    return response


def _reason(request: HttpRequest) -> str:
    return str(request.POST.get("reason", "")).replace("\0", "").strip()[:MAX_REASON]
