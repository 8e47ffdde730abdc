"""Copies of live requests for a rollout's candidate, and how far its answers are from the stable version's.

The laws: a copy is sent when the live answer has been written, and never before; it has the lowest priority at the
replica, is never retried, rescued or held, takes no place in the endpoint's queue and nothing of its caller's limits.
It goes only to a candidate that has a ready replica, and where that replica has live requests too, only when none of
them is under way there. What finds no room, in number, bytes or time to compare, is dropped and counted. Sequences and
requests in shared memory are not copied. A copy is counted under the arm "shadow" of the candidate.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from inference.errors import ClientError, Draining, NotReady, Overloaded, SerinusError
from inference.gateway.calls import Call
from inference.gateway.diffs import Diffs
from inference.gateway.flights import Flight, Flights
from inference.gateway.keeping import Kept, asked_of, excerpt, is_greedy, is_language
from inference.gateway.pipelines import Run
from inference.gateway.rescue import refit
from inference.gateway.shared_memory import Target, is_copy
from inference.gateway.table import Endpoint, Variant
from inference.protocol import generation
from inference.protocol.compare import MAX_DETAIL_CHARS, Compared, Output, OutputCompared, compare
from inference.protocol.messages import BACKGROUND, Answer
from inference.protocol.routes import WEIGHT_TOTAL_BP, Steering
from inference.protocol.shadows import MAX_REQUEST_CHARS, Diff

if TYPE_CHECKING:
    from inference.gateway.connections import Link
    from inference.gateway.dataplane import DataPlane

SHADOW = "shadow"
MAX_COPY_BYTES = 8 << 20
MAX_HELD_BYTES = 64 << 20
SMALL_BYTES = 64 << 10
# what one comparison looks at, so that it takes about a millisecond, and what all of them may take of a second
MOST_ELEMENTS, MOST_BYTES = 4096, 4096
COMPARING_S = 0.1
_NO_ROOM = (Overloaded, NotReady, Draining)


class Mirror:
    """The copies of one gateway. `watch` is told of every request of an endpoint whose traffic is watched."""

    def __init__(self, plane: DataPlane, diffs: Diffs) -> None:
        self._plane = plane
        self._diffs = diffs
        self._flights = Flights(_ended)
        self._random = random.Random()  # noqa: S311 (picks a sample, guards nothing)
        self._of_endpoint: dict[str, int] = {}
        self.held_bytes = 0
        self._second, self._spent_s = 0, 0.0
        self._otherwise = plane.pool.on_failed
        plane.pool.on_failed = self._failed_there

    def watch(self, flight: Flight) -> None:
        """Decides whether this request, just sent on its way, is to be copied once it is answered."""
        steering = flight.endpoint.route.steering
        if steering is None or self._random.random() * WEIGHT_TOTAL_BP >= steering.mirror_bp:
            return
        variant = flight.variant
        if variant.route.version != steering.stable or variant.key[2] != variant.route.arm:
            return
        if may_be_copied(flight.call):
            flight.watchers = (*flight.watchers, _Original(self))

    # -- sending ----------------------------------------------------------------------------------------------------

    def copy(self, flight: Flight, kept: Kept) -> None:
        """The live request has its answer: sends its copy, or drops it.

        1. The candidate as the table has it now; 2. room; 3. a replica; 4. off it goes, in the event loop's next turn.
        """
        endpoint = self._plane.table.now.endpoints.get(flight.endpoint.route.name)
        steering = endpoint.route.steering if endpoint is not None else None
        if endpoint is None or steering is None or not steering.mirror_bp:
            return
        candidate = endpoint.variants.get(steering.candidate)
        if candidate is None:
            return
        copy = _Copy(self, flight, _shadow_of(candidate), steering, kept)
        link = self._link_for(candidate, steering)
        can_go = link is not None or (candidate.plan is not None and candidate.is_ready)
        if not can_go or not self._has_room(copy, steering):
            self._plane.telemetry.copies(copy.variant.key).dropped += 1
            return
        self._enter(copy)
        asyncio.get_running_loop().call_soon(self._send, copy, link)

    def _has_room(self, copy: _Copy, steering: Steering) -> bool:
        has_time = self._spent_s < COMPARING_S or int(time.monotonic()) != self._second
        return (
            has_time
            and copy.size_bytes <= MAX_COPY_BYTES
            and self.held_bytes + copy.size_bytes <= MAX_HELD_BYTES
            and self._of_endpoint.get(copy.endpoint.route.name, 0) < steering.mirror_inflight
        )

    def _link_for(self, candidate: Variant, steering: Steering) -> Link | None:
        """The replica with the fewest requests under way; where live requests come to it, only one that has none."""
        ready = [link for link in candidate.links if link.ready]
        if candidate.route.weight_bp or steering.match:
            ready = [link for link in ready if not link.in_flight]
        return min(ready, key=lambda link: link.in_flight, default=None)

    def _enter(self, copy: _Copy) -> None:
        name = copy.endpoint.route.name
        self._of_endpoint[name] = self._of_endpoint.get(name, 0) + 1
        self.held_bytes += copy.size_bytes
        self._flights.add(copy)

    def _send(self, copy: _Copy, link: Link | None) -> None:
        now = time.monotonic()
        copy.started = copy.sent = now
        try:
            if link is None:
                assert copy.variant.plan is not None
                copy.link = run = Run(self, copy, copy.variant.plan)
                run.begin()
            else:
                link.send(copy, max(1, int((copy.deadline - now) * 1e3)))
        except SerinusError as error:
            _ended(copy, error)

    # -- what comes back --------------------------------------------------------------------------------------------

    def leave(self, copy: _Copy) -> None:
        """A copy has ended, however it did."""
        self._flights.discard(copy)
        name = copy.endpoint.route.name
        left = self._of_endpoint[name] - 1
        if left:
            self._of_endpoint[name] = left
        else:
            del self._of_endpoint[name]
        self.held_bytes -= copy.size_bytes

    def came(self, copy: _Copy, answer: Answer, theirs: Kept) -> None:
        """The candidate's whole answer is here: it is counted, and compared where that makes sense."""
        latency_ms = (time.monotonic() - copy.sent) * 1e3
        self._plane.telemetry.answered(copy.variant.key, latency_ms, answer, 0)
        if not copy.compares:
            return
        speaks = is_language(copy.variant.route.signature)
        mine = copy.kept.outputs(is_language=speaks)
        other = theirs.outputs(is_language=speaks)
        if mine is not None and other is not None:
            self._count(copy, self._compare(copy, mine, other), latency_ms)

    def refused(self, copy: _Copy, error: SerinusError) -> None:
        """The candidate gave no answer. That it had no room says nothing about it; that it refuses what the stable
        version answered is a difference as large as can be.
        """
        key, latency_ms = copy.variant.key, (time.monotonic() - copy.sent) * 1e3
        if isinstance(error, _NO_ROOM):
            self._plane.telemetry.copies(key).dropped += 1
            return
        self._plane.telemetry.failed(key, latency_ms, error, 0)
        if isinstance(error, ClientError):
            refusal = OutputCompared("", "refused", 1.0, f"{error.code}: {error.message}"[:MAX_DETAIL_CHARS])
            self._count(copy, Compared(1.0, is_drift=True, outputs=[refusal]), latency_ms)

    def _compare(self, copy: _Copy, mine: list[Output], theirs: list[Output]) -> Compared:
        began = time.monotonic()
        found = compare(mine, theirs, copy.steering.comparison, most_elements=MOST_ELEMENTS, most_bytes=MOST_BYTES)
        ended = time.monotonic()
        if int(ended) != self._second:
            self._second, self._spent_s = int(ended), 0.0
        self._spent_s += ended - began
        return found

    def _count(self, copy: _Copy, found: Compared, latency_ms: float) -> None:
        self._plane.telemetry.copies(copy.variant.key).observe(found.distance, is_drift=found.is_drift)
        if found.distance and self._diffs.is_worst(copy.endpoint.route.name, found.distance):
            self._diffs.put(_diff(copy, found, latency_ms))

    def _failed_there(self, flight: Flight, error: SerinusError) -> None:
        if isinstance(flight, _Copy):
            _ended(flight, error)
        else:
            self._otherwise(flight, error)

    # -- what the run of a pipeline asks (see pipelines.Plane) --------------------------------------------------------

    def answered(self, flight: Flight, answer: Answer) -> None:
        self._plane.answered(flight, answer)

    def start_step(self, flight: Flight, outer: Flight, step: Endpoint, call: Call) -> None:
        self._plane.start_step(flight, outer, step, call)

    def abandon(self, flight: Flight) -> None:
        self._plane.abandon(flight)

    def end(self, flight: Flight, error: SerinusError) -> None:
        _ended(flight, error)


