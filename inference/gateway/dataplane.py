"""The one handler behind every door: who calls, which variant, which replica, one retry, what is counted.

A door reads its own wire format into a Call with the reader that it passes in. A request is a Flight: it is started,
and ends by a callback; `infer` and `stream` are the same for doors that wait in a coroutine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable

from inference.errors import (
    Cancelled,
    Draining,
    NotFound,
    NotReady,
    PoisonInput,
    ReplicaLost,
    SequenceLost,
    SerinusError,
    ServerError,
)
from inference.gateway import choosing
from inference.gateway.admission import Caller, admit_caller
from inference.gateway.awaiting import Awaited, Done, Streamed
from inference.gateway.calls import Call
from inference.gateway.choosing import Asked
from inference.gateway.connections import Link, Pool
from inference.gateway.counting import Counting
from inference.gateway.feedback_ids import FeedbackIds
from inference.gateway.flights import Flight, Flights
from inference.gateway.model_calls import ModelCalls
from inference.gateway.nearest import meant
from inference.gateway.pipelines import Run
from inference.gateway.quarantine import WORDS, Trials
from inference.gateway.replica_wire import ConnectionLost
from inference.gateway.replicas import Reader, Replicas
from inference.gateway.rescue import Rescuer, refit
from inference.gateway.table import Endpoint, Table, Variant
from inference.gateway.telemetry import REFUSALS, Telemetry
from inference.protocol.messages import Answer
from inference.protocol.statistics import ModelStatistics

HOLD_S = 10.0
ASK_S = 2.0


class DataPlane:
    """Everything a gateway process knows and counts."""

    def __init__(self, table: Table, pool: Pool, telemetry: Telemetry, *, insecure: bool = False) -> None:
        self.table = table
        self.pool = pool
        self.telemetry = telemetry
        self.insecure = insecure
        self.flights = Flights(self._end)
        self.draining = False
        self.watchers: tuple[Callable[[Flight], None], ...] = ()
        self._held: dict[Flight, None] = {}
        self.trials = Trials(self._dispatch, self._end)
        self.rescuer = Rescuer(table, telemetry)
        self.counting = Counting(telemetry, self.rescuer)
        self.feedback = FeedbackIds(table)
        self._replicas = Replicas()
        pool.on_failed = self._failed_there
        pool.on_part = self.counting.part
        pool.on_lost = self._replicas.lost
        calls = ModelCalls(self)
        pool.on_call, pool.on_left = calls.said, calls.left
        pool.on_change.append(self._try_held)

    # -- who and what -----------------------------------------------------------------------------------------------

    def admit(self, name: str, credential: str) -> tuple[Caller, Endpoint]:
        """The caller and the endpoint. Raises Unauthenticated, Forbidden or NotFound, in this order; they are counted."""
        try:
            return self._admitted(name, credential)
        except SerinusError as error:
            self.refused(name, error)
            raise

    def refused(self, name: str, error: SerinusError) -> None:
        """To be called by a door for what it tells a caller: counts what was refused and has not been counted yet."""
        if not error.is_counted and error.code in REFUSALS:
            # names that nobody made would be labels without end
            self.telemetry.refused(name if name in self.table.now.endpoints else "", error)

    def _admitted(self, name: str, credential: str) -> tuple[Caller, Endpoint]:
        snapshot = self.table.now
        endpoint = snapshot.endpoints.get(name)
        route = endpoint.route if endpoint is not None else None
        caller = admit_caller(snapshot.keys, credential, name, route, insecure=self.insecure)
        if endpoint is None:
            near = meant(name, (one for one in snapshot.endpoints if caller.may(one)))
            raise NotFound(f"Request for unknown model: '{name}' is not found{near}")
        return caller, endpoint

    def memory(self, name: str, version: int | None, size: int, offset: int) -> memoryview | None:
        """Where a body of `size` bytes may be received so that the replica that it will be sent to reads it there; None
        where that is not known yet, or no replica lends. offset: as for Lender.take.
        """
        endpoint = self.table.now.endpoints.get(name)
        variant = None
        if endpoint is not None:
            variant = endpoint.only if version is None else endpoint.variants.get(version)
        link = self._replicas.pick(variant) if variant is not None and variant.links else None
        return link.memory(size, offset) if link is not None else None

    # -- a flight's life --------------------------------------------------------------------------------------------

    def start(self, flight: Flight, asked: Asked, reader: Reader) -> None:
        """Sets a request on its way. Raises what is wrong with it at once, counted; all else comes to the flight.

        1. takes a place in the endpoint's queue, 2. chooses the variant, 3. reads the call against its signature,
        4. sets the deadline, 5. sends it to a replica, or holds it until one is ready.
        """
        endpoint = asked.endpoint
        flight.asked, flight.endpoint, flight.key = asked, endpoint, asked.caller.id
        queue, caller = endpoint.queue, asked.caller
        has_place = False
        try:
            queue.enter(endpoint.route.queue_limit, caller)
            has_place = True
            assigned = None
            if endpoint.route.steering is not None:
                asked, assigned = choosing.drawn(asked)
                flight.asked = asked
            variant = flight.variant = choosing.chosen(asked, asked.sticky)
            call = flight.call = reader(variant)
            if call.sequence is not None:
                call = self._replicas.settle(flight, asked, reader, call.sequence)
            elif endpoint.route.steering is not None:
                call = self._settle_rollout(flight, asked, reader, assigned)
            if caller.limiter is not None:
                caller.limiter.rows(call.rows)
            _set_deadline(flight, asked)
            if self.counting.tracer is not None:
                self.counting.tracer.begin(flight, call)
            self._begin(flight)
        except BaseException as error:
            if has_place:
                queue.leave(caller.id)
            # not kept in a name: error, traceback, this frame and the name would hold the request's body as a cycle
            self.counting.failed(flight, error if isinstance(error, SerinusError) else ServerError())
            raise
        self.flights.add(flight)
        if endpoint.is_watched:
            self._show(flight)

    def _show(self, flight: Flight) -> None:
        for watch in self.watchers:
            watch(flight)

    def answered(self, flight: Flight, answer: Answer) -> None:
        """To be called by a door for a flight's final answer, before it writes it: frees its place and counts it."""
        self.flights.discard(flight)
        flight.endpoint.queue.leave(flight.key)
        if self.trials.suspects or self.trials.tried:
            self.trials.ended(flight, answered=True)
        if flight.call.sequence is not None:
            self._replicas.answered(flight)
        self.counting.answered(flight, answer)

    def abandon(self, flight: Flight) -> None:
        """The caller has left. The replica is told; nobody is called back."""
        flight.is_abandoned = True
        self._end(flight, Cancelled())

    def start_step(self, flight: Flight, outer: Flight, step: Endpoint, call: Call) -> None:
        """Sets one step of a pipeline on its way, as a flight of its own behind the step's endpoint. Raises as `start`."""
        assert step.only is not None
        flight.endpoint, flight.variant, flight.call = step, step.only, call
        flight.key, flight.deadline, flight.origin = outer.key, outer.deadline, outer
        step.queue.enter(step.route.queue_limit, Caller(outer.key, frozenset()))
        try:
            self._dispatch(flight)
        except SerinusError:
            step.queue.leave(flight.key)
            raise
        self.flights.add(flight)

    def end(self, flight: Flight, error: SerinusError) -> None:
        """A flight has failed with `error`: it ends, if it is not rescued; nothing happens when it has ended."""
        if flight.has_ended:
            return
        run = flight.link
        if not self.rescuer.begin(flight, error):
            self._end(flight, error)
            return
        if run is not None:
            run.forget(flight)
        self._go_on(flight)

    def _begin(self, flight: Flight) -> None:
        """The first dispatch. Raises what is wrong with it."""
        try:
            self._dispatch(flight)
        except SerinusError as error:
            if not self.rescuer.begin(flight, error):
                raise
            self._dispatch(flight)

    def _go_on(self, flight: Flight) -> None:
        """Another dispatch; what is wrong with it ends the flight."""
        try:
            self._begin(flight)
        except SerinusError as error:
            self._end(flight, error)

    def _dispatch(self, flight: Flight) -> None:
        if self.trials.suspects:
            self.trials.check(flight)
        if flight.variant.plan is not None:
            flight.sent = time.monotonic()
            flight.link = run = Run(self, flight, flight.variant.plan)
            run.begin()
            return
        link = self._replicas.pick_for(flight)
        if link is not None:
            self._send(flight, link)
            return
        flight.held_until = time.monotonic() + HOLD_S
        self._held[flight] = None

    def _send(self, flight: Flight, link: Link) -> None:
        flight.sent = now = time.monotonic()
        link.send(flight, max(1, int((flight.deadline - now) * 1e3)))

    def _settle_rollout(self, flight: Flight, asked: Asked, reader: Reader, assigned: Variant | None) -> Call:
        """Counts who was assigned by itself; and requests may go to the candidate by what their parameters say."""
        if assigned is not None:
            self.telemetry.drawn(assigned.key)
        found = choosing.by_parameters(asked, flight.variant, flight.call.parameters)
        if found is not None:
            flight.variant = found
            flight.call = reader(found)
        return flight.call

    def _try_held(self) -> None:
        """Looks at those who wait for a replica: one may be ready now, or their version may be gone."""
        for flight in list(self._held):
            if flight not in self._held:  # a pipeline that ended meanwhile took its other steps along
                continue
            variant = self._current(flight)
            if variant is None:
                self._end(flight, NotReady(retry_after_s=choosing.RETRY_AFTER_S))
                continue
            flight.variant = variant
            try:
                link = self._replicas.pick_for(flight)
                if link is not None:
                    del self._held[flight]
                    flight.held_until = 0.0
                    self._send(flight, link)
            except (ReplicaLost, SequenceLost) as error:
                self._failed_there(flight, error)

    def _current(self, flight: Flight) -> Variant | None:
        """The version that a held flight waits for, as the table has it now; where that one is gone or not ready,
        another one that is and may answer it. None where nobody may.
        """
        current, before, asked = self.table.now.known(flight.endpoint.route.name), flight.variant, flight.asked
        if current is None:
            return None
        variant = current.variants.get(before.route.version)
        may_move = flight.call.sequence is None and flight.rescued is None
        if asked is not None and may_move and (variant is None or not variant.is_ready):
            other = choosing.instead(current, asked, variant)
            if other is not None and refit(flight.call, before.route.signature, other.route.signature):
                variant = other
        return variant.counted(before.apart) if variant is not None else None

    def _failed_there(self, flight: Flight, error: SerinusError) -> None:
        """A replica refused or lost this request: once elsewhere, or on the same one when it is back. After a crash
        those who were there are tried again one by one (see quarantine.py).
        """
        if flight.has_ended:  # a step whose pipeline ended by the same loss
            return
        flight.link = None
        crashed = isinstance(error, ConnectionLost) and flight.call.sequence is None
        barred = crashed and self.trials.lost(flight)
        leaves = isinstance(error, Draining) and flight.variant.is_ready
        if not (leaves and not flight.retries) and self.rescuer.begin(flight, error):
            self._go_on(flight)
            return
        if barred:
            self._end(flight, PoisonInput(WORDS))
            return
        lost = isinstance(error, ReplicaLost | Draining)
        may = lost and not flight.parts and not flight.retries and flight.call.sequence is None
        if may and flight.endpoint.queue.retries.take():
            flight.retries = 1
            if crashed:
                self.trials.enter(flight)
            else:
                self._go_on(flight)
        elif leaves and self.rescuer.begin(flight, error):
            self._go_on(flight)
        else:
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
        self.counting.failed(flight, error)
        if not flight.is_abandoned:
            flight.failed(error)

    # -- for coroutines ---------------------------------------------------------------------------------------------

    async def infer(self, asked: Asked, reader: Reader) -> Done:
        """One request, one answer. Raises only errors of inference.errors; a caller who is cancelled abandons it."""
        flight = Awaited(self)
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
        flight = Streamed(self)
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


def _set_deadline(flight: Flight, asked: Asked) -> None:
    """The shortest of what the endpoint allows, the door was told and the request's own parameter says."""
    limit_ms = float(max(flight.endpoint.route.timeout_ms, asked.most_ms))
    if asked.timeout_ms:
        limit_ms = min(limit_ms, asked.timeout_ms)
    if flight.call.timeout_us:
        limit_ms = min(limit_ms, flight.call.timeout_us / 1e3)
    flight.deadline = flight.started + limit_ms / 1e3
