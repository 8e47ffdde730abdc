"""Hosts, their devices and the replicas on them."""

from __future__ import annotations

import uuid

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_POST

from accounts.permissions import MAY, Verb, actor_of
from console.live import fleet_data
from console.pages import attempt, page, rights
from console.reading import host_states, pending, replica_numbered
from fleet import actions


@require_GET
@page
def fleet(request: HttpRequest) -> HttpResponse:
    actor = actor_of(request)
    context = {
        "hosts": host_states(),
        "pending": pending(actor),
        "may_drain": actor.superuser,
        "own": set(actor.roles),
        "operated": {team for team in actor.roles if Verb.OPERATE in MAY[actor.roles[team]]},
    }
    if request.GET.get("part") == "fleet":
        return render(request, "part/fleet.html", context)
    return render(request, "fleet.html", {**context, "live": {"topic": "fleet", "stamps": fleet_data(actor)["stamps"]}})


@require_GET
@page
def replica(request: HttpRequest, replica: uuid.UUID) -> HttpResponse:
    actor = actor_of(request)
    found = replica_numbered(actor, str(replica))
    may = rights(actor, found.deployment)
    context = {"replica": found, "may": may, "logs": {"topic": f"logs:replica:{found.pk}", "open": True}}
    return render(request, "replica.html", context)


@require_POST
@page
def drain(request: HttpRequest, name: str) -> HttpResponse:
    actor = actor_of(request)
    host = actions.host_named(name)
    draining = request.POST.get("draining") == "1"
    said = f"{name} is draining: its replicas move elsewhere." if draining else f"{name} takes replicas again."
    return attempt(
        request,
        reverse("console:fleet"),
        said,
        lambda: actions.set_draining(host=host, draining=draining, actor=actor),
    )


@require_POST
@page
def restart(request: HttpRequest, replica: uuid.UUID) -> HttpResponse:
    actor = actor_of(request)
    found = replica_numbered(actor, str(replica))
    back = request.POST.get("back", "")
    return attempt(
        request,
        reverse("console:endpoint", args=[back])
        if back.replace("-", "").replace("_", "").isalnum()
        else reverse("console:fleet"),
        "The replica restarts.",
        lambda: actions.restart_replica(replica=found, actor=actor),
    )
