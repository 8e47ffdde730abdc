"""The one handler behind every door: who calls, which variant, which replica, one retry, what is counted.

A door reads its own wire format into a Call with the reader that it passes in. A request is a Flight: it is started,
and ends by a callback; `infer` and `stream` are the same for doors that wait in a coroutine.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Protocol

from inference.errors import (
    Cancelled,
    Draining,
    InvalidInput,
    NotFound,
    NotReady,
    PoisonInput,
    ReplicaLost,
    SequenceLost,
    SerinusError,
    ServerError,
)
from inference.gateway.admission import Caller, admit_caller
from inference.gateway.affinity import Affinity, SequenceKey
from inference.gateway.calls import Call
from inference.gateway.connections import ConnectionLost, Link, Pool
from inference.gateway.flights import Flight, Flights
from inference.gateway.lending import lender_of
from inference.gateway.pipelines import Run
from inference.gateway.quarantine import WORDS, Trials
from inference.gateway.router import choose_variant, less_busy
from inference.gateway.table import Endpoint, Table, Variant
from inference.gateway.telemetry import Telemetry
from inference.gateway.timeline import timeline
from inference.protocol.messages import Answer, SequenceControl
from inference.protocol.statistics import ModelStatistics

HOLD_S = 10.0
RETRY_AFTER_S = 1.0
ASK_S = 2.0
AHEAD_HIGH, AHEAD_LOW = 16, 4

Reader = Callable[[Variant], Call]


class Tracer(Protocol):
    """Who follows single requests (gateway.spans): told once each, never in the way of one that is not followed."""

    def begin(self, flight: Flight, call: Call) -> None: ...

    def answered(self, flight: Flight, answer: Answer) -> None: ...

    def failed(self, flight: Flight, error: SerinusError) -> None: ...


@dataclass(slots=True)
class Done:
    """An answered call: what was asked, who answered, the answer and its tensors' bytes."""

    call: Call
    variant: Variant
    answer: Answer
    body: memoryview


@dataclass(frozen=True, slots=True)
class Asked:
    """What a door knows of a request before it is read.

    sticky: the stable hash's key; timeout_ms: the door's own deadline, 0 for none; most_ms: the longest that such a
    request may take where that is more than the endpoint's own limit, which is meant for single answers.
    """

    caller: Caller
    endpoint: Endpoint
    version: int | None
    sticky: str
    timeout_ms: int = 0
    most_ms: int = 0


