"""The only writer of this app's rows: transaction, compare-and-swap, audit entry, on_commit.

Every action takes the actor, checks the right first, and raises only inference.errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from accounts import keys
from accounts.audit import record
from accounts.models import ApiKey, Membership, Role, Team, User
from accounts.names import check_slug, check_text, check_username
from accounts.permissions import MAY, Actor, Verb, can, require
from accounts.wakeups import send_on_commit
from inference.errors import ClientError, Conflict, Forbidden

PUBLISH = "endpoints.tasks.publish"
MAX_KEY_ENDPOINTS = 200
MIN_RATE, MAX_RATE = 0.001, 1e7
USED_AGAIN = timedelta(seconds=30)


def require_superuser(actor: Actor, what: str) -> None:
    if not actor.superuser:
        raise Forbidden(f"{actor.name} has no right to {what}: only a superuser may")


def rules_over(actor: Actor, user: User) -> bool:
    """May `actor` change this person's account? A superuser may; the admin of every team the person is in may too."""
    if actor.superuser:
        return True
    teams = [membership.team for membership in user.memberships.select_related("team")]
    return bool(teams) and not user.is_superuser and all(can(actor, Verb.MANAGE_PEOPLE, team) for team in teams)


def _checked_password(password: str, user: User | None) -> str:
    try:
        validate_password(password, user)
    except ValidationError as error:
        raise ClientError(" ".join(error.messages)) from error
    return check_text("password", password, 1000)


@transaction.atomic
def create_user(*, actor: Actor, username: str, password: str, email: str = "", superuser: bool = False) -> User:
    """A new person without any role yet. Raises Conflict when the name is taken."""
    require(actor, Verb.MANAGE_PEOPLE)
    if superuser:
        require_superuser(actor, "make a superuser")
    check_username(username)
    check_text("e-mail address", email, 254)
    if User.objects.filter(username__iexact=username).exists():
        raise Conflict(f"there is already a user '{username}'")
    user = User(username=username, email=email, is_superuser=superuser, is_staff=superuser)
    user.set_password(_checked_password(password, user))
    try:
        with transaction.atomic():
            user.save()
    except IntegrityError as error:
        raise Conflict(f"there is already a user '{username}'") from error
    record(actor, "create_user", "user", username, after={"email": email, "superuser": superuser})
    return user


@transaction.atomic
def set_password(*, actor: Actor, user: User, password: str) -> None:
    """The new password ends every session of the person but, for one's own, the running one."""
    own = actor.user is not None and actor.user.pk == user.pk
    if not own and not rules_over(actor, user):
        raise Forbidden(f"{actor.name} has no right to set the password of {user.username}")
    user.set_password(_checked_password(password, user))
    user.save(update_fields=["password"])
    record(actor, "set_password", "user", user.username)


@transaction.atomic
def deactivate_user(*, actor: Actor, user: User, reason: str = "") -> None:
    """Ends the person's access at once; history stays. Service keys belong to teams and live on.

    Raises Conflict for the last active superuser.
    """
    if not rules_over(actor, user):
        raise Forbidden(f"{actor.name} has no right to deactivate {user.username}")
    superusers = User.objects.select_for_update().filter(is_superuser=True, is_active=True)
    if user.is_superuser and {row.pk for row in superusers} <= {user.pk}:
        raise Conflict("this is the last active superuser: make another one first")
    if not User.objects.filter(pk=user.pk, is_active=True).update(is_active=False):
        return
    user.is_active = False
    record(
        actor, "deactivate_user", "user", user.username, before={"active": True}, after={"active": False}, reason=reason
    )


@transaction.atomic
def create_team(*, actor: Actor, name: str) -> Team:
    require_superuser(actor, "create teams")
    check_slug("team", name)
    team, made = Team.objects.get_or_create(name=name)
    if not made:
        raise Conflict(f"there is already a team '{name}'")
    record(actor, "create_team", "team", name, team=team)
    return team


