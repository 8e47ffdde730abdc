"""Teams and people that somebody may know of; which team a new thing belongs to when the caller does not say."""

from __future__ import annotations

from django.db.models import Q, QuerySet

from accounts.models import Team, User
from accounts.permissions import Actor, Verb, can, require, visible
from inference.errors import ClientError, NotFound

DEFAULT_TEAM = "default"


def find_team(actor: Actor, name: str) -> Team:
    """The team, if the actor may know of it; NotFound otherwise."""
    team = visible(actor, Team.objects.all(), "pk").filter(name=name).first()
    if team is None:
        raise NotFound(f"there is no team '{name[:64]}'")
    return team


def known_people(actor: Actor) -> QuerySet[User]:
    """Oneself, and those who share a team; for a superuser everybody."""
    rows = User.objects.prefetch_related("memberships__team")
    if actor.superuser:
        return rows
    mates = User.objects.filter(memberships__team__in=list(actor.roles)).values("pk")
    return rows.filter(Q(pk__in=mates) | Q(pk=actor.user.pk if actor.user else None))


def team_for(actor: Actor, verb: Verb, name: str = "") -> Team:
    """The named team; else a key's own, a person's only one, or the default team. Raises Forbidden, NotFound."""
    if name:
        team = find_team(actor, name)
        require(actor, verb, team)
        return team
    if actor.key is not None:
        require(actor, verb, actor.key.team)
        return actor.key.team
    require(actor, verb)
    teams = [team for team in visible(actor, Team.objects.order_by("pk"), "pk") if can(actor, verb, team)]
    if len(teams) == 1:
        return teams[0]
    for team in teams:
        if team.name == DEFAULT_TEAM:
            return team
    raise ClientError(
        "say which team this is for: you have the right in " + (", ".join(t.name for t in teams) or "none")
    )
