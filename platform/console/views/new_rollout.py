"""A new rollout: a version and a plan are chosen, what would happen is shown, and it is started."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_POST

from accounts.permissions import Actor, Verb, actor_of, require
from console import rollout_plans
from console.forms import whole_number
from console.pages import page
from console.reading import endpoint_named
from endpoints.models import Endpoint
from inference.errors import Forbidden, NotFound, SerinusError
from inference.protocol.routes import WEIGHT_TOTAL_BP
from registry.adapters import ADAPTER
from registry.models import Version, VersionStatus
from rollouts import actions, plans
from rollouts.api import version_numbered
from rollouts.preflight import preflight

MAX_VERSIONS = 100
MAX_REASON = 500


@require_GET
@page
def new(request: HttpRequest, name: str) -> HttpResponse:
    actor = actor_of(request)
    found = endpoint_named(actor, name)
    require(actor, Verb.DEPLOY, found)
    return render(request, "rollout_new.html", _context(actor, found, request.GET))


def _context(actor: Actor, endpoint: Endpoint, given: Any) -> dict[str, Any]:
    stable = _stable(endpoint)
    versions = _candidates(endpoint, stable)
    numbers = [version.number for version in versions]
    wished = whole_number(given.get("version"))
    saved = rollout_plans.saved_of(actor, endpoint.team)
    names = [
        *(one.plan.name for one in rollout_plans.templates()),
        *(one.plan.name for one in saved),
        rollout_plans.OWN,
    ]
    plan = given.get("plan", "")
    return {
        "endpoint": endpoint,
        "stable": stable,
        "versions": versions,
        "chosen": wished if wished in numbers else (numbers[0] if numbers else 0),
        "templates": rollout_plans.templates(),
        "saved": saved,
        "plan": plan if plan in names else plans.DEFAULT_PLAN,
        "own": given.get("own", "")[: rollout_plans.MAX_PLAN_CHARS]
        or rollout_plans.plan_json(plans.TEMPLATES[plans.DEFAULT_PLAN]).replace('"standard"', '"mine"', 1),
        "reason": given.get("reason", "")[:MAX_REASON],
        "max_reason": MAX_REASON,
    }


def _stable(endpoint: Endpoint) -> Version | None:
    variant = endpoint.variants.filter(weight_bp=WEIGHT_TOTAL_BP).select_related("version").first()
    return variant.version if variant is not None else None


def _candidates(endpoint: Endpoint, stable: Version | None) -> list[Version]:
    """Ready versions of the endpoint's model that may be rolled out, the newest first."""
    ready = Version.objects.filter(model=endpoint.model, status=VersionStatus.READY).exclude(format=ADAPTER)
    if stable is not None:
        ready = ready.exclude(pk=stable.pk)
    return list(ready.order_by("-number")[:MAX_VERSIONS])


@require_POST
@page
def preview(request: HttpRequest, name: str) -> HttpResponse:
    """What would happen, as a fragment. Writes nothing."""
    actor = actor_of(request)
    found = endpoint_named(actor, name)
    require(actor, Verb.DEPLOY, found)
    try:
        plan, _ = _plan(found, request)
    except rollout_plans.PlanWrong as error:
        return render(request, "part/rollout_preview.html", {"plan_error": error.message})
    version = version_numbered(found, whole_number(request.POST.get("version")))
    report = preflight(found, version, plan, reason=_reason(request))
    context = {
        "endpoint": found,
        "version": version,
        "plan": plan,
        "numbers": rollout_plans.numbers(plan),
        "preflight": report.record(),
        "is_clear": report.is_clear,
        "duration": report.duration,
        "timeline": rollout_plans.timeline(plan, report.duration),
        "plan_json": rollout_plans.plan_json(plan),
    }
    return render(request, "part/rollout_preview.html", context)


@require_POST
@page
def start(request: HttpRequest, name: str) -> HttpResponse:
    actor = actor_of(request)
    found = endpoint_named(actor, name)
    require(actor, Verb.DEPLOY, found)
    context: dict[str, Any] = {}
    try:
        plan, number = _plan(found, request)
        version = version_numbered(found, whole_number(request.POST.get("version")))
        begun = actions.start(
            endpoint=found, version=version, plan=plan, plan_number=number, actor=actor, reason=_reason(request)
        )
    except rollout_plans.PlanWrong as error:
        context["plan_error"] = error.message
    except (Forbidden, NotFound):
        raise
    except SerinusError as error:
        context["error"] = error.message
    else:
        messages.success(request, f"Version {version.number} is on its way.")
        return redirect(reverse("console:rollout", args=[begun.pk]))
    return render(request, "rollout_new.html", {**_context(actor, found, request.POST), **context}, status=400)


def _plan(endpoint: Endpoint, request: HttpRequest) -> tuple[plans.Plan, int]:
    return rollout_plans.asked(endpoint.team, str(request.POST.get("plan", "")), str(request.POST.get("own", "")))


def _reason(request: HttpRequest) -> str:
    return str(request.POST.get("reason", "")).replace("\0", "").strip()[:MAX_REASON]
