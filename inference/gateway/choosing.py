"""Which version answers a request: a pin, then a rollout's matches, then the shares by stable hash.

No share sends anybody to a version without a ready replica while another version with a share has one: its callers go
to the stable version, or where the hash puts them among those that are ready, and come back when it is. Requests that
choose their version themselves, and those of the playground, are counted under arms of their own, so that nothing that
is no traffic is judged; the answer's header names the version's role all the same.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from itertools import count

from inference.errors import Forbidden, InvalidInput, NotReady
from inference.gateway.admission import Caller
from inference.gateway.router import choose_variant
from inference.gateway.steering import Given, Scalars
from inference.gateway.table import Endpoint, Variant
from inference.protocol.routes import EndpointRoute

RETRY_AFTER_S = 1.0
PINNED, PLAYGROUND = "pinned", "playground"
HEADER = b"x-model-version"
# No two gateways draw alike.
_SEED = os.urandom(8).hex()
_DRAWS = count()


@dataclass(frozen=True, slots=True)
class Asked:
    """What a door knows of a request before it is read.

    sticky: the stable hash's key; timeout_ms: the door's own deadline, 0 for none; most_ms: the longest that such a
    request may take where that is more than the endpoint's own limit, which is meant for single answers. headers: for
    a rollout's matches, names in small letters. has_session: `sticky` is a session that the caller named.
    """

    caller: Caller
    endpoint: Endpoint
    version: int | None
    sticky: str
    timeout_ms: int = 0
    most_ms: int = 0
    headers: Given = field(default_factory=dict)
    has_session: bool = False


def pin(route: EndpointRoute, number: int | None, given: bytes | str | None) -> int | None:
    """The version that a request is for: `number` is its address's, `given` its header X-Model-Version; None without.

    Raises Forbidden where callers may not choose by header, InvalidInput for what is no version or contradicts itself.
    """
    if given is None:
        return number
    if not route.may_pin:
        raise Forbidden(
            f"'{route.name}' does not let its callers choose a version: send no X-Model-Version, or have the endpoint's "
            "'may_pin' switched on"
        )
    text = given.decode("latin-1") if isinstance(given, bytes) else given
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise InvalidInput("X-Model-Version must be a version's number")
    if number is not None and number != int(text):
        raise InvalidInput(
            f"X-Model-Version says {int(text)} and the address or the request {number}: send one of them"
        )
    return int(text)


def chosen(asked: Asked, sticky: str) -> Variant:
    """The variant that answers. Raises NotFound for a pin without replica, NotReady without weight."""
    endpoint = asked.endpoint
    arm = PLAYGROUND if asked.caller.source == PLAYGROUND else ""
    if asked.version is not None:
        return endpoint.pinned(asked.version).counted(arm or PINNED)
    found = endpoint.only
    if found is None:
        found = _matched(asked) or _shared(endpoint, sticky)
    return found.counted(arm) if arm else found


def drawn(asked: Asked) -> tuple[Asked, Variant | None]:
    """`asked` as a rollout assigns callers: who names no session is drawn anew with every request, unless the rollout
    keeps callers by their key. With it the version that the shares alone give such a request, ready or not, by which
    the split is checked; None where something else decides.
    """
    endpoint = asked.endpoint
    steering = endpoint.route.steering
    if steering is None or steering.sticky != "session" or asked.has_session:
        return asked, None
    asked = replace(asked, sticky=f"{_SEED}{next(_DRAWS)}")
    if asked.version is not None or endpoint.only is not None or asked.caller.source == PLAYGROUND or _matched(asked):
        return asked, None
    found = choose_variant(endpoint.route.variants, endpoint.route.salt, asked.sticky)
    return asked, endpoint.variants[found.version] if found is not None else None


def by_parameters(asked: Asked, variant: Variant, parameters: Scalars) -> Variant | None:
    """The candidate, where a parameter sends a request there that would go to `variant`; else None."""
    candidate, rules = asked.endpoint.candidate, asked.endpoint.rules
    if rules is None or candidate is None or asked.version is not None or not rules.asks_parameters:
        return None
    if variant.route.version == candidate.route.version or not rules.match_parameters(parameters):
        return None
    return candidate.counted(variant.apart) if _may_have(candidate, variant) else None


def instead(endpoint: Endpoint, asked: Asked, waiting: Variant | None) -> Variant | None:
    """Another version for a request that waits for a replica of `waiting` (None: that version is gone), as the table
    is now: a ready one that has a share. None where there is none, or the request is for its version alone.
    """
    if asked.version is not None:
        return None
    ready = [one for one in endpoint.variants.values() if one.route.weight_bp and one.is_ready and one is not waiting]
    found = choose_variant([one.route for one in ready], endpoint.route.salt, asked.sticky)
    return endpoint.variants[found.version] if found is not None else None


def _matched(asked: Asked) -> Variant | None:
    endpoint = asked.endpoint
    candidate, rules = endpoint.candidate, endpoint.rules
    if rules is None or candidate is None or not rules.match(asked.caller, asked.headers):
        return None
    return candidate if _may_have(candidate, endpoint.stable) else None


def _may_have(candidate: Variant, other: Variant | None) -> bool:
    return candidate.is_ready or other is None or not other.is_ready


def _shared(endpoint: Endpoint, sticky: str) -> Variant:
    route = endpoint.route
    first = choose_variant(route.variants, route.salt, sticky)
    if first is None:
        raise NotReady(retry_after_s=RETRY_AFTER_S)
    found = endpoint.variants[first.version]
    if found.is_ready:
        return found
    stable = endpoint.stable
    if stable is not None and stable.is_ready:  # also where a rollout has come to the candidate's 100 %
        return stable
    ready = [one.route for one in endpoint.variants.values() if one.route.weight_bp and one.is_ready]
    other = choose_variant(ready, route.salt, sticky)
    return endpoint.variants[other.version] if other is not None else found