class _Original:
    """Watches a live request, and has it copied when its answer has been written."""

    __slots__ = ("_kept", "_mirror")

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._kept = Kept(MAX_COPY_BYTES)

    def part(self, flight: Flight, answer: Answer, body: memoryview) -> None:
        self._kept.add(answer, body)
        if answer.final and not flight.is_abandoned:
            self._mirror.copy(flight, self._kept)


class _Copy(Flight):
    """One copy on its way. kept: the stable version's answer, which took it stable_ms; compares: whether the two are
    compared; size_bytes: what is held for it.
    """

    __slots__ = ("_mirror", "_theirs", "compares", "kept", "size_bytes", "stable_ms", "steering")

    def __init__(self, mirror: Mirror, original: Flight, candidate: Variant, steering: Steering, kept: Kept) -> None:
        super().__init__()
        self._mirror = mirror
        self.endpoint, self.variant, self.steering = original.endpoint, candidate, steering
        self.key, self.call = original.key, _background(original.call)
        refit(self.call, original.variant.route.signature, candidate.route.signature)
        self.stable_ms = (self.started - original.started) * 1e3
        self.deadline = self.started + original.deadline - original.started
        self.kept = kept
        self.size_bytes = kept.size_bytes + sum(map(len, self.call.body))
        self.compares = not is_language(candidate.route.signature) or is_greedy(self.call)
        self._theirs = Kept(MAX_COPY_BYTES)

    def answered(self, answer: Answer, body: memoryview) -> None:
        if self.compares:
            self._theirs.add(answer, body)
        if answer.final:
            self.has_ended = True
            self._mirror.leave(self)
            self._mirror.came(self, answer, self._theirs)

    def failed(self, error: SerinusError) -> None:
        self._mirror.leave(self)
        self._mirror.refused(self, error)


