"""Writing a pipeline by hand: a page with its definition, checked while it is written, and the making of it."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_POST

from accounts.models import Team
from accounts.permissions import Actor, Verb, actor_of, can, require, visible
from console.pages import page
from console.pipelines import definition_shown
from inference.errors import Forbidden, NotFound, SerinusError
from registry import actions, pipelines
from registry.models import Version, VersionStatus

EXAMPLE = """{
  "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
  "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 2], "labels": ["no", "yes"]}],
  "steps": [
    {"name": "embed", "model": "minilm", "input_map": {"text": "text"}, "output_map": {"embedding": "vector"}},
    {"name": "classify", "model": "verdict", "input_map": {"x": "vector"}, "output_map": {"y": "scores"}}
  ]
}"""


@require_GET
@page
def new(request: HttpRequest) -> HttpResponse:
    actor = actor_of(request)
    require(actor, Verb.UPLOAD)
    ready = visible(actor, Version.objects.filter(status=VersionStatus.READY), "model__team")
    known = ready.order_by("model__name").values_list("model__name", flat=True).distinct()[:200]
    context = {"teams": _teams(actor), "models": list(known), "definition": EXAMPLE, **_form(request)}
    return render(request, "pipeline_new.html", context)


@require_POST
@page
def check(request: HttpRequest) -> HttpResponse:
    """The verdict about a definition as it stands, as a fragment. Writes nothing."""
    actor = actor_of(request)
    require(actor, Verb.UPLOAD)
    team = _team(actor, request)
    with transaction.atomic():
        judged = pipelines.examine(request.POST.get("definition", "").encode(errors="replace"), team)
    context: dict[str, Any] = {"checks": judged.checks, "signature": judged.signature}
    if judged.pipeline is not None:
        context["pipeline"] = definition_shown(judged.pipeline, judged.versions)
    return render(request, "part/pipeline_check.html", context)


@require_POST
@page
def create(request: HttpRequest) -> HttpResponse:
    actor = actor_of(request)
    name = request.POST.get("model", "").strip()
    definition = request.POST.get("definition", "")
    try:
        version = actions.create_pipeline(
            actor=actor,
            model_name=name,
            definition=definition.encode(errors="replace"),
            alias=request.POST.get("alias", "").strip() or None,
            team=_team(actor, request),
        )
    except (Forbidden, NotFound):
        raise
    except SerinusError as error:
        messages.error(request, error.message)
        context = {"teams": _teams(actor), "models": [], "definition": definition, **_form(request)}
        return render(request, "pipeline_new.html", context, status=400)
    if version.status == VersionStatus.READY:
        messages.success(request, f"{version} is ready to be deployed.")
    return redirect(reverse("console:version", args=[version.model.name, version.number]))


def _form(request: HttpRequest) -> dict[str, str]:
    given = request.POST or request.GET
    return {
        "chosen": given.get("model", "")[:64],
        "alias": given.get("alias", "")[:64],
        "team": given.get("team", "")[:64],
    }


def _teams(actor: Actor) -> list[Team]:
    return [team for team in visible(actor, Team.objects.order_by("name"), "pk") if can(actor, Verb.UPLOAD, team)]


def _team(actor: Actor, request: HttpRequest) -> Team:
    """The team that was chosen, or the only one. Raises Forbidden, and NotFound for a team that is not the actor's."""
    name = request.POST.get("team", "")
    teams = [team for team in _teams(actor) if not name or team.name == name]
    if not teams:
        raise NotFound(f"You may not upload for a team “{name[:64]}”.")
    return teams[0]