class DataPlane:
    """Everything a gateway process knows and counts."""

    def __init__(self, table: Table, pool: Pool, telemetry: Telemetry, *, insecure: bool = False) -> None:
        self.table = table
        self.pool = pool
        self.telemetry = telemetry
        self.insecure = insecure
        self.flights = Flights(self._end)
        self.draining = False
        self.tracer: Tracer | None = None
        self._held: dict[Flight, None] = {}
        self.trials = Trials(self._dispatch, self._end)
        self._random = random.Random()  # noqa: S311 (spreads load, guards nothing)
        self._affinity = Affinity()
        pool.on_failed = self._failed_there
        pool.on_lost = self._affinity.lost
        pool.on_change.append(self._try_held)

    # -- who and what -----------------------------------------------------------------------------------------------

    def admit(self, name: str, credential: str) -> tuple[Caller, Endpoint]:
        """The caller and the endpoint. Raises Unauthenticated, Forbidden or NotFound, in this order; they are counted."""
        try:
            return self._admitted(name, credential)
        except SerinusError as error:
            self.telemetry.refused(name if name in self.table.now.endpoints else "", error)
            raise

    def _admitted(self, name: str, credential: str) -> tuple[Caller, Endpoint]:
        snapshot = self.table.now
        endpoint = snapshot.endpoints.get(name)
        route = endpoint.route if endpoint is not None else None
        caller = admit_caller(snapshot.keys, credential, name, route, insecure=self.insecure)
        if endpoint is None:
            raise NotFound(f"Request for unknown model: '{name}' is not found")
        return caller, endpoint

    def memory(self, name: str, version: int | None, size: int, offset: int) -> memoryview | None:
        """Where a body of `size` bytes may be received so that the replica that it will be sent to reads it there; None
        where that is not known yet, or no replica lends. offset: as for Lender.take.
        """
        endpoint = self.table.now.endpoints.get(name)
        variant = None
        if endpoint is not None:
            variant = endpoint.only if version is None else endpoint.variants.get(version)
        link = self._pick(variant) if variant is not None and variant.links else None
        return link.memory(size, offset) if link is not None else None

    def choose(self, endpoint: Endpoint, version: int | None, sticky: str) -> Variant:
        """The variant that answers this caller. Raises NotFound for a pin without replica, NotReady without weight."""
        if version is not None:
            return endpoint.pinned(version)
        if endpoint.only is not None:
            return endpoint.only
        route = choose_variant(endpoint.route.variants, endpoint.route.salt, sticky)
        if route is None:
            raise NotReady(retry_after_s=RETRY_AFTER_S)
        return endpoint.variants[route.version]

    # -- a flight's life --------------------------------------------------------------------------------------------

    def start(self, flight: Flight, asked: Asked, reader: Reader) -> None:
        """Sets a request on its way. Raises what is wrong with it at once, counted; all else comes to the flight.

        1. takes a place in the endpoint's queue, 2. chooses the variant, 3. reads the call against its signature,
        4. sets the deadline, 5. sends it to a replica, or holds it until one is ready.
        """
        endpoint = asked.endpoint
        flight.endpoint, flight.key = endpoint, asked.caller.id
        queue, caller = endpoint.queue, asked.caller
        has_place = False
        try:
            queue.enter(endpoint.route.queue_limit, caller)
            has_place = True
            variant = flight.variant = self.choose(endpoint, asked.version, asked.sticky)
            call = flight.call = reader(variant)
            if call.sequence is not None:
                call = self._settle_sequence(flight, asked, reader, call.sequence)
            if caller.limiter is not None:
                caller.limiter.rows(call.rows)
            _set_deadline(flight, asked)
            if self.tracer is not None:
                self.tracer.begin(flight, call)
            self._dispatch(flight)
        except BaseException as error:
            if has_place:
                queue.leave(caller.id)
            known = error if isinstance(error, SerinusError) else ServerError()
            self._count_failed(flight, known)
            raise
        self.flights.add(flight)

    def answered(self, flight: Flight, answer: Answer) -> None:
        """To be called by a door for a flight's final answer, before it writes it: frees its place and counts it."""
        self.flights.discard(flight)
        flight.endpoint.queue.leave(flight.key)
        if self.trials.suspects or self.trials.tried:
            self.trials.ended(flight, answered=True)
        sequence = flight.call.sequence
        if sequence is not None and sequence.end:
            self._affinity.ended(_key_of(flight, sequence))
        now = time.monotonic()
        self.telemetry.answered(flight.variant.key, (now - flight.started) * 1e3, answer, flight.retries)
        if flight.call.timeline:
            answer.parameters.update(timeline(flight.started, flight.sent, now, answer))
        if flight.trace is not None and self.tracer is not None:
            self.tracer.answered(flight, answer)

    def abandon(self, flight: Flight) -> None:
        """The caller has left. The replica is told; nobody is called back."""
        flight.is_abandoned = True
        self._end(flight, Cancelled())

    def start_step(self, flight: Flight, outer: Flight, step: Endpoint, call: Call) -> None:
        """Sets one step of a pipeline on its way, as a flight of its own behind the step's endpoint. Raises as `start`."""
        assert step.only is not None
        flight.endpoint, flight.variant, flight.call = step, step.only, call
        flight.key, flight.deadline = outer.key, outer.deadline
        step.queue.enter(step.route.queue_limit, Caller(outer.key, frozenset()))
        try:
            self._dispatch(flight)
        except SerinusError:
            step.queue.leave(flight.key)
            raise
        self.flights.add(flight)

    def end(self, flight: Flight, error: SerinusError) -> None:
        """Ends a flight with `error`; nothing happens when it has ended."""
        self._end(flight, error)

    def _dispatch(self, flight: Flight) -> None:
        if self.trials.suspects:
            self.trials.check(flight)
        if flight.variant.plan is not None:
            flight.sent = time.monotonic()
            flight.link = run = Run(self, flight, flight.variant.plan)
            run.begin()
            return
        link = self._pick_for(flight)
        if link is not None:
            self._send(flight, link)
            return
        flight.held_until = time.monotonic() + HOLD_S
        self._held[flight] = None

    def _send(self, flight: Flight, link: Link) -> None:
        flight.sent = now = time.monotonic()
        link.send(flight, max(1, int((flight.deadline - now) * 1e3)))

    def _pick_for(self, flight: Flight) -> Link | None:
        """The replica for this request; None when none is ready. Raises SequenceLost."""
        sequence = flight.call.sequence
        if sequence is None:
            lending = lender_of(flight.call.body) if len(flight.variant.links) > 1 else None
            chosen = [link for link in flight.variant.links if link.lender is lending and link.ready] if lending else []
            return chosen[0] if chosen else self._pick(flight.variant)
        links = {link.route.id: link for link in flight.variant.links}
        ready = [name for name, link in links.items() if link.ready]
        draining = [name for name, link in links.items() if link.draining]
        key = _key_of(flight, sequence)
        try:
            found = self._affinity.pick(key, ready, is_start=sequence.start, now=time.monotonic(), draining=draining)
        except NotReady:
            return None
        return links[found]

    def _settle_sequence(self, flight: Flight, asked: Asked, reader: Reader, sequence: SequenceControl) -> Call:
        """A sequence stays on the version that it began on, and begins where its own id puts it."""
        endpoint = asked.endpoint
        if asked.version is None and endpoint.only is None:
            numbers = list(endpoint.variants)
            began = self._affinity.version_of(endpoint.route.name, numbers, _name_of(flight, sequence))
            if began is None or sequence.start:
                variant = self.choose(endpoint, None, _name_of(flight, sequence))
            else:
                variant = endpoint.variants[began]
            if variant is not flight.variant:
                flight.variant = variant
                flight.call = reader(variant)
        return flight.call

    def _pick(self, variant: Variant) -> Link | None:
        links = variant.links
        if len(links) == 1:
            return links[0] if links[0].ready else None
        ready = [link for link in links if link.ready]
        if len(ready) < 2:
            return ready[0] if ready else None
        return less_busy(ready, self._random.random(), self._random.random())

    def _try_held(self) -> None:
        """Looks at those who wait for a replica: one may be ready now, or their version may be gone."""
        for flight in list(self._held):
            if flight not in self._held:  # a pipeline that ended meanwhile took its other steps along
                continue
            current = self.table.now.known(flight.endpoint.route.name)
            variant = current.variants.get(flight.variant.route.version) if current is not None else None
            if variant is None:
                self._end(flight, NotReady(retry_after_s=RETRY_AFTER_S))
                continue
            flight.variant = variant
            try:
                link = self._pick_for(flight)
                if link is not None:
                    del self._held[flight]
                    flight.held_until = 0.0
                    self._send(flight, link)
            except (ReplicaLost, SequenceLost) as error:
                self._failed_there(flight, error)

    def _failed_there(self, flight: Flight, error: SerinusError) -> None:
        """A replica refused or lost this request: once elsewhere, or on the same one when it is back. After a crash
        those who were there are tried again one by one (see quarantine.py).
        """
        if flight.has_ended:  # a step whose pipeline ended by the same loss
            return
        flight.link = None
        crashed = isinstance(error, ConnectionLost) and flight.call.sequence is None
        if crashed and self.trials.lost(flight):
            self._end(flight, PoisonInput(WORDS))
            return
        lost = isinstance(error, ReplicaLost | Draining)
        may = lost and not flight.parts and not flight.retries and flight.call.sequence is None
        if may and flight.endpoint.queue.retries.take():
            flight.retries = 1
            try:
                (self.trials.enter if crashed else self._dispatch)(flight)
            except SerinusError as again:
                self._end(flight, again)
            return
        self._end(flight, error)

    def _end(self, flight: Flight, error: SerinusError) -> None:
        if flight.has_ended:
            return
        flight.has_ended = True
        if self.trials.tried:
            self.trials.ended(flight, answered=False)
        self._held.pop(flight, None)
        self.flights.discard(flight)
        if flight.link is not None:
            flight.link.forget(flight)
        flight.endpoint.queue.leave(flight.key)
        self._count_failed(flight, error)
        if not flight.is_abandoned:
            flight.failed(error)

    def _count_failed(self, flight: Flight, error: SerinusError) -> None:
        variant = getattr(flight, "variant", None)
        key = variant.key if variant is not None else (flight.endpoint.route.name, 0, "")
        self.telemetry.failed(key, (time.monotonic() - flight.started) * 1e3, error, flight.retries)
        if flight.trace is not None and self.tracer is not None:
            self.tracer.failed(flight, error)

    # -- for coroutines ---------------------------------------------------------------------------------------------

    async def infer(self, asked: Asked, reader: Reader) -> Done:
        """One request, one answer. Raises only errors of inference.errors; a caller who is cancelled abandons it."""
        flight = _Awaited(self)
        self.start(flight, asked, reader)
        try:
            return await flight.future
        except asyncio.CancelledError:
            self.abandon(flight)
            raise

    async def stream(self, asked: Asked, reader: Reader) -> AsyncGenerator[Done, None]:
        """One request, any number of answers, as they come; the last has `answer.final` and may hold no tensors.

        A reader that falls behind by AHEAD_HIGH answers pauses the replica. Closing the iterator abandons the request.
        """
        flight = _Streamed(self)
        self.start(flight, asked, reader)
        try:
            while True:
                found = await flight.next()
                yield found
                if found.answer.final:
                    return
        finally:
            self.abandon(flight)

    async def statistics(self, variant: Variant) -> ModelStatistics:
        """The sums of this version's replicas, merged. One that does not answer in time is left out."""
        asked = [link.statistics(ASK_S) for link in variant.links if link.ready]
        total = ModelStatistics()
        for found in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(found, ModelStatistics):
                total.merge(found)
        return total


