"""The first page: how things are, what is running, what to do first."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from accounts.models import ApiKey, AuditEntry
from accounts.permissions import Actor, Verb, actor_of, can, visible
from console.health import judge
from console.live import dashboard_data
from console.pages import page, rights
from console.reading import EndpointState, endpoint_states, facts_of
from console.rollouts import active_first
from console.traffic import Traffic, total, traffic_of
from registry.models import Model, Version, VersionStatus

RECENT = 8
MOVING = 12


@require_GET
@page
def overview(request: HttpRequest) -> HttpResponse:
    actor = actor_of(request)
    states = endpoint_states(actor)
    parts = traffic_of([state.endpoint.name for state in states])
    whole = total(parts)
    facts = facts_of(actor, states, whole.error_share)
    context = {
        "health": judge(facts),
        "facts": facts,
        "rows": [{"state": state, "traffic": parts[state.endpoint.name]} for state in states],
        "checklist": _checklist(actor, states, whole),
        "recent": _recent(actor),
        "busy": _busy(actor),
        "moving": active_first(actor)[:MOVING],
        "may": rights(actor),
    }
    if request.GET.get("part") == "overview":
        return render(request, "part/overview.html", context)
    kpis = {
        "rps": whole.rps,
        "p50_ms": whole.quantile_ms(0.5),
        "p99_ms": whole.quantile_ms(0.99),
        "error_share": whole.error_share,
        "ready": sum(state.ready_total for state in states),
        "hosts": facts.hosts - len(facts.lost_hosts),
    }
    live = {"topic": "dashboard", "stamps": dashboard_data(actor)["stamps"]}
    return render(request, "overview.html", {**context, "kpis": kpis, "live": live})


def _recent(actor: Actor) -> list[AuditEntry]:
    # Every file of a version was begun and completed: the version itself says enough.
    rows = AuditEntry.objects.exclude(object_kind="upload")
    return list(visible(actor, rows, verb=Verb.VIEW_AUDIT)[:RECENT])


def _busy(actor: Actor) -> list[Version]:
    """Versions that somebody waits for: being checked, or awaiting approval."""
    waiting = [VersionStatus.VALIDATING, VersionStatus.AWAITING_APPROVAL]
    rows = visible(actor, Version.objects.filter(status__in=waiting), "model__team")
    return list(rows.select_related("model").order_by("-pk")[:RECENT])


def _checklist(actor: Actor, states: list[EndpointState], whole: Traffic) -> list[dict[str, Any]]:
    """The way from an empty platform to the first prediction; empty once it has been walked."""
    models = visible(actor, Model.objects.all()).exists()
    ready = models and visible(actor, Version.objects.filter(status=VersionStatus.READY), "model__team").exists()
    keys = visible(actor, ApiKey.objects.filter(revoked_at=None)).exists()
    steps = [
        ("Upload a model", "Drag a file, a folder or a zip into the page.", "/upload/", models, Verb.UPLOAD),
        ("Let it pass validation", "It is loaded in a sandbox, warmed up and measured.", "/models/", ready, Verb.VIEW),
        ("Deploy it behind an endpoint", "Open a ready version and press Deploy.", "/models/", bool(states), Verb.DEPLOY),
        ("Create an API key", "Every call needs one, unless the endpoint is public.", "/keys/", keys, Verb.MANAGE_KEYS),
        ("Send the first request", "Try it in the endpoint's page, or paste its curl line.", "/endpoints/",
         whole.requests > 0, Verb.VIEW),
    ]  # fmt: skip
    if all(done for *_, done, _verb in steps[:4]):
        return []
    return [
        {"title": title, "text": text, "url": url if can(actor, verb) else "", "done": bool(done)}
        for title, text, url, done, verb in steps
    ]
