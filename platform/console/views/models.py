"""Models: the list, and one with its versions and aliases."""

from __future__ import annotations

from typing import Any

from django.db.models import Count, F, OuterRef, Prefetch, Q, Subquery
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_POST

from accounts.permissions import actor_of, visible
from console.pages import attempt, keyset, keyset_by_name, page, rights
from console.reading import model_named, version_numbered
from endpoints.models import Endpoint
from registry import actions
from registry.models import Alias, AliasChange, Model, Version, VersionStatus

HISTORY = 20


@require_GET
@page
def models(request: HttpRequest) -> HttpResponse:
    actor = actor_of(request)
    query = request.GET.get("q", "").replace("\0", "").strip()[:64]
    newest = Version.objects.filter(model=OuterRef("pk")).order_by("-number")
    rows = (
        visible(actor, Model.objects.all())
        .select_related("team")
        .annotate(
            newest=Subquery(newest.values("number")[:1]),
            newest_status=Subquery(newest.values("status")[:1]),
            newest_format=Subquery(newest.values("format")[:1]),
            held=Count("versions"),
        )
        .prefetch_related(
            Prefetch("aliases", Alias.objects.select_related("version").order_by("name")),
            Prefetch("endpoints", Endpoint.objects.order_by("name")),
        )
    )
    if query:
        rows = rows.filter(Q(name__icontains=query) | Q(task__icontains=query))
    held, more = keyset_by_name(rows, request)
    context = {"rows": held, "more": more, "q": query, "may": rights(actor)}
    return render(request, "part/models.html" if request.GET.get("part") else "models.html", context)


@require_GET
@page
def model(request: HttpRequest, name: str) -> HttpResponse:
    actor = actor_of(request)
    found = model_named(actor, name)
    versions = found.versions.prefetch_related(
        Prefetch("aliases", Alias.objects.order_by("name")), "variants__endpoint"
    ).defer("manifest", "report", "signature", "served_files")
    versions = versions.annotate(language=F("report__measurements__language"))
    rows, more = keyset(versions, request)
    changes = AliasChange.objects.filter(model=found).select_related("from_version", "to_version")
    ready = found.versions.filter(status=VersionStatus.READY).order_by("-number").values_list("number", flat=True)
    context: dict[str, Any] = {
        "model": found,
        "rows": rows,
        "more": more,
        "aliases": Alias.objects.filter(model=found).select_related("version").order_by("name")[:100],
        "history": changes[:HISTORY],
        "ready": list(ready[:100]),
        "golden": found.golden_inputs.defer("inputs", "outputs").order_by("name"),
        "endpoints": Endpoint.objects.filter(model=found).order_by("name")[:50],
        "may": rights(actor, found),
    }
    return render(request, "model.html", context)


@require_POST
@page
def describe(request: HttpRequest, name: str) -> HttpResponse:
    actor, found = actor_of(request), model_named(actor_of(request), name)
    text, task = request.POST.get("description", ""), request.POST.get("task", "")
    return attempt(
        request,
        reverse("console:model", args=[name]),
        "The description is saved.",
        lambda: actions.describe_model(actor=actor, model=found, task=task, description=text),
    )


@require_POST
@page
def set_alias(request: HttpRequest, name: str) -> HttpResponse:
    actor, found = actor_of(request), model_named(actor_of(request), name)
    alias, text = request.POST.get("alias", "").strip(), request.POST.get("version", "")
    target = version_numbered(actor, name, int(text) if text.isascii() and text.isdigit() else 0)
    reason = request.POST.get("reason", "")
    return attempt(
        request,
        reverse("console:model", args=[name]),
        f"@{alias} now names version {target.number}.",
        lambda: actions.set_alias(actor=actor, model=found, name=alias, version=target, reason=reason),
    )


@require_POST
@page
def delete_alias(request: HttpRequest, name: str, alias: str) -> HttpResponse:
    actor, found = actor_of(request), model_named(actor_of(request), name)
    return attempt(
        request,
        reverse("console:model", args=[name]),
        f"@{alias} is gone.",
        lambda: actions.delete_alias(actor=actor, model=found, name=alias),
    )


@require_POST
@page
def remove_golden(request: HttpRequest, name: str, golden: int) -> HttpResponse:
    actor, found = actor_of(request), model_named(actor_of(request), name)
    return attempt(
        request,
        reverse("console:model", args=[name]),
        "The golden input is removed. Rollouts do not ask it any more.",
        lambda: actions.remove_golden(actor=actor, model=found, identity=golden),
    )