class _Awaited(Flight):
    """A request whose one answer ends `future`."""

    __slots__ = ("_plane", "future")

    def __init__(self, plane: DataPlane) -> None:
        super().__init__()
        self._plane = plane
        self.future: asyncio.Future[Done] = asyncio.get_running_loop().create_future()

    def answered(self, answer: Answer, body: memoryview) -> None:
        if answer.final:
            self._plane.answered(self, answer)
            if not self.future.done():
                self.future.set_result(Done(self.call, self.variant, answer, body))
        elif not self.future.done():
            self._plane.abandon(self)
            name = self.endpoint.route.name
            self.future.set_exception(InvalidInput(f"model '{name}' gives several answers: ask for a stream"))

    def failed(self, error: SerinusError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class _Streamed(Flight):
    """A request with any number of answers, and those of them that its reader has not taken yet."""

    __slots__ = ("_is_paused", "_plane", "_waiting", "_wake")

    def __init__(self, plane: DataPlane) -> None:
        super().__init__()
        self._plane = plane
        self._waiting: deque[Done | SerinusError] = deque()
        self._wake = asyncio.Event()
        self._is_paused = False

    def answered(self, answer: Answer, body: memoryview) -> None:
        if answer.final:
            self._plane.answered(self, answer)
        self._waiting.append(Done(self.call, self.variant, answer, body))
        self._wake.set()
        if len(self._waiting) >= AHEAD_HIGH and not self._is_paused and not answer.final and self.link is not None:
            self._is_paused = True
            self.link.pause(self)

    def failed(self, error: SerinusError) -> None:
        self._waiting.append(error)
        self._wake.set()

    async def next(self) -> Done:
        """The next answer. Raises the error that ended the request."""
        while not self._waiting:
            self._wake.clear()
            await self._wake.wait()
        found = self._waiting.popleft()
        if self._is_paused and len(self._waiting) <= AHEAD_LOW and self.link is not None:
            self._is_paused = False
            self.link.resume(self)
        if isinstance(found, SerinusError):
            raise found
        return found


def _name_of(flight: Flight, sequence: SequenceControl) -> str:
    """One caller's sequence 7 is not another's, nor the sequence "7"."""
    return f"{flight.key}\0{type(sequence.id).__name__}\0{sequence.id}"


def _key_of(flight: Flight, sequence: SequenceControl) -> SequenceKey:
    return SequenceKey(flight.endpoint.route.name, flight.variant.route.version, _name_of(flight, sequence))


def _set_deadline(flight: Flight, asked: Asked) -> None:
    """The shortest of what the endpoint allows, the door was told and the request's own parameter says."""
    limit_ms = float(max(flight.endpoint.route.timeout_ms, asked.most_ms))
    if asked.timeout_ms:
        limit_ms = min(limit_ms, asked.timeout_ms)
    if flight.call.timeout_us:
        limit_ms = min(limit_ms, flight.call.timeout_us / 1e3)
    flight.deadline = flight.started + limit_ms / 1e3
