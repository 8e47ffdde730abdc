"""The only writer of this app's rows: transaction, compare-and-swap, audit entry, on_commit.

A change locks the endpoint's row, checks the revision that the caller read, and asks for a new routing table when it
is committed. The shares of an endpoint's variants always sum to 10,000 basis points.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Any

from django.db import transaction
from django.db.models import Q

from accounts import audit
from accounts.permissions import Actor, Verb, require
from accounts.wakeups import send_on_commit
from endpoints.models import Endpoint, Variant
from endpoints.shares import make_room
from fleet import actions as fleet
from fleet import messages
from fleet.standing import ready_counts
from inference.errors import Conflict, InvalidInput
from inference.protocol.routes import WEIGHT_TOTAL_BP
from registry.adapters import is_adapter
from registry.models import Version
from registry.pipelines import steps_of

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
ROLE = Variant.VariantRole


def deploy(
    *,
    version: Version,
    actor: Actor,
    endpoint_name: str | None = None,
    replicas: int = 1,
    device: str = "any",
    weight_bp: int | None = None,
    access: str = Endpoint.Access.KEY,
) -> Endpoint:
    """Puts a version behind a public name (by default its model's) and wishes replicas for it, or for its steps.

    The first version gets all traffic; a later one enters at weight 0 unless `weight_bp` is given, which the others
    make room for in proportion. Raises InvalidInput, Conflict or Forbidden.
    """
    require(actor, Verb.DEPLOY, version)
    if is_adapter(version):
        raise InvalidInput(
            f"{version} is an adapter, which runs in the replicas of the version that it changes: add it to an endpoint "
            f"that runs that ('serinus adapter add ENDPOINT {version}', or on the endpoint's page)"
        )
    if weight_bp is not None and not 0 <= weight_bp <= WEIGHT_TOTAL_BP:
        raise InvalidInput(f"a weight is from 0 to {WEIGHT_TOTAL_BP} basis points")
    with transaction.atomic():
        endpoint = _endpoint_for(version, endpoint_name or version.model.name, access, actor)
        before = weights_of(endpoint)
        if weight_bp is not None:
            _require_unsteered(endpoint, "its shares cannot be set by hand")
        shares = dict(before)
        if not any(shares.values()):
            shares = dict.fromkeys(shares, 0) | {version.number: WEIGHT_TOTAL_BP}
        elif weight_bp is not None:
            shares = make_room(shares, version.number, weight_bp)
        Variant.objects.get_or_create(
            endpoint=endpoint,
            version=version,
            defaults={"role": ROLE.CANARY if before else ROLE.PRIMARY},
        )
        write_shares(endpoint, shares)
        want_replicas(version, replicas, device)
        after = {"weights": named(weights_of(endpoint)), "replicas": replicas, "device": device}
        changed(endpoint, actor, "deploy", before={"weights": named(before)}, after=after)
    return endpoint


def set_weights(
    *,
    endpoint: Endpoint,
    weights: dict[int, int],
    actor: Actor,
    revision: int | None = None,
    reason: str = "",
    force: bool = False,
) -> Endpoint:
    """Splits the traffic: version number -> basis points; who is not named gets none.

    Raises InvalidInput for unknown versions or a wrong sum, Conflict when `revision` is not the newest, and, unless
    `force`, when a version without traffic would get some while none of its replicas is ready: every call that the
    split sent there would wait and fail.
    """
    require(actor, Verb.DEPLOY, endpoint)
    if any(not 0 <= share <= WEIGHT_TOTAL_BP for share in weights.values()) or sum(weights.values()) != WEIGHT_TOTAL_BP:
        raise InvalidInput(f"weights must be from 0 to {WEIGHT_TOTAL_BP} and sum to {WEIGHT_TOTAL_BP} basis points")
    with transaction.atomic():
        endpoint = locked(endpoint, revision)
        _require_unsteered(endpoint, "its shares cannot be set by hand")
        before = weights_of(endpoint)
        unknown = sorted(set(weights) - set(before))
        if unknown:
            raise InvalidInput(f"endpoint '{endpoint.name}' has no version {unknown[0]}: deploy it first")
        if not force:
            _require_ready(endpoint, [number for number, share in weights.items() if share and not before[number]])
        write_shares(endpoint, dict.fromkeys(before, 0) | weights)
        after = {"weights": named(weights_of(endpoint))}
        changed(endpoint, actor, "set_weights", before={"weights": named(before)}, after=after, reason=reason)
    return endpoint


def undeploy(*, endpoint: Endpoint, number: int, actor: Actor, revision: int | None = None) -> Endpoint:
    """Takes a version away from an endpoint and stops its replicas, unless another endpoint needs them.

    Raises Conflict while it has traffic and others could take it, InvalidInput when it is not there.
    """
    require(actor, Verb.DEPLOY, endpoint)
    with transaction.atomic():
        endpoint = locked(endpoint, revision)
        if endpoint.steering and number in (endpoint.steering["stable"], endpoint.steering["candidate"]):
            _require_unsteered(endpoint, f"version {number} cannot be taken away")
        before = weights_of(endpoint)
        variant = endpoint.variants.select_related("version").filter(version__number=number).first()
        if variant is None:
            raise InvalidInput(f"endpoint '{endpoint.name}' has no version {number}")
        if variant.weight_bp and len(before) > 1:
            share = f"{variant.weight_bp / 100:g} %"
            raise Conflict(f"version {number} still gets {share} of the traffic: give its share to another one first")
        variant.delete()
        _release(variant.version)
        after = {"weights": named(weights_of(endpoint))}
        changed(endpoint, actor, "undeploy", before={"weights": named(before)}, after=after)
    return endpoint


def delete_endpoint(*, endpoint: Endpoint, actor: Actor) -> None:
    """Removes the public name; replicas that no other endpoint needs stop."""
    require(actor, Verb.DEPLOY, endpoint)
    with transaction.atomic():
        endpoint = locked(endpoint, None)
        _require_unsteered(endpoint, "it cannot be deleted")
        before = {"weights": named(weights_of(endpoint)), "access": endpoint.access}
        versions = [variant.version for variant in endpoint.variants.select_related("version")]
        audit.record(actor, "delete", "endpoint", endpoint.name, team=endpoint.team, before=before)
        endpoint.delete()
        for version in versions:
            _release(version)
        send_on_commit(messages.PUBLISH)


def set_access(
    *, endpoint: Endpoint, access: str, actor: Actor, may_pin: bool | None = None, revision: int | None = None
) -> Endpoint:
    """Opens an endpoint to everybody ("public") or to key holders only ("key"). may_pin: whether callers may choose a
    version by the header X-Model-Version, None to leave that as it is.
    """
    require(actor, Verb.OPERATE, endpoint)
    _check_access(access)
    with transaction.atomic():
        endpoint = locked(endpoint, revision)
        before = {"access": endpoint.access, "may_pin": endpoint.may_pin}
        after = {"access": access, "may_pin": endpoint.may_pin if may_pin is None else may_pin}
        Endpoint.objects.filter(pk=endpoint.pk).update(**after)
        changed(endpoint, actor, "set_access", before=before, after=after)
    return endpoint


def weights_of(endpoint: Endpoint) -> dict[int, int]:
    """Version number -> basis points."""
    return dict(endpoint.variants.order_by("version__number").values_list("version__number", "weight_bp"))


def _endpoint_for(version: Version, name: str, access: str, actor: Actor) -> Endpoint:
    """The endpoint of this name, locked; created when there is none."""
    if not NAME.fullmatch(name):
        raise InvalidInput(
            "an endpoint's name has up to 64 letters, digits, '-' and '_', and begins with one of the first"
        )
    _check_access(access)
    found = Endpoint.objects.select_for_update().filter(name=name).first()
    if found is None:
        if access == Endpoint.Access.PUBLIC:
            require(actor, Verb.OPERATE, version)
        first = {
            "team": version.model.team,
            "model": version.model,
            "access": access,
            "salt": secrets.token_hex(8),
            "created_by": actor.user,
        }
        found, _ = Endpoint.objects.select_for_update().get_or_create(name=name, defaults=first)
    if found.model_id != version.model_id:
        raise Conflict(f"endpoint '{name}' already serves another model: all its variants are versions of one model")
    return found


def _check_access(access: str) -> None:
    if access not in Endpoint.Access.values:
        raise InvalidInput(f"access must be one of {', '.join(Endpoint.Access.values)}")


def _require_unsteered(endpoint: Endpoint, what: str) -> None:
    """Raises Conflict while a rollout moves this endpoint's traffic: two hands on one wheel help nobody."""
    if endpoint.steering:
        raise Conflict(
            f"a rollout to version {endpoint.steering['candidate']} moves the traffic of endpoint '{endpoint.name}', so "
            f"{what}: promote or abort it first ('serinus rollout abort {endpoint.name}')"
        )


def locked(endpoint: Endpoint, revision: int | None) -> Endpoint:
    """The endpoint as it is now, locked. Raises Conflict when it is gone or not at `revision` any more."""
    found = Endpoint.objects.select_for_update(of=("self",)).select_related("team").filter(pk=endpoint.pk).first()
    if found is None:
        raise Conflict(f"endpoint '{endpoint.name}' has been deleted")
    if revision is not None and found.revision != revision:
        raise Conflict(f"endpoint '{found.name}' is at revision {found.revision}, not {revision}: read it again")
    return found


def write_shares(endpoint: Endpoint, shares: dict[int, int]) -> None:
    """Writes weights; who takes everything is the primary, and the others are canaries."""
    for number, share in shares.items():
        if share == WEIGHT_TOTAL_BP:
            endpoint.variants.exclude(version__number=number).exclude(role=ROLE.SHADOW).update(role=ROLE.CANARY)
            endpoint.variants.filter(version__number=number).update(role=ROLE.PRIMARY)
        endpoint.variants.filter(version__number=number).update(weight_bp=share)


def _require_ready(endpoint: Endpoint, numbers: list[int]) -> None:
    versions = dict(endpoint.variants.values_list("version__number", "version_id"))
    ready = ready_counts(versions[number] for number in numbers)
    for number in numbers:
        if not ready.get(versions[number]):
            raise Conflict(
                f"version {number} has no ready replica, so its share of the calls would fail: scale it up and wait "
                "until one is ready, or force the split ('serinus split --force', \"force\": true at the API)"
            )


def want_replicas(version: Version, replicas: int, device: str) -> None:
    """Wishes replicas of a version; of a pipeline, which has none, those of its steps, whoever else uses them too."""
    steps = steps_of(version)
    if not steps:
        fleet.want(version=version, replicas=replicas, device=device)
    elif replicas:
        fleet.require_ready(version)
    for step in steps if replicas else ():
        fleet.want_at_least(version=step, replicas=replicas, device=device)


def _release(version: Version) -> None:
    """Stops the replicas of a version, or of a pipeline's steps, that no endpoint needs any more, by whatever way."""
    for held in steps_of(version) or [version]:
        needed = Q(version=held) | Q(version__steps__version=held)
        if not Variant.objects.filter(needed).exists():
            fleet.want(version=held, replicas=0)


def changed(
    endpoint: Endpoint,
    actor: Actor,
    verb: str,
    *,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    reason: str = "",
) -> None:
    """Counts the revision on, audits, and asks for a new routing table on commit."""
    moved = Endpoint.objects.filter(pk=endpoint.pk, revision=endpoint.revision).update(revision=endpoint.revision + 1)
    if moved != 1:
        raise Conflict
    audit.record(
        actor,
        verb,
        "endpoint",
        endpoint.name,
        team=endpoint.team,
        before=dict(before),
        after=dict(after),
        reason=reason,
    )
    endpoint.refresh_from_db()
    send_on_commit(messages.PUBLISH)


def named(weights: dict[int, int]) -> dict[str, int]:
    return {str(number): share for number, share in weights.items()}