@transaction.atomic
def set_role(*, actor: Actor, user: User, team: Team, role: str | None) -> Membership | None:
    """Gives the person this role in the team; None takes the membership away."""
    require(actor, Verb.MANAGE_PEOPLE, team)
    if role is not None and role not in Role.values:
        raise ClientError(f"'{role}' is no role: choose one of {', '.join(Role.values)}")
    Team.objects.select_for_update().get(pk=team.pk)
    held = Membership.objects.filter(user=user, team=team).first()
    before = held.role if held else None
    if before == role:
        return held
    if role is None:
        Membership.objects.filter(user=user, team=team).delete()
        row = None
    else:
        row, _ = Membership.objects.update_or_create(user=user, team=team, defaults={"role": role})
    name = f"{user.username}@{team.name}"
    record(actor, "set_role", "membership", name, team=team, before={"role": before}, after={"role": role})
    return row


def _require_rank(actor: Actor, team: Team, role: str, *, platform_admin: bool, what: str) -> None:
    """A key must not be able to do what its maker may not."""
    require(actor, Verb.MANAGE_KEYS, team)
    if platform_admin:
        require_superuser(actor, f"{what} a platform admin's key")
    if not actor.superuser and not MAY[role] <= MAY[actor.roles[team.id]]:
        raise Forbidden(f"{actor.name} has no right to {what} a key with more rights ({role}) than their own")


def _require_within(actor: Actor, endpoints: list[str], expires_at: datetime | None) -> None:
    """A key that makes a key: the new one reaches no further and lives no longer."""
    own = actor.key
    if own is None:
        return
    if "*" not in own.endpoints and not set(endpoints) <= set(own.endpoints):
        reach = ", ".join(own.endpoints) or "none"
        raise Forbidden(f"{actor.name} has no right to create a key for endpoints beyond its own ({reach})")
    if own.expires_at is not None and (expires_at is None or expires_at > own.expires_at):
        raise Forbidden(f"{actor.name} has no right to create a key that lives longer than itself")


def _checked_rates(actor: Actor, requests_per_s: float, rows_per_s: float) -> tuple[float, float]:
    """Rates as they are stored. A key gives no other key, and not itself, more than it has."""
    for name, rate, own in (
        ("requests_per_s", requests_per_s, actor.key.requests_per_s if actor.key else 0.0),
        ("rows_per_s", rows_per_s, actor.key.rows_per_s if actor.key else 0.0),
    ):
        if not math.isfinite(rate) or not (rate == 0 or MIN_RATE <= rate <= MAX_RATE):
            raise ClientError(f"{name} must be 0 for no bound, or a number from {MIN_RATE:g} to {MAX_RATE:g}")
        if own and not 0 < rate <= own:
            raise Forbidden(f"{actor.name} has no right to give a key more {name} than its own {own:g}")
    return float(requests_per_s), float(rows_per_s)


def _checked_endpoints(endpoints: list[str]) -> list[str]:
    if len(endpoints) > MAX_KEY_ENDPOINTS:
        raise ClientError(f"a key can name at most {MAX_KEY_ENDPOINTS} endpoints: use '*' for all of its team")
    if "*" in endpoints:
        return ["*"]
    return sorted({check_slug("endpoint", name) for name in endpoints})


