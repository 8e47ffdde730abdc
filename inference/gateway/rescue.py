"""A request that a rollout's candidate failed is asked once more of the stable version: its caller sees no error.

The laws: once, inside the request's own deadline, before any part of an answer was sent, never for sequences, pins and
the parts of pipelines, and only where the request fits the stable version as it is. A rescue keeps the place in the
endpoint's queue that the request has, so the queue's bound is its bound and no budget of retries is spent on it. What
the candidate did is counted there: an error, and `rescued` once the stable version has answered. That version's own
latency begins when the request is sent to it.

An input that the candidate alone cannot take is its fault; one that neither can is its sender's. So a `poison_input`
counts against the candidate only when the stable version has answered that very request.
"""

from __future__ import annotations

import time
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference.errors import DeadlineExceeded, InvalidInput, PoisonInput, SequenceLost, SerinusError, ServerError
from inference.gateway import calls, codec
from inference.gateway.calls import Call
from inference.gateway.telemetry import Key, Telemetry
from inference.protocol.oip import Signature

if TYPE_CHECKING:
    from inference.gateway.flights import Flight
    from inference.gateway.table import Table, Variant


@dataclass(frozen=True, slots=True)
class Rescued:
    """What the candidate, counted under `key`, made of a request. at: when it was given to the stable version, seconds
    of the monotonic clock; latency_ms: until then.
    """

    key: Key
    error: SerinusError
    latency_ms: float
    at: float

    @property
    def is_counted(self) -> bool:
        """Whether it was an error whatever comes of it."""
        return isinstance(self.error, ServerError)


class Rescuer:
    """Moves requests from candidate to stable, and counts what became of them."""

    def __init__(self, table: Table, telemetry: Telemetry) -> None:
        self._table = table
        self._telemetry = telemetry

    def begin(self, flight: Flight, error: SerinusError) -> bool:
        """Makes this failed request one for the stable version, to be dispatched; False where it is to end."""
        stable = self._stable_for(flight, error)
        if stable is None:
            return False
        now = time.monotonic()
        found = Rescued(flight.variant.key, error, (now - flight.started) * 1e3, now)
        if found.is_counted:
            self._telemetry.failed(found.key, found.latency_ms, error, flight.retries)
        flight.rescued = found
        flight.variant = stable.counted(flight.variant.apart)
        flight.link, flight.retries, flight.held_until = None, 0, 0.0
        return True

    def answered(self, rescued: Rescued) -> None:
        """The stable version has answered it."""
        if not rescued.is_counted:
            self._telemetry.failed(rescued.key, rescued.latency_ms, rescued.error, 0, is_fault=True)
        self._telemetry.rescued(rescued.key)

    def failed(self, rescued: Rescued) -> None:
        """The stable version has not answered it either."""
        if not rescued.is_counted:
            self._telemetry.failed(rescued.key, rescued.latency_ms, rescued.error, 0)

    def _stable_for(self, flight: Flight, error: SerinusError) -> Variant | None:
        asked = flight.asked
        if asked is None or asked.version is not None or flight.parts or flight.rescued is not None:
            return None
        steering, call = asked.endpoint.route.steering, flight.call
        if steering is None or not steering.rescue or flight.variant.route.version != steering.candidate:
            return None
        if call.sequence is not None or not _is_candidates(error):
            return None
        now = self._table.now.endpoints.get(asked.endpoint.route.name)
        stable = now.variants.get(steering.stable) if now is not None else None
        if stable is None or not stable.is_routed:
            return None
        return stable if refit(call, flight.variant.route.signature, stable.route.signature) else None


def _is_candidates(error: SerinusError) -> bool:
    if isinstance(error, DeadlineExceeded | SequenceLost):
        return False
    return isinstance(error, ServerError | PoisonInput)


def refit(call: Call, before: Signature, signature: Signature) -> bool:
    """Whether a call that was read against the signature `before` can be asked of another version as it is; its inputs
    are then in that one's order.
    """
    if before == signature:
        return True
    if not _gives(signature, call, before):
        return False
    again = copy(call)
    try:
        calls.check_inputs(again, "", signature)
    except InvalidInput:
        return False
    call.tensors, call.body, call.rows = again.tensors, again.body, again.rows
    return True


def _gives(signature: Signature, call: Call, before: Signature) -> bool:
    """Whether the outputs that the call wants are there and can be written as it wants them."""
    specs = {spec.name: spec.datatype for spec in signature.outputs}
    if call.outputs:
        known = {spec.name: spec.datatype for spec in before.outputs}
        same = all(specs.get(name) == known.get(name) for name in call.outputs)
        return same and (call.special is None or signature.labels == before.labels)
    return call.binary is None or codec.BINARY_ONLY.isdisjoint(specs.values())
