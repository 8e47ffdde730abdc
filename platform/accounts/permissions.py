"""Who may do what: one `can(actor, verb, obj)` behind pages, API, WebSocket and command line."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

from django.db.models import Model, QuerySet

from accounts.models import ApiKey, Membership, Role, Team, User
from inference.errors import Forbidden

if TYPE_CHECKING:
    from django.http import HttpRequest


class Verb(StrEnum):
    VIEW = "view"
    UPLOAD = "upload"
    DEPLOY = "deploy"
    MANAGE_KEYS = "manage_keys"
    OPERATE = "operate"
    UPLOAD_CODE = "upload_code"
    VIEW_AUDIT = "view_audit"
    APPROVE = "approve"
    MANAGE_PEOPLE = "manage_people"


_VIEWER = frozenset({Verb.VIEW})
_DEVELOPER = _VIEWER | {Verb.UPLOAD, Verb.DEPLOY, Verb.MANAGE_KEYS}
_OPERATOR = _DEVELOPER | {Verb.OPERATE, Verb.UPLOAD_CODE, Verb.VIEW_AUDIT}
_ADMIN = _OPERATOR | {Verb.APPROVE, Verb.MANAGE_PEOPLE}
MAY: dict[str, frozenset[Verb]] = {
    Role.VIEWER: _VIEWER,
    Role.DEVELOPER: _DEVELOPER,
    Role.OPERATOR: _OPERATOR,
    Role.ADMIN: _ADMIN,
}


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts: a person, a key, or the platform itself.

    roles: team id -> role. A superuser (or a platform_admin key, or the system) may do everything.
    """

    kind: str
    name: str
    roles: dict[int, str]
    superuser: bool = False
    user: User | None = None
    key: ApiKey | None = None
    request_id: str = ""

    @property
    def known(self) -> bool:
        return self.kind != "anonymous"


ANONYMOUS = Actor(kind="anonymous", name="anonymous", roles={})
SYSTEM = Actor(kind="system", name="serinus", roles={}, superuser=True)


def actor_of_user(user: User, request_id: str = "") -> Actor:
    roles = dict(Membership.objects.filter(user=user).values_list("team_id", "role"))
    return Actor("user", user.username, roles, superuser=user.is_superuser, user=user, request_id=request_id)


def actor_of_key(key: ApiKey, request_id: str = "") -> Actor:
    roles = {key.team_id: key.role}
    name = f"{key.name} (ser_{key.id})"
    return Actor("key", name, roles, superuser=key.platform_admin, key=key, request_id=request_id)


def actor_of(request: HttpRequest) -> Actor:
    """The request's actor; ANONYMOUS when nobody is known."""
    return getattr(request, "actor", ANONYMOUS)


def team_of(obj: Any) -> Team | None:
    """The team that owns `obj`, which is a team or has `.team` or `.model.team`; None for what belongs to all."""
    if obj is None or isinstance(obj, Team):
        return obj
    for path in (("team",), ("model", "team"), ("version", "model", "team"), ("endpoint", "team")):
        found = obj
        for name in path:
            found = getattr(found, name, None)
        if isinstance(found, Team):
            return found
    return None


def can(actor: Actor, verb: Verb, obj: Any = None) -> bool:
    """May `actor` do `verb` to `obj`? Without an object: in at least one team, or, for a platform-wide thing, as
    superuser only where the verb changes it.
    """
    if actor.superuser:
        return True
    team = team_of(obj)
    if team is not None:
        return verb in MAY.get(actor.roles.get(team.id, ""), frozenset())
    if obj is not None and verb is not Verb.VIEW:
        return False
    return any(verb in MAY[role] for role in actor.roles.values())


def require(actor: Actor, verb: Verb, obj: Any = None) -> None:
    """Raises Forbidden, saying which right is missing."""
    if not can(actor, verb, obj):
        team = team_of(obj)
        where = f" in team '{team.name}'" if team else ""
        raise Forbidden(f"{actor.name} has no right to {verb.value.replace('_', ' ')}{where}: ask an admin for a role")


def teams_where(actor: Actor, verb: Verb) -> list[int]:
    """Ids of the teams in which the actor may do `verb`; a superuser's are in no list."""
    return [team for team, role in actor.roles.items() if verb in MAY[role]]


M = TypeVar("M", bound=Model)


def visible(actor: Actor, rows: QuerySet[M], team_path: str = "team", *, verb: Verb = Verb.VIEW) -> QuerySet[M]:
    """Those of `rows` that belong to the teams in which the actor may do `verb`."""
    if actor.superuser:
        return rows
    return rows.filter(**{f"{team_path}__in": teams_where(actor, verb)})