@transaction.atomic
def create_key(
    *,
    actor: Actor,
    name: str,
    team: Team,
    role: str = Role.VIEWER,
    endpoints: list[str] | None = None,
    expires_at: datetime | None = None,
    platform_admin: bool = False,
    requests_per_s: float = 0.0,
    rows_per_s: float = 0.0,
) -> tuple[ApiKey, str]:
    """(row, token). The token is shown this once; only its digest is kept.

    endpoints: names it may call for predictions; None or ["*"] is all of its team. requests_per_s, rows_per_s: 0 for
    no bound. A key made by a key reaches no further, lives no longer and sends no more than its maker.
    """
    if role not in Role.values:
        raise ClientError(f"'{role}' is no role: choose one of {', '.join(Role.values)}")
    _require_rank(actor, team, role, platform_admin=platform_admin, what="create")
    if not name.strip():
        raise ClientError("a key needs a name that tells what it is for")
    check_text("name", name, 100)
    if expires_at is not None and (timezone.is_naive(expires_at) or expires_at <= timezone.now()):
        raise ClientError("expires_at must be a time in the future, with its time zone")
    reach = _checked_endpoints(["*"] if endpoints is None else endpoints)
    _require_within(actor, reach, expires_at)
    rates = _checked_rates(actor, requests_per_s, rows_per_s)
    key_id, secret = keys.new_key()
    maker = actor.user or (actor.key.created_by if actor.key else None)
    key = ApiKey.objects.create(
        id=key_id,
        digest=keys.digest(secret),
        name=name.strip(),
        team=team,
        role=role,
        platform_admin=platform_admin,
        endpoints=reach,
        created_by=maker,
        expires_at=expires_at,
        requests_per_s=rates[0],
        rows_per_s=rates[1],
    )
    record(actor, "create_key", "key", f"ser_{key_id}", team=team, after=_describe(key))
    send_on_commit(PUBLISH)
    return key, keys.token(key_id, secret)


def _describe(key: ApiKey) -> dict[str, Any]:
    return {
        "name": key.name,
        "role": key.role,
        "platform_admin": key.platform_admin,
        "endpoints": key.endpoints,
        "expires_at": key.expires_at.isoformat() if key.expires_at else None,
        **_rates_of(key),
    }


def _rates_of(key: ApiKey) -> dict[str, float]:
    return {"requests_per_s": key.requests_per_s, "rows_per_s": key.rows_per_s}


@transaction.atomic
def set_rates(
    *, actor: Actor, key: ApiKey, requests_per_s: float | None = None, rows_per_s: float | None = None
) -> ApiKey:
    """Changes what the key may send a second; None leaves a rate as it is, 0 takes its bound away.

    Gateways follow within a second. Raises Conflict for a revoked key.
    """
    _require_rank(actor, key.team, key.role, platform_admin=key.platform_admin, what="change")
    held = ApiKey.objects.select_for_update().select_related("team").get(pk=key.pk)
    if held.revoked_at is not None:
        raise Conflict(f"the key ser_{key.pk} is revoked: it sends nothing any more")
    before = _rates_of(held)
    wanted = (
        before["requests_per_s"] if requests_per_s is None else requests_per_s,
        before["rows_per_s"] if rows_per_s is None else rows_per_s,
    )
    key.requests_per_s, key.rows_per_s = _checked_rates(actor, *wanted)
    if _rates_of(key) != before:
        key.save(update_fields=["requests_per_s", "rows_per_s"])
        record(actor, "set_key_rates", "key", f"ser_{key.pk}", team=held.team, before=before, after=_rates_of(key))
        send_on_commit(PUBLISH)
    return key


@transaction.atomic
def revoke_key(*, actor: Actor, key: ApiKey, reason: str = "") -> ApiKey:
    """Ends the key for ever. Revoking it again changes nothing."""
    _require_rank(actor, key.team, key.role, platform_admin=key.platform_admin, what="revoke")
    if ApiKey.objects.filter(pk=key.pk, revoked_at__isnull=True).update(revoked_at=Now()):
        record(
            actor,
            "revoke_key",
            "key",
            f"ser_{key.pk}",
            team=key.team,
            before=_describe(key),
            after={"revoked": True},
            reason=reason,
        )
        send_on_commit(PUBLISH)
    key.refresh_from_db(fields=["revoked_at"])
    return key


def note_used(key_ids: Iterable[str]) -> int:
    """Notes that these keys were just used, by the database's clock and at most every half minute; how many that were.

    No decision of a person, so no audit entry. Unknown ids change nothing.
    """
    held = ApiKey.objects.filter(pk__in=list(key_ids))
    return held.filter(Q(last_used_at=None) | Q(last_used_at__lt=Now() - USED_AGAIN)).update(last_used_at=Now())
