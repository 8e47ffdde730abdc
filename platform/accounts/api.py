"""Control API of people, teams, keys and the audit trail: reads rows, calls actions, decides nothing."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import update_session_auth_hash
from django.db.models import QuerySet
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts import (
    actions,
    schema,  # noqa: F401 (registers itself)
)
from accounts import serializers as shapes
from accounts.explain import explain
from accounts.models import ApiKey, AuditEntry, Team, User
from accounts.pagination import KeysetPagination
from accounts.permissions import MAY, Actor, Verb, actor_of, require, visible
from accounts.teams import find_team, known_people, team_for
from inference.errors import Forbidden, NotFound


def actor(request: Request) -> Actor:
    return actor_of(request._request)  # noqa: SLF001 (authentication writes it there)


class KeysetView(APIView):
    """A list, newest first, a page at a time."""

    def page(self, request: Request, rows: QuerySet[Any], shape: Any) -> Response:
        pages = KeysetPagination()
        found = pages.paginate_queryset(rows, request, view=self)
        return pages.get_paginated_response(shape(found, many=True).data)


class CreatedFirst(KeysetPagination):
    """For rows whose primary key does not grow."""

    ordering = ("-created_at", "pk")  # type: ignore[assignment]  # DRF takes both


class Me(APIView):
    @extend_schema(responses=OpenApiTypes.OBJECT)
    def get(self, request: Request) -> Response:
        """Who am I, and what may I do where?"""
        who = actor(request)
        teams = visible(who, Team.objects.order_by("name"), "pk")
        verbs = {t.name: sorted(Verb) if who.superuser else sorted(MAY[who.roles[t.pk]]) for t in teams}
        roles = {t.name: "admin" if who.superuser else who.roles[t.pk] for t in teams}
        return Response(
            {"kind": who.kind, "name": who.name, "superuser": who.superuser, "teams": roles, "verbs": verbs}
        )


class Keys(KeysetView):
    @extend_schema(responses=shapes.KeyShown(many=True))
    def get(self, request: Request) -> Response:
        rows = visible(actor(request), ApiKey.objects.select_related("team", "created_by"))
        pages = CreatedFirst()
        found = pages.paginate_queryset(rows, request, view=self)
        return pages.get_paginated_response(shapes.KeyShown(found, many=True).data)

    @extend_schema(request=shapes.NewKey, responses={201: shapes.NewKeyShown})
    def post(self, request: Request) -> Response:
        """Make a key. Its token is in this answer and nowhere else."""
        wanted = shapes.read(shapes.NewKey, request)
        team = team_for(actor(request), Verb.MANAGE_KEYS, wanted.pop("team"))
        key, token = actions.create_key(actor=actor(request), team=team, **wanted)
        key.token = token  # type: ignore[attr-defined]
        return Response(shapes.NewKeyShown(key).data, 201)


def find_key(who: Actor, key_id: str) -> ApiKey:
    key = visible(who, ApiKey.objects.select_related("team", "created_by")).filter(pk=key_id).first()
    if key is None:
        raise NotFound(f"there is no key ser_{key_id}")
    return key


class Key(APIView):
    @extend_schema(responses=shapes.KeyShown)
    def get(self, request: Request, key_id: str) -> Response:
        return Response(shapes.KeyShown(find_key(actor(request), key_id)).data)

    @extend_schema(request=shapes.NewRates, responses=shapes.KeyShown)
    def patch(self, request: Request, key_id: str) -> Response:
        """Change what it may send a second; gateways follow within a second."""
        who = actor(request)
        key = actions.set_rates(actor=who, key=find_key(who, key_id), **shapes.read(shapes.NewRates, request))
        return Response(shapes.KeyShown(key).data)

    @extend_schema(responses={204: None})
    def delete(self, request: Request, key_id: str) -> Response:
        """Revoke it; the row stays."""
        actions.revoke_key(actor=actor(request), key=find_key(actor(request), key_id))
        return Response(status=204)


class RevokeKey(APIView):
    @extend_schema(request=shapes.Reason, responses=shapes.KeyShown)
    def post(self, request: Request, key_id: str) -> Response:
        """Revoke it; gateways refuse it within a second."""
        reason = shapes.read(shapes.Reason, request)["reason"]
        key = actions.revoke_key(actor=actor(request), key=find_key(actor(request), key_id), reason=reason)
        return Response(shapes.KeyShown(key).data)


class Teams(KeysetView):
    @extend_schema(responses=shapes.TeamShown(many=True))
    def get(self, request: Request) -> Response:
        rows = visible(actor(request), Team.objects.prefetch_related("memberships__user"), "pk")
        return self.page(request, rows, shapes.TeamShown)

    @extend_schema(request=shapes.NewTeam, responses={201: shapes.TeamShown})
    def post(self, request: Request) -> Response:
        team = actions.create_team(actor=actor(request), **shapes.read(shapes.NewTeam, request))
        return Response(shapes.TeamShown(team).data, 201)


class TeamByName(APIView):
    @extend_schema(responses=shapes.TeamShown)
    def get(self, request: Request, team: str) -> Response:
        return Response(shapes.TeamShown(find_team(actor(request), team)).data)


class Member(APIView):
    """A person's role in a team."""

    @extend_schema(request=shapes.NewRole, responses=shapes.TeamShown)
    def put(self, request: Request, team: str, username: str) -> Response:
        """Give the role, or change it."""
        return self._set(request, team, username, shapes.read(shapes.NewRole, request)["role"])

    @extend_schema(responses=shapes.TeamShown)
    def delete(self, request: Request, team: str, username: str) -> Response:
        return self._set(request, team, username, None)

    def _set(self, request: Request, team: str, username: str, role: str | None) -> Response:
        who = actor(request)
        row = find_team(who, team)
        require(who, Verb.MANAGE_PEOPLE, row)
        user = User.objects.filter(username=username).first()
        if user is None:
            raise NotFound(f"there is no user '{username}'")
        actions.set_role(actor=who, user=user, team=row, role=role)
        return Response(shapes.TeamShown(find_team(who, team)).data)