def _ended(flight: Flight, error: SerinusError) -> None:
    """A copy has come to an end without an answer."""
    if flight.has_ended:
        return
    flight.has_ended = True
    if flight.link is not None:
        flight.link.forget(flight)
    flight.failed(error)


def may_be_copied(call: Call) -> bool:
    """Whether it stands for itself and its bytes are nobody else's: no sequence, no shared memory."""
    if call.sequence is not None or any(is_copy(part) for part in call.body):
        return False
    return call.special is None or not any(isinstance(wanted, Target) for wanted in call.special.values())


def _background(call: Call) -> Call:
    """The same request behind all others, its bytes its own: a small view may hold much more memory than it shows."""
    body: list[bytes | memoryview] = [bytes(part) if len(part) <= SMALL_BYTES else part for part in call.body]
    asked = asked_of(call)
    if isinstance(asked, generation.Generate):
        later = msgspec.structs.replace(asked, priority=max(asked.priority, generation.BACKGROUND))
        data = generation.encode_asked(later)
        body = [len(data).to_bytes(4, "little") + data]
        header = msgspec.structs.replace(call.tensors[0], size_bytes=len(body[0]))
        return msgspec.structs.replace(
            call,
            tensors=[header],
            body=body,
            priority=BACKGROUND,
            traceparent="",
            tracestate="",
            special=None,
            binary=None,
        )
    return msgspec.structs.replace(
        call, body=body, priority=BACKGROUND, traceparent="", tracestate="", special=None, binary=None
    )


def _shadow_of(variant: Variant) -> Variant:
    return replace(variant, key=(*variant.key[:2], SHADOW))


def _diff(copy: _Copy, found: Compared, latency_ms: float) -> Diff:
    worst = max(found.outputs, key=lambda output: output.distance)
    return Diff(
        source="",
        sequence=0,
        at_unix_s=int(time.time()),
        endpoint=copy.endpoint.route.name,
        stable=copy.steering.stable,
        candidate=copy.steering.candidate,
        distance=found.distance,
        is_drift=found.is_drift,
        output=worst.name,
        kind=worst.kind,
        detail=worst.detail,
        request=excerpt(copy.call, MAX_REQUEST_CHARS),
        stable_ms=round(copy.stable_ms, 3),
        candidate_ms=round(latency_ms, 3),
    )
