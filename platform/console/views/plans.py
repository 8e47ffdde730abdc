"""Plans: the templates and the teams' own, with their numbers; saving one."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_POST

from accounts.models import Team
from accounts.permissions import Actor, Verb, actor_of, can, require, visible
from accounts.teams import find_team
from console import rollout_plans
from console.pages import page
from inference.errors import Forbidden, NotFound, SerinusError
from rollouts import actions
from rollouts import plans as known


@require_GET
@page
def plans(request: HttpRequest) -> HttpResponse:
    actor = actor_of(request)
    require(actor, Verb.VIEW)
    return render(request, "plans.html", _context(actor, request.GET.get("from", "")))


def _context(actor: Actor, begin_with: str = "") -> dict[str, Any]:
    saved = rollout_plans.saved_of(actor)
    shown = [*rollout_plans.templates(), *saved]
    first = next((one.plan for one in shown if one.plan.name == begin_with), known.TEMPLATES[known.DEFAULT_PLAN])
    text = rollout_plans.plan_json(first)
    if known.template(first.name) is not None:
        text = text.replace(f'"{first.name}"', '"mine"', 1)
    teams = [team for team in visible(actor, Team.objects.order_by("name"), "pk") if can(actor, Verb.DEPLOY, team)]
    return {
        "rows": [{"known": one, "numbers": rollout_plans.numbers(one.plan)} for one in shown],
        "teams": teams,
        "text": text,
    }


@require_POST
@page
def save(request: HttpRequest) -> HttpResponse:
    actor = actor_of(request)
    require(actor, Verb.DEPLOY)
    text = str(request.POST.get("plan", ""))
    try:
        plan = rollout_plans.read_json(text)
        saved = actions.save_plan(team=find_team(actor, str(request.POST.get("team", ""))), plan=plan, actor=actor)
    except (Forbidden, NotFound):
        raise
    except SerinusError as error:
        context = {**_context(actor), "text": text[: rollout_plans.MAX_PLAN_CHARS], "plan_error": error.message}
        return render(request, "plans.html", context, status=400)
    messages.success(request, f"The plan “{saved.name}” is saved as number {saved.number}.")
    return redirect(reverse("console:plans"))
