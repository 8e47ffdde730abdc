"""API keys: made, shown once, revoked."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.db.models import BooleanField, Case, Value, When
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_POST

from accounts import actions
from accounts.models import ApiKey, Role, Team
from accounts.permissions import MAY, Actor, Verb, actor_of, can, require, visible
from accounts.teams import find_team
from console.forms import KeyForm, RatesForm, complain
from console.pages import attempt, page
from endpoints.models import Endpoint
from inference.errors import Forbidden, NotFound, SerinusError

MAX_LISTED = 300


@require_GET
@page
def keys(request: HttpRequest) -> HttpResponse:
    actor = actor_of(request)
    require(actor, Verb.MANAGE_KEYS)
    return render(request, "keys.html", _context(request, actor))


def _context(request: HttpRequest, actor: Actor) -> dict[str, Any]:
    expired = Case(When(expires_at__lte=Now(), then=Value(True)), default=Value(False), output_field=BooleanField())
    rows = visible(actor, ApiKey.objects.annotate(expired=expired)).select_related("team", "created_by")
    teams = [team for team in visible(actor, Team.objects.order_by("name"), "pk") if can(actor, Verb.MANAGE_KEYS, team)]
    shown = request.GET.get("all") == "1"
    if not shown:
        rows = rows.filter(revoked_at=None)
    return {
        "rows": rows.order_by("-created_at")[:MAX_LISTED],
        "teams": teams,
        "managed": {team.pk for team in teams},
        "roles": [
            (value, label, ", ".join(sorted(verb.replace("_", " ") for verb in MAY[value])))
            for value, label in Role.choices
        ],
        "endpoints": visible(actor, Endpoint.objects.select_related("team").order_by("name"))[:MAX_LISTED],
        "all": shown,
    }


@require_POST
@never_cache
@page
def create(request: HttpRequest) -> HttpResponse:
    """Shows the secret in the answer to this very request: it is stored nowhere, so a redirect could not show it."""
    actor = actor_of(request)
    form = KeyForm(request.POST)
    if not form.is_valid():
        return complain(request, form, reverse("console:keys"))
    wish = form.cleaned_data
    days = wish["days"]
    try:
        key, token = actions.create_key(
            actor=actor,
            name=wish["name"],
            team=find_team(actor, wish["team"]),
            role=wish["role"],
            endpoints=[name for name in request.POST.getlist("endpoints") if name] or None,
            expires_at=timezone.now() + timedelta(days=days) if days else None,
            requests_per_s=wish["requests_per_s"] or 0.0,
            rows_per_s=wish["rows_per_s"] or 0.0,
        )
    except (Forbidden, NotFound):
        raise
    except SerinusError as error:
        return render(request, "keys.html", {**_context(request, actor), "error": error.message}, status=400)
    return render(request, "keys.html", {**_context(request, actor), "made": key, "token": token})


def _key(actor: Actor, key: str) -> ApiKey:
    found = visible(actor, ApiKey.objects.select_related("team")).filter(pk=key).first()
    if found is None:
        raise NotFound("There is no such key in your teams.")
    return found


@require_POST
@page
def rates(request: HttpRequest, key: str) -> HttpResponse:
    actor = actor_of(request)
    found = _key(actor, key)
    form = RatesForm(request.POST)
    if not form.is_valid():
        return complain(request, form, reverse("console:keys"))
    wish = {name: value or 0.0 for name, value in form.cleaned_data.items()}
    said = f"The limits of “{found.name}” are set. Gateways follow within a second."
    return attempt(request, reverse("console:keys"), said, lambda: actions.set_rates(actor=actor, key=found, **wish))


@require_POST
@page
def revoke(request: HttpRequest, key: str) -> HttpResponse:
    actor = actor_of(request)
    found = _key(actor, key)
    return attempt(
        request,
        reverse("console:keys"),
        f"“{found.name}” is revoked. Gateways refuse it within a second.",
        lambda: actions.revoke_key(actor=actor, key=found),
    )
