"""What is counted of a request when a part, its answer or its error has come: times, and who follows it.

A request that was rescued counts as two: the candidate's ended when it was given up, the stable version's began then.
"""

from __future__ import annotations

import time
from typing import Protocol

from inference.errors import DeadlineExceeded, SerinusError
from inference.gateway.calls import Call
from inference.gateway.flights import Flight
from inference.gateway.rescue import Rescuer
from inference.gateway.telemetry import Telemetry
from inference.gateway.timeline import timeline
from inference.protocol.messages import Answer


class Tracer(Protocol):
    """Who follows single requests (gateway.spans): told once each, never in the way of one that is not followed."""

    def begin(self, flight: Flight, call: Call) -> None: ...

    def answered(self, flight: Flight, answer: Answer) -> None: ...

    def failed(self, flight: Flight, error: SerinusError) -> None: ...


class Counting:
    """Of one gateway."""

    def __init__(self, telemetry: Telemetry, rescuer: Rescuer) -> None:
        self._telemetry = telemetry
        self._rescuer = rescuer
        self.tracer: Tracer | None = None

    def answered(self, flight: Flight, answer: Answer) -> None:
        """Its final answer; writes the timeline into it where the request asks for one."""
        now, began = time.monotonic(), flight.started
        if flight.rescued is not None:
            began = flight.rescued.at
            self._rescuer.answered(flight.rescued)
        self._telemetry.answered(flight.variant.key, (now - began) * 1e3, answer, flight.retries)
        if flight.is_invalid and not answer.is_invalid:
            self._telemetry.invalid(flight.variant.key)
        if flight.call.timeline:
            answer.parameters.update(timeline(flight.started, flight.sent, now, answer))
        if flight.trace is not None and self.tracer is not None:
            self.tracer.answered(flight, answer)

    def failed(self, flight: Flight, error: SerinusError) -> None:
        """It has ended with `error`, perhaps before a version was chosen."""
        error.is_counted = True
        variant, began = getattr(flight, "variant", None), flight.started
        key = variant.key if variant is not None else (flight.endpoint.route.name, 0, "")
        if flight.rescued is not None:
            began = flight.rescued.at
            self._rescuer.failed(flight.rescued)
        if flight.is_invalid:
            self._telemetry.invalid(key)
        if flight.rescued is None or not isinstance(error, DeadlineExceeded):  # that time the candidate has used up
            self._telemetry.failed(key, (time.monotonic() - began) * 1e3, error, flight.retries)
        if flight.trace is not None and self.tracer is not None:
            self.tracer.failed(flight, error)

    def part(self, flight: Flight, answer: Answer) -> None:
        """One of several answers, before its flight hears of it."""
        if not answer.tensors:
            return
        now, key = time.monotonic(), flight.variant.key
        if not flight.parts:
            began = flight.started if flight.rescued is None else flight.rescued.at
            self._telemetry.part(key, (now - began) * 1e3, is_first=True)
        elif flight.heard:
            self._telemetry.part(key, (now - flight.heard) * 1e3, is_first=False)
        flight.heard = now
        if answer.is_invalid and not answer.final:
            flight.is_invalid = True
