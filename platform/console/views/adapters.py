"""LoRA adapters on an endpoint's page: which there are, which can be added, adding and removing one."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_POST

from accounts.permissions import actor_of
from console.forms import whole_number
from console.pages import attempt, page
from console.reading import endpoint_named, version_numbered
from endpoints import adapters as actions
from endpoints.models import Adapter, Endpoint, Variant
from fleet.models import Replica
from registry.adapters import adapters_of, most_adapters


def adapters_of_page(endpoint: Endpoint, variants: list[Variant], replicas: list[Replica]) -> dict[str, Any]:
    """What the page shows of them; nothing, and no query, where no version here takes adapters."""
    taking = {f"{v.version.model.name}:{v.version.number}": v for v in variants if most_adapters(v.version)}
    if not taking:
        return {}
    rows = Adapter.objects.filter(variant__in=taking.values()).select_related("version__model", "variant__version")
    held = list(rows.order_by("name", "id"))
    by_version: dict[int, list[Replica]] = {}
    for replica in replicas:
        by_version.setdefault(replica.deployment.version_id, []).append(replica)
    used = {row.version_id for row in held}
    return {
        "takes_adapters": True,
        "adapters": [
            {"row": row, "now": actions.standing(row, by_version.get(row.variant.version_id, []))} for row in held
        ],
        "offered": [one for one in adapters_of(endpoint.team_id, list(taking)) if one.pk not in used],
    }


@require_POST
@page
def attach(request: HttpRequest, name: str) -> HttpResponse:
    actor = actor_of(request)
    found = endpoint_named(actor, name)
    model, _, number = request.POST.get("version", "").partition(":")
    version = version_numbered(actor, model, whole_number(number))
    called = request.POST.get("name", "").strip()
    return attempt(
        request,
        reverse("console:endpoint", args=[name]),
        f"Its replicas load it now. Clients name it “{name}:{called or model}”.",
        lambda: actions.attach(endpoint=found, version=version, actor=actor, name=called),
    )


@require_POST
@page
def detach(request: HttpRequest, name: str, adapter: str) -> HttpResponse:
    actor = actor_of(request)
    found = endpoint_named(actor, name)
    return attempt(
        request,
        reverse("console:endpoint", args=[name]),
        f"“{name}:{adapter}” is gone. What began with it ends with it.",
        lambda: actions.detach(endpoint=found, name=adapter, actor=actor),
    )