def find_user(who: Actor, username: str) -> User:
    user = known_people(who).filter(username=username).first()
    if user is None:
        raise NotFound(f"there is no user '{username}'")
    return user


def shown_user(who: Actor, user: User) -> dict[str, Any]:
    """Of a person's teams, those that the asker may know of."""
    data: dict[str, Any] = dict(shapes.UserShown(user).data)
    if not who.superuser:
        mine = {member.team.name for member in user.memberships.all() if member.team_id in who.roles}
        data["teams"] = [team for team in data["teams"] if team["team"] in mine]
    return data


class Users(APIView):
    @extend_schema(responses=shapes.UserShown(many=True))
    def get(self, request: Request) -> Response:
        pages, who = KeysetPagination(), actor(request)
        found = pages.paginate_queryset(known_people(who), request, view=self) or []
        return pages.get_paginated_response([shown_user(who, user) for user in found])

    @extend_schema(request=shapes.NewUser, responses={201: shapes.UserShown})
    def post(self, request: Request) -> Response:
        """A new person, without any role yet."""
        user = actions.create_user(actor=actor(request), **shapes.read(shapes.NewUser, request))
        return Response(shapes.UserShown(user).data, 201)


class UserByName(APIView):
    @extend_schema(responses=shapes.UserShown)
    def get(self, request: Request, username: str) -> Response:
        return Response(shown_user(actor(request), find_user(actor(request), username)))


class Password(APIView):
    @extend_schema(request=shapes.NewPassword, responses={204: None})
    def post(self, request: Request, username: str) -> Response:
        """Set a password; one's own needs the current one. Every other session of the person ends."""
        wanted, who = shapes.read(shapes.NewPassword, request), actor(request)
        user = find_user(who, username)
        own = who.user is not None and who.user.pk == user.pk
        if own and not user.check_password(wanted["current"]):
            raise Forbidden("the current password is not right")
        actions.set_password(actor=who, user=user, password=wanted["password"])
        if own:
            update_session_auth_hash(request._request, user)  # noqa: SLF001 (the session lies there)
        return Response(status=204)


class Deactivate(APIView):
    @extend_schema(request=shapes.Reason, responses={204: None})
    def post(self, request: Request, username: str) -> Response:
        """End the person's access at once."""
        reason = shapes.read(shapes.Reason, request)["reason"]
        actions.deactivate_user(actor=actor(request), user=find_user(actor(request), username), reason=reason)
        return Response(status=204)


class Audit(KeysetView):
    @extend_schema(parameters=[shapes.AuditQuery], responses=shapes.AuditShown(many=True))
    def get(self, request: Request) -> Response:
        """Who did what; of the teams where the caller may read the audit trail."""
        who, wanted = actor(request), shapes.read_query(shapes.AuditQuery, request)
        require(who, Verb.VIEW_AUDIT)
        rows = visible(who, AuditEntry.objects.select_related("team"), verb=Verb.VIEW_AUDIT)
        paths = {"team": "team__name", "since": "at__gte", "until": "at__lt"}
        rows = rows.filter(**{paths.get(name, name): value for name, value in wanted.items()})
        return self.page(request, rows, shapes.AuditShown)


class Explain(APIView):
    @extend_schema(parameters=[shapes.ExplainQuery], responses=OpenApiTypes.OBJECT)
    def get(self, request: Request) -> Response:
        """May this actor do that to this object, and why?"""
        wanted = shapes.read_query(shapes.ExplainQuery, request)
        return Response(explain(actor(request), wanted["actor"], wanted["verb"], wanted["object"]))
