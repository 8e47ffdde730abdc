"""Users, teams and roles, and why somebody may or may not do something."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.auth import update_session_auth_hash
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_POST

from accounts import actions
from accounts.models import Role, Team, User
from accounts.permissions import MAY, Actor, Verb, actor_of, actor_of_user, can, require, visible
from accounts.teams import find_team, known_people
from console.forms import PersonForm, complain
from console.pages import attempt, page, rights
from inference.errors import NotFound

MAX_LISTED = 300
MEANING = {
    Verb.VIEW: "see models, endpoints, hosts",
    Verb.UPLOAD: "upload models",
    Verb.DEPLOY: "deploy, move traffic, archive",
    Verb.MANAGE_KEYS: "create and revoke API keys",
    Verb.OPERATE: "restart replicas, open endpoints",
    Verb.UPLOAD_CODE: "upload models that hold code",
    Verb.VIEW_AUDIT: "read the audit trail",
    Verb.APPROVE: "approve code",
    Verb.MANAGE_PEOPLE: "manage people and roles",
}


def _user_named(actor: Actor, username: str) -> User:
    found = known_people(actor).filter(username=username).first()
    if found is None:
        raise NotFound("There is no such person in your teams.")
    return found


@require_GET
@page
def people(request: HttpRequest) -> HttpResponse:
    actor = actor_of(request)
    require(actor, Verb.VIEW)
    teams = list(visible(actor, Team.objects.order_by("name"), "pk"))
    context: dict[str, Any] = {
        "people": known_people(actor).order_by("-is_active", "username")[:MAX_LISTED],
        "teams": teams,
        "managed": [team for team in teams if can(actor, Verb.MANAGE_PEOPLE, team)],
        "roles": Role.choices,
        "own": set(actor.roles),
        "verbs": [(verb.value, MEANING[verb]) for verb in Verb],
        "matrix": [(MEANING[verb], [verb in MAY[role] for role in Role.values]) for verb in Verb],
        "may": rights(actor),
    }
    return render(request, "people.html", context)


@require_GET
@page
def person(request: HttpRequest, username: str) -> HttpResponse:
    actor = actor_of(request)
    found = _user_named(actor, username)
    teams = list(visible(actor, Team.objects.order_by("name"), "pk"))
    held = {membership.team_id: membership.role for membership in found.memberships.all()}
    context = {
        "person": found,
        "rows": [{"team": t, "role": held.get(t.pk, ""), "managed": can(actor, Verb.MANAGE_PEOPLE, t)} for t in teams],
        "roles": Role.choices,
        "rules": actions.rules_over(actor, found),
        "myself": actor.user is not None and actor.user.pk == found.pk,
    }
    return render(request, "person.html", context)


@require_GET
@page
def why(request: HttpRequest) -> HttpResponse:
    """May this person do that in this team, and by which rule?"""
    actor = actor_of(request)
    user = _user_named(actor, request.GET.get("user", ""))
    team = find_team(actor, request.GET.get("team", ""))
    wanted = request.GET.get("verb", "")
    if wanted not in set(Verb):
        raise NotFound("There is no such right.")
    verb = Verb(wanted)
    them = actor_of_user(user)
    context = {
        "person": user,
        "team": team,
        "meaning": MEANING[verb],
        "allowed": user.is_active and can(them, verb, team),
        "role": them.roles.get(team.pk, ""),
        "needed": next((label for role, label in Role.choices if verb in MAY[role]), ""),
    }
    return render(request, "part/why.html", context)


@require_POST
@page
def create_person(request: HttpRequest) -> HttpResponse:
    actor = actor_of(request)
    back = reverse("console:people")
    form = PersonForm(request.POST)
    if not form.is_valid():
        return complain(request, form, back)
    wish = form.cleaned_data

    @transaction.atomic
    def make() -> None:
        """The person with the role, or nothing."""
        user = actions.create_user(
            actor=actor, username=wish["username"], password=wish["password"], email=wish["email"]
        )
        if wish["team"] and wish["role"]:
            actions.set_role(actor=actor, user=user, team=find_team(actor, wish["team"]), role=wish["role"])

    return attempt(request, back, f"{wish['username']} can log in now.", make)


@require_POST
@page
def create_team(request: HttpRequest) -> HttpResponse:
    actor, name = actor_of(request), request.POST.get("name", "").strip()
    return attempt(
        request,
        reverse("console:people"),
        f"The team “{name}” is there.",
        lambda: actions.create_team(actor=actor, name=name),
    )


@require_POST
@page
def set_role(request: HttpRequest, username: str) -> HttpResponse:
    actor = actor_of(request)
    found = _user_named(actor, username)
    team = find_team(actor, request.POST.get("team", ""))
    role = request.POST.get("role") or None
    said = f"{username} is {role} of “{team.name}” now." if role else f"{username} left “{team.name}”."
    return attempt(
        request,
        reverse("console:person", args=[username]),
        said,
        lambda: actions.set_role(actor=actor, user=found, team=team, role=role),
    )


@require_POST
@page
def add_member(request: HttpRequest) -> HttpResponse:
    """Takes somebody in who has an account: by name, since people of other teams are not listed."""
    actor = actor_of(request)
    team = find_team(actor, request.POST.get("team", ""))
    require(actor, Verb.MANAGE_PEOPLE, team)
    username, role = request.POST.get("username", "").strip(), request.POST.get("role", "")
    back = reverse("console:people")
    found = User.objects.filter(username=username).first()
    if found is None:
        messages.error(request, f"There is nobody named “{username[:150]}”.")
        return redirect(back)
    said = f"{username} is {role} of “{team.name}” now."
    return attempt(request, back, said, lambda: actions.set_role(actor=actor, user=found, team=team, role=role))


@require_POST
@page
def set_password(request: HttpRequest, username: str) -> HttpResponse:
    actor = actor_of(request)
    found = _user_named(actor, username)
    password = request.POST.get("password", "")

    def change() -> None:
        actions.set_password(actor=actor, user=found, password=password)
        if actor.user is not None and actor.user.pk == found.pk:
            update_session_auth_hash(request, found)

    back = reverse("console:person", args=[username])
    return attempt(request, back, "The password is set; other sessions have ended.", change)


@require_POST
@page
def deactivate(request: HttpRequest, username: str) -> HttpResponse:
    actor = actor_of(request)
    found = _user_named(actor, username)
    return attempt(
        request,
        reverse("console:people"),
        f"{username} can no longer log in.",
        lambda: actions.deactivate_user(actor=actor, user=found),
    )
