"""What a rollout writes on an endpoint: shares, who is primary, copies, rules and the hash's salt, all at once.

Its caller holds the rollout's row and has checked rights and its fencing token; the entry in the audit trail, the
revision and the new routing table belong to the same transaction. While `steering` is set, nobody else moves traffic.
"""

from __future__ import annotations

import secrets
from typing import Any

import msgspec
from django.db import transaction

from accounts.permissions import Actor
from endpoints.actions import changed, locked, named, weights_of, write_shares
from endpoints.models import Endpoint
from inference.errors import Conflict, InvalidInput
from inference.protocol.routes import WEIGHT_TOTAL_BP, Recording, Steering


def steer(
    *,
    endpoint: Endpoint,
    weights: dict[int, int],
    steering: Steering | None,
    actor: Actor,
    verb: str,
    reason: str = "",
    fresh_salt: bool = False,
) -> Endpoint:
    """Writes the shares (version number -> basis points; who is not named gets none) and the steering.

    fresh_salt: callers are assigned anew, which nobody notices while one version has all the traffic. Writes nothing
    when nothing would change. Raises Conflict when the endpoint is gone, another rollout steers it, or a version with a
    share is not behind it.
    """
    if sum(weights.values()) != WEIGHT_TOTAL_BP or min(weights.values()) < 0:
        raise InvalidInput(f"weights must sum to {WEIGHT_TOTAL_BP} basis points")
    with transaction.atomic():
        endpoint = locked(endpoint, None)
        _check_owner(endpoint, steering)
        before = weights_of(endpoint)
        missing = sorted(number for number, share in weights.items() if share and number not in before)
        if missing:
            raise Conflict(f"endpoint '{endpoint.name}' has no version {missing[0]} any more")
        after = dict.fromkeys(before, 0) | {number: share for number, share in weights.items() if number in before}
        held = msgspec.to_builtins(steering) if steering is not None else None
        if after == before and held == endpoint.steering and not fresh_salt:
            return endpoint
        write_shares(endpoint, after)
        told: dict[str, Any] = {"steering": held}
        if fresh_salt:
            told["salt"] = secrets.token_hex(8)
        Endpoint.objects.filter(pk=endpoint.pk).update(**told)
        changed(
            endpoint, actor, verb, before=_shown(before, endpoint.steering), after=_shown(after, held), reason=reason
        )
    return endpoint


def set_recording(*, endpoint: Endpoint, recording: Recording | None, actor: Actor) -> Endpoint:
    """Begins or ends keeping a share of the endpoint's requests. Its caller has checked rights."""
    with transaction.atomic():
        endpoint = locked(endpoint, None)
        held = msgspec.to_builtins(recording) if recording is not None else None
        before = endpoint.recording
        Endpoint.objects.filter(pk=endpoint.pk).update(recording=held)
        changed(endpoint, actor, "set_recording", before={"recording": before}, after={"recording": held})
    return endpoint


def _check_owner(endpoint: Endpoint, steering: Steering | None) -> None:
    if endpoint.steering and steering is not None and endpoint.steering["rollout"] != steering.rollout:
        raise Conflict(f"another rollout moves the traffic of endpoint '{endpoint.name}'")


def _shown(weights: dict[int, int], steering: dict[str, Any] | None) -> dict[str, Any]:
    return {"weights": named(weights), "mirror_bp": (steering or {}).get("mirror_bp", 0)}
