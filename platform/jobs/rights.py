"""Who may see files and batches, and which endpoints the lines of a batch may call.

A person sees those of their teams. A key that may call every endpoint of its team sees the team's; a key that is
narrowed to some endpoints sees what it made itself, for answers of other endpoints are none of its business. Lines reach
what their maker may call *now*: a key that is revoked, or loses an endpoint, stops them within one slice.
"""

from __future__ import annotations

from typing import TypeVar

from django.db.models import Q, QuerySet
from django.db.models.functions import Now

from accounts.models import ApiKey
from accounts.permissions import Actor, Verb, actor_of_user, can, visible
from endpoints.models import Endpoint
from endpoints.publish import allowed_endpoints
from inference.errors import Forbidden, NotFound
from jobs.models import Batch, File

M = TypeVar("M", File, Batch)


def seen(actor: Actor, rows: QuerySet[M]) -> QuerySet[M]:
    """Those of `rows` that the actor may see."""
    rows = visible(actor, rows.select_related("team"))
    key = actor.key
    return rows.filter(key=key) if key is not None and "*" not in key.endpoints else rows


def find_file(actor: Actor, public_id: str) -> File:
    """Raises NotFound, also for what the actor may not see."""
    row = seen(actor, File.objects.all()).filter(_lives(), public_id=public_id[:64]).first()
    if row is None:
        raise NotFound(f"No such File object: {public_id[:64]}")
    return row


def find_batch(actor: Actor, public_id: str) -> Batch:
    """Raises NotFound, also for what the actor may not see."""
    rows = Batch.objects.select_related("input_file", "output_file", "error_file", "key", "person")
    row = seen(actor, rows).filter(public_id=public_id[:64]).first()
    if row is None:
        raise NotFound(f"No batch found with id '{public_id[:64]}'")
    return row


def _lives() -> Q:
    return Q(expires_at__isnull=True) | Q(expires_at__gt=Now())


def living_files(actor: Actor) -> QuerySet[File]:
    return seen(actor, File.objects.filter(_lives()))


def is_own(actor: Actor, thing: File | Batch) -> bool:
    if actor.key is not None:
        return thing.key_id == actor.key.pk
    return actor.user is not None and thing.person_id == actor.user.pk


def require_change(actor: Actor, thing: File | Batch) -> None:
    """Raises Forbidden unless it is the actor's own, or they deploy for the team."""
    if not is_own(actor, thing) and not can(actor, Verb.DEPLOY, thing.team):
        raise Forbidden(f"{actor.name} has no right to change what {thing.owner} made: ask them, or a developer")


def reach(batch: Batch) -> frozenset[str] | None:
    """Names of the endpoints that the batch's maker may call now; None when they may call nothing any more."""
    public = set(Endpoint.objects.filter(access=Endpoint.Access.PUBLIC).values_list("name", flat=True))
    if batch.key_id is not None:
        valid = Q(expires_at__isnull=True) | Q(expires_at__gt=Now())
        key = ApiKey.objects.filter(valid, pk=batch.key_id, revoked_at__isnull=True).first()
        return frozenset(public | _of_key(key)) if key is not None else None
    person = batch.person
    if person is None or not person.is_active:
        return None
    actor = actor_of_user(person)
    if not can(actor, Verb.VIEW, batch.team):
        return None
    return frozenset(public | set(visible(actor, Endpoint.objects.all()).values_list("name", flat=True)))


def _of_key(key: ApiKey) -> set[str]:
    of_team = set(Endpoint.objects.filter(team_id=key.team_id).values_list("name", flat=True))
    allowed = set(allowed_endpoints(key, of_team))
    return set(Endpoint.objects.values_list("name", flat=True)) if "*" in allowed else allowed


def rate_per_s(batch: Batch) -> float:
    """Lines a second that the maker's key allows this batch: its bound, shared by its running batches. 0: no bound."""
    key = batch.key
    if key is None or not key.requests_per_s:
        return 0.0
    running = Batch.objects.filter(key=key, status="in_progress").count()
    return key.requests_per_s / max(1, running)
