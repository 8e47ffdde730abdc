"""Endpoints: the list; one with its split, charts, replicas, try-it form and ready-to-paste calls."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_POST

from accounts.permissions import Verb, actor_of, can
from console.forms import whole_number
from console.language import language_of
from console.live import endpoint_data
from console.pages import attempt, page, rights
from console.pipelines import pipeline_of
from console.reading import MAX_SHOWN, endpoint_named, endpoint_states, replicas_of
from console.rollouts import endpoint_rollouts
from console.snippets import chat_snippets, needs_key, snippets
from console.traffic import traffic_of
from console.views.adapters import adapters_of_page
from endpoints import actions
from endpoints.models import Endpoint, Variant
from fleet import actions as fleet
from fleet.models import Deployment
from fleet.standing import ready_counts, step_ids
from inference.errors import InvalidInput
from inference.protocol.pipelines import FORMAT
from inference.protocol.routes import WEIGHT_TOTAL_BP


@require_GET
@page
def endpoints(request: HttpRequest) -> HttpResponse:
    actor = actor_of(request)
    states = endpoint_states(actor)
    parts = traffic_of([state.endpoint.name for state in states])
    rows = [{"state": state, "traffic": parts[state.endpoint.name]} for state in states]
    context = {"rows": rows, "cut": len(rows) == MAX_SHOWN, "may": rights(actor), "live": {"topic": "dashboard"}}
    return render(request, "endpoints.html", context)


@require_GET
@page
def endpoint(request: HttpRequest, name: str) -> HttpResponse:
    actor = actor_of(request)
    found = endpoint_named(actor, name)
    variants = list(found.variants.select_related("endpoint", "version__model", "version__deployment"))
    context = {"endpoint": found, "may": rights(actor, found), **_placed(found, variants)}
    if request.GET.get("part") == "replicas":
        return render(request, "part/endpoint_replicas.html", context)
    context |= endpoint_rollouts(actor, found)
    if request.GET.get("part") == "rollout":
        return render(request, "part/endpoint_rollout.html", context)
    context |= _split(found, variants)
    if request.GET.get("part") == "split":
        return render(request, "part/endpoint_split.html", context)
    signature = _signature(variants)
    chats = language_of([variant.version for variant in variants])
    now = endpoint_data(found.pk)
    numbers = [variant.version.number for variant in variants]
    context |= {
        "now": now,
        "live": {"topic": f"endpoint:{name}", "stamps": now["stamps"]},
        "charts": {"topic": f"endpoint:{name}", "versions": numbers},
        "inside": {"topic": f"endpoint:{name}"},
        "logs": {"topic": f"logs:endpoint:{name}", "open": False},
        "signature": signature,
        "numbers": numbers,
        "try_it": _try_it(found, signature, may_keep=can(actor, Verb.UPLOAD, found.model)),
        "chats": chats,
        "snippets": _calls(found, signature, chats),
    }
    return render(request, "endpoint.html", context)


def _split(found: Endpoint, variants: list[Variant]) -> dict[str, Any]:
    """The shares, and what the form that moves them begins with."""
    numbers, weights = [one.version.number for one in variants], [one.weight_bp for one in variants]
    return {
        "shares": [(f"v{number}", weight) for number, weight in zip(numbers, weights, strict=True)],
        "split": {"topic": f"endpoint:{found.name}", "versions": numbers, "weights": weights},
    }


def _calls(found: Endpoint, signature: dict[str, Any], chats: dict[str, Any]) -> list[dict[str, str]]:
    if chats:
        template = chats["has_chat_template"]
        return chat_snippets(settings.GATEWAY_URL, found.name, key=needs_key(found), chats=template)
    return snippets(settings.GATEWAY_URL, found.name, signature, key=needs_key(found)) if signature else []


def _placed(endpoint: Endpoint, variants: list[Variant]) -> dict[str, Any]:
    """Variants with their deployment, every replica of them and of their steps, their adapters, and the graph with the
    most traffic.
    """
    versions = [variant.version_id for variant in variants]
    ready = ready_counts(set(versions))
    wishes = {wish.version_id: wish for wish in Deployment.objects.filter(version__in=versions)}
    replicas = replicas_of([*versions, *step_ids(versions)])
    return {
        "variants": [
            {"row": variant, "ready": ready.get(variant.version_id, 0), "wish": wishes.get(variant.version_id)}
            for variant in variants
        ],
        "replicas": replicas,
        **adapters_of_page(endpoint, variants, replicas),
        **_graph(variants),
    }


def _graph(variants: list[Variant]) -> dict[str, Any]:
    graphs = [variant for variant in variants if variant.version.format == FORMAT]
    if not graphs:
        return {}
    shown = max(graphs, key=lambda variant: (variant.weight_bp, variant.version.number))
    found = pipeline_of(shown.version, shown.endpoint.name)
    return {"pipeline": found, "with_times": True, "graph_number": shown.version.number}


def _signature(variants: list[Variant]) -> dict[str, Any]:
    """That of the version with the most traffic."""
    held = sorted(variants, key=lambda variant: -variant.weight_bp)
    return next((variant.version.signature for variant in held if variant.version.signature), {}) or {}


def _try_it(found: Endpoint, signature: dict[str, Any], *, may_keep: bool) -> dict[str, Any]:
    return {
        "url": reverse("console:try", args=[found.name]),
        "golden": reverse("console:save_golden", args=[found.name]) if may_keep else "",
        "inputs": signature.get("inputs", []),
        "labels": signature.get("labels", []),
        "max_batch_size": signature.get("max_batch_size", 0),
    }


def _basis_points(request: HttpRequest) -> dict[int, int]:
    """Version -> basis points, from fields `percent_<number>`. Raises InvalidInput."""
    weights = {}
    for field, text in request.POST.items():
        if not field.startswith("percent_"):
            continue
        try:
            share = Decimal(str(text)[:20].replace(",", ".") or "0") * 100
            fine = 0 <= share <= WEIGHT_TOTAL_BP and share == share.to_integral_value()
        except InvalidOperation:
            fine, share = False, Decimal(0)
        if not fine:
            raise InvalidInput(f"“{str(text)[:20]}” is no percentage from 0 to 100 with at most two decimals")
        weights[whole_number(field.removeprefix("percent_"))] = int(share)
    return weights


@require_POST
@page
def weights(request: HttpRequest, name: str) -> HttpResponse:
    actor, found = actor_of(request), endpoint_named(actor_of(request), name)
    revision = whole_number(request.POST.get("revision")) or None
    return attempt(
        request,
        reverse("console:endpoint", args=[name]),
        "The traffic is moved. Gateways follow within a second.",
        lambda: actions.set_weights(endpoint=found, weights=_basis_points(request), revision=revision, actor=actor),
    )


@require_POST
@page
def undeploy(request: HttpRequest, name: str, number: int) -> HttpResponse:
    actor, found = actor_of(request), endpoint_named(actor_of(request), name)
    return attempt(
        request,
        reverse("console:endpoint", args=[name]),
        f"Version {number} no longer answers here.",
        lambda: actions.undeploy(endpoint=found, number=number, actor=actor),
    )


@require_POST
@page
def scale(request: HttpRequest, name: str, number: int) -> HttpResponse:
    actor, found = actor_of(request), endpoint_named(actor_of(request), name)
    back = reverse("console:endpoint", args=[name])
    wish = Deployment.objects.select_related("version__model__team").filter(
        version__variants__endpoint=found, version__number=number
    )
    deployment = wish.first()
    if deployment is None:
        messages.error(request, f"Version {number} is not deployed here.")
        return redirect(back)
    replicas = whole_number(request.POST.get("replicas"), 1)
    held = deployment
    said = f"Version {number} shall have {replicas} replica{'s' * (replicas != 1)}."
    return attempt(request, back, said, lambda: fleet.scale(deployment=held, replicas=replicas, actor=actor))


@require_POST
@page
def access(request: HttpRequest, name: str) -> HttpResponse:
    actor, found = actor_of(request), endpoint_named(actor_of(request), name)
    wanted = request.POST.get("access", "")
    said = "Everybody may call it now." if wanted == Endpoint.Access.PUBLIC else "Every call needs an API key now."
    return attempt(
        request,
        reverse("console:endpoint", args=[name]),
        said,
        lambda: actions.set_access(endpoint=found, access=wanted, actor=actor),
    )


@require_POST
@page
def delete(request: HttpRequest, name: str) -> HttpResponse:
    actor, found = actor_of(request), endpoint_named(actor_of(request), name)
    return attempt(
        request,
        reverse("console:endpoints"),
        f"The endpoint “{name}” is deleted.",
        lambda: actions.delete_endpoint(endpoint=found, actor=actor),
    )
