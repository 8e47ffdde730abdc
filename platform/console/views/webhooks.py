"""Webhooks: made, tried, switched off and on, deleted; what was sent to each and how it went."""

from __future__ import annotations

from typing import Any

from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_POST

from accounts.models import Team
from accounts.permissions import Actor, Verb, actor_of, can, require, visible
from accounts.teams import find_team
from console.forms import WebhookForm, complain
from console.pages import attempt, page
from inference.errors import Forbidden, NotFound, SerinusError
from rollouts import webhooks as actions
from rollouts.models import Webhook, WebhookDelivery

MAX_LISTED = 200
MAX_DELIVERIES = 100


@require_GET
@page
def webhooks(request: HttpRequest) -> HttpResponse:
    actor = actor_of(request)
    require(actor, Verb.OPERATE)
    return render(request, "webhooks.html", _context(actor))


def _context(actor: Actor) -> dict[str, Any]:
    teams = [team for team in visible(actor, Team.objects.order_by("name"), "pk") if can(actor, Verb.OPERATE, team)]
    return {"rows": _rows(actor)[:MAX_LISTED], "teams": teams, "events": actions.EVENTS}


def _rows(actor: Actor) -> QuerySet[Webhook]:
    """Each with how its newest delivery went."""
    newest = WebhookDelivery.objects.filter(webhook=OuterRef("pk")).order_by("-at")
    rows = visible(actor, Webhook.objects.select_related("team"), verb=Verb.OPERATE)
    told = {f"last_{name}": Subquery(newest.values(name)[:1]) for name in ("state", "status", "attempt", "at", "event")}
    return rows.annotate(**told).order_by("-pk")


@require_POST
@never_cache
@page
def create(request: HttpRequest) -> HttpResponse:
    """Shows the secret in the answer to this very request, and never again."""
    actor = actor_of(request)
    form = WebhookForm(request.POST)
    if not form.is_valid():
        return complain(request, form, reverse("console:webhooks"))
    wish, events = form.cleaned_data, [name for name in request.POST.getlist("events") if name]
    try:
        made, secret = actions.create_webhook(
            actor=actor, team=find_team(actor, wish["team"]), url=wish["url"], events=events
        )
    except (Forbidden, NotFound):
        raise
    except SerinusError as error:
        return render(request, "webhooks.html", {**_context(actor), "error": error.message}, status=400)
    return render(request, "webhooks.html", {**_context(actor), "made": made, "secret": secret})


@require_GET
@page
def webhook(request: HttpRequest, webhook: int) -> HttpResponse:
    """One with the newest of its deliveries; `?part=` only these, while some wait."""
    actor = actor_of(request)
    found = _webhook(actor, webhook)
    deliveries = list(WebhookDelivery.objects.filter(webhook=found).order_by("-at", "id")[:MAX_DELIVERIES])
    waits = any(one.state == WebhookDelivery.State.PENDING for one in deliveries)
    context = {"webhook": found, "deliveries": deliveries, "waits": waits, "most": MAX_DELIVERIES}
    return render(request, "part/deliveries.html" if request.GET.get("part") else "webhook.html", context)


def _webhook(actor: Actor, pk: int) -> Webhook:
    """Raises NotFound for what others own, Forbidden for who may only look at the team."""
    found = visible(actor, _known()).filter(pk=min(pk, 2**63 - 1)).first()
    if found is None:
        raise NotFound("There is no such webhook in your teams.")
    require(actor, Verb.OPERATE, found)
    return found


def _known() -> QuerySet[Webhook]:
    return Webhook.objects.select_related("team")


@require_POST
@page
def test(request: HttpRequest, webhook: int) -> HttpResponse:
    actor = actor_of(request)
    found = _webhook(actor, webhook)
    said = "A test is on its way. How it went is in the log below."
    back = reverse("console:webhook", args=[found.pk])
    return attempt(request, back, said, lambda: actions.test_webhook(actor=actor, webhook=found))


@require_POST
@page
def switch(request: HttpRequest, webhook: int) -> HttpResponse:
    actor = actor_of(request)
    found = _webhook(actor, webhook)
    on = request.POST.get("enabled") == "1"
    said = (
        "It is told of events again." if on else "It is told of nothing any more, and what waited for it is given up."
    )
    back = reverse("console:webhook", args=[found.pk])
    return attempt(request, back, said, lambda: actions.change_webhook(actor=actor, webhook=found, enabled=on))


@require_POST
@page
def delete(request: HttpRequest, webhook: int) -> HttpResponse:
    actor = actor_of(request)
    found = _webhook(actor, webhook)
    back = reverse("console:webhooks")
    said = "The webhook and its log are deleted."
    return attempt(request, back, said, lambda: actions.delete_webhook(actor=actor, webhook=found))
