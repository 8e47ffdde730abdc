"""The page from which a model is uploaded. The bytes go by tus, the version by the control API, as from anywhere."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from accounts.models import Team
from accounts.permissions import Verb, actor_of, can, require, visible
from console.pages import page
from registry.models import Model

MAX_LISTED = 500


@require_GET
@page
def upload(request: HttpRequest) -> HttpResponse:
    actor = actor_of(request)
    require(actor, Verb.UPLOAD)
    teams = [team for team in visible(actor, Team.objects.order_by("name"), "pk") if can(actor, Verb.UPLOAD, team)]
    rows = visible(actor, Model.objects.select_related("team").order_by("name"))[:MAX_LISTED]
    known = {model.name: model.team.name for model in rows}
    config = {"models": known, "uploads_url": "/api/uploads/", "models_url": "/api/models/"}
    context = {
        "teams": teams,
        "known": known,
        "config": config,
        "chosen": request.GET.get("model", "")[:64],
        "code": any(can(actor, Verb.UPLOAD_CODE, team) for team in teams),
    }
    return render(request, "upload.html", context)
