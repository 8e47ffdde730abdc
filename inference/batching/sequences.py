"""The asyncio shell around `slots`: runs stateful models, each sequence's requests in order, its state kept here.

The law: a request ends exactly once. A request that did not run leaves the state as it was; where that request was the
START, the sequence is over. Nothing of one sequence's state is ever fed to another.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil, inf
from typing import cast

from inference.batching.counts import Counts, nanoseconds
from inference.batching.estimates import StepEstimate
from inference.batching.lane import Lane
from inference.batching.line import shape_of
from inference.batching.slots import Batch, OpenSequence, SequenceId, Sequences, SlotRules, Step
from inference.batching.states import CorrelationId, Feeder, Flags
from inference.errors import (
    DeadlineExceeded,
    Draining,
    InvalidInput,
    ModelFailed,
    Overloaded,
    ReplicaLost,
    SerinusError,
)
from inference.models.asked import said
from inference.protocol.comeback import retry_after_s
from inference.protocol.messages import SequenceControl
from inference.protocol.statistics import ModelStatistics
from inference.runtime.runner import Ran
from inference.runtime.work import Arrays, Outcome, Ticket

log = logging.getLogger(__name__)
DRAIN_STEP_S = 0.005


@dataclass(frozen=True, slots=True)
class Instance:
    """One copy of the model. run: each row's own outputs or error, found by running parts again where all together
    fail. run_whole: one pass and never another, for a model that keeps state inside itself.
    """

    run: Callable[[list[Arrays]], Ran]
    run_whole: Callable[[list[Arrays]], Ran]


@dataclass(frozen=True, slots=True)
class SequenceBounds:
    """queue_limit: requests that may wait; hang_timeout_s: a pass longer than this is taken for hung.
    buckets: batch sizes that the program is compiled for, ascending. fills_slots: slots without a request are run too,
    where a READY control tells the model so.
    """

    rules: SlotRules
    queue_limit: int = 1024
    hang_timeout_s: float = 30.0
    buckets: tuple[int, ...] = ()
    fills_slots: bool = True


@dataclass(frozen=True, slots=True)
class Places:
    """A batch over slots. own: each request's slot, in the batch's order; idle: state and flags of the slots between."""

    own: list[int]
    idle: dict[int, tuple[Arrays | None, Flags]]


class SequenceBatcher:
    """Belongs to one running event loop. `on_hang` is called once, after all callers were told."""

    def __init__(
        self,
        model: str,
        instances: Sequence[Instance],
        feeder: Feeder,
        bounds: SequenceBounds,
        *,
        on_hang: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._instances = instances
        self._feeder = feeder
        self._bounds = bounds
        self._on_hang = on_hang
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._lanes: list[Lane[Ran]] = [Lane(self._loop) for _ in instances]
        self._line: Sequences[Ticket] = Sequences(bounds.rules)
        self._steps: dict[Ticket, Step[Ticket]] = {}
        self._running: list[Batch[Ticket] | None] = [None] * len(instances)
        self._hang_timers: dict[int, asyncio.TimerHandle] = {}
        self._closed: SerinusError | None = None
        self._is_considering = False
        self._timer: asyncio.TimerHandle | None = None
        self._counts = Counts()
        self.step = StepEstimate()
        # Rows of slots that have no request go along where the model is told so by READY.
        self._is_dense = bounds.fills_slots and bounds.rules.is_direct and feeder.has_ready

    @property
    def statistics(self) -> ModelStatistics:
        sums = self._counts.statistics
        sums.queue_depth, sums.in_flight, sums.open_sequences = self.queue_depth, self.in_flight, self._line.open
        return sums

    @property
    def queue_depth(self) -> int:
        return self._line.waiting

    @property
    def in_flight(self) -> int:
        return self._line.waiting + sum(len(batch.steps) for batch in self._running if batch)

    def submit(self, ticket: Ticket) -> None:
        """Puts a request at the end of its sequence.

        Raises InvalidInput (no correlation id, no START, more than one row), DeadlineExceeded, Overloaded, or what
        closed this: after `close` only open sequences go on.
        """
        now = self._clock()
        control = self._control(ticket)
        name = (ticket.key, control.id)  # one caller's sequence 7 is not another's
        if self._closed and (control.start or not self._line.knows(name)):
            raise self._closed
        if not control.start and not self._line.knows(name):
            raise self._counts.refused(self._start_missing(control.id))
        if ticket.deadline <= now:
            raise self._counts.refused(DeadlineExceeded())
        if self._line.waiting >= self._bounds.queue_limit:
            raise self._counts.refused(Overloaded(retry_after_s=self._retry_after_s()))
        kind = shape_of(ticket.inputs)
        step = Step(ticket, name, control.start, control.end, ticket.deadline, kind)
        self._steps[ticket] = step
        self._line.add(step, now)
        self._consider_soon()

    def cancel(self, ticket: Ticket) -> None:
        """The caller has left: a waiting request is dropped; a running one's state is kept, its answer goes nowhere."""
        if (step := self._steps.get(ticket)) is not None and not ticket.has_ended:
            self._counts.statistics.cancelled += 1
            ticket.has_ended = True
            self._drop(step)
            self._consider_soon()
        ticket.has_ended = True

    def pause(self, ticket: Ticket) -> None:
        """One answer a request: there is nothing to hold."""

    def resume(self, ticket: Ticket) -> None:
        """See pause."""

    def close(self, reason: SerinusError | None = None) -> None:
        """Refuses new sequences with `reason` (Draining); open ones go on."""
        self._closed = self._closed or reason or Draining()

    async def drained(self, timeout_s: float) -> bool:
        """Waits until every sequence has ended and nothing is under way; False when requests are left after that."""
        until = self._clock() + timeout_s
        while (self.in_flight or self._line.open) and self._clock() < until:  # noqa: ASYNC110 (once, at its end)
            await asyncio.sleep(DRAIN_STEP_S)
        return not self.in_flight

    def stop(self) -> None:
        """Ends everything now: whoever is under way is told that the replica is gone."""
        self.close()
        self._fail(self._everybody(), ReplicaLost())
        for timer in (self._timer, *self._hang_timers.values()):
            if timer:
                timer.cancel()
        for lane in self._lanes:
            lane.close()

    # Deciding

    def _control(self, ticket: Ticket) -> SequenceControl:
        control = ticket.sequence
        if control is None or not control.id:
            raise self._counts.refused(
                InvalidInput(
                    f"inference request to model '{self._model}' must specify a non-zero or non-empty correlation ID"
                )
            )
        if ticket.rows > 1:
            raise self._counts.refused(
                InvalidInput(
                    f"inference request to model '{self._model}' must specify batch-size 1 due to requirements of "
                    "sequence batcher"
                )
            )
        self._feeder.check(self._model, control.id)
        return control

    def _start_missing(self, name: CorrelationId) -> InvalidInput:
        return InvalidInput(
            f"inference request for sequence {name} to model '{self._model}' must specify the START flag on the first "
            "request of the sequence"
        )

    def _consider_soon(self) -> None:
        # Once per turn of the loop, so that frames which came in one piece are seen together.
        if not self._is_considering:
            self._is_considering = True
            self._loop.call_soon(self._consider)

    def _consider(self) -> None:
        self._is_considering = False
        now = self._clock()
        self._expire(now)
        wake_at = inf
        for instance, running in enumerate(self._running):
            if running is not None:
                wake_at = min(wake_at, *(s.deadline for s in running.steps if not s.of.has_ended), inf)
                continue
            found = self._line.next_batch(instance, now, self.step.value.of(1))
            if isinstance(found, Batch):
                self._release(found, now)
            else:
                wake_at = min(wake_at, found)
        self._wake_at(min(wake_at, self._line.wake_at()), now)

    def _wake_at(self, at: float, now: float) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if at < inf:
            # Loops round to milliseconds; rounded down, this would be asked again and again until the time has come.
            self._timer = self._loop.call_later(max(0, ceil((at - now) * 1e3)) / 1e3, self._consider)

    def _expire(self, now: float) -> None:
        late = self._line.late(now)
        self._fail((step.of for step in late), DeadlineExceeded())
        for step in late:
            self._drop(step)
        running = [step.of for batch in self._running if batch for step in batch.steps]
        self._fail((ticket for ticket in running if ticket.deadline <= now), DeadlineExceeded())
        self._line.expire_idle(now)

    def _drop(self, step: Step[Ticket]) -> None:
        self._steps.pop(step.of, None)
        step.of.is_waiting = False
        self._orphaned(self._line.drop(step, self._clock()))

    def _orphaned(self, steps: Iterable[Step[Ticket]]) -> None:
        for step in steps:
            self._steps.pop(step.of, None)
            step.of.is_waiting = False
            self._fail([step.of], self._start_missing(_correlation(step.id)))

    # Running

    def _release(self, batch: Batch[Ticket], now: float) -> None:
        for step in batch.steps:
            self._steps.pop(step.of, None)
            step.of.is_waiting = False
        instance = batch.instance
        self._running[instance] = batch
        self._hang_timers[instance] = self._loop.call_later(self._bounds.hang_timeout_s, self._hung)
        job = self._job(batch, self._places(batch) if self._is_dense else None)
        self._lanes[instance].run(job, lambda ran: self._finished(batch, now, ran))
        if self._running.count(None):
            self._consider_soon()

    def _job(self, batch: Batch[Ticket], places: Places | None) -> Callable[[], Ran]:
        """What the lane's thread does. It only reads what was true when the batch was formed."""
        model, feeder = self._instances[batch.instance], self._feeder
        flags = [Flags(_correlation(step.id), step.start, step.end) for step in batch.steps]
        memories = [cast("Arrays | None", sequence.memory) for sequence in batch.sequences]

        def run() -> Ran:
            began = time.perf_counter_ns()
            rows = [
                feeder.row(step.of.inputs, memory, flag)
                for step, memory, flag in zip(batch.steps, memories, flags, strict=True)
            ]
            ran = _run(model, feeder, rows, places)
            ran.input_ns = max(ran.input_ns, time.perf_counter_ns() - began - ran.infer_ns - ran.output_ns)
            return ran

        return run

    def _places(self, batch: Batch[Ticket]) -> Places:
        slots = self._line.slots(batch.instance)
        own = [slots.index(sequence) for sequence in batch.sequences]
        size = max(own) + 1
        size = next((bucket for bucket in self._bounds.buckets if bucket >= size), size)
        others = {at: slots[at] if at < len(slots) else None for at in set(range(size)) - set(own)}
        idle = {
            at: (owner.memory if owner else None, Flags(_correlation(owner.id) if owner else 0, ready=False))
            for at, owner in others.items()
        }
        return Places(own, idle)

    def _finished(self, batch: Batch[Ticket], began: float, ran: Ran | BaseException) -> None:
        if self._running[batch.instance] is not batch:
            return  # it was given up before
        self._hang_timers.pop(batch.instance).cancel()
        now = self._clock()
        if isinstance(ran, BaseException):
            log.error("running a batch raised %s", type(ran).__name__, exc_info=ran)
            ran = Ran([ModelFailed() for _ in batch.steps])
        self._running[batch.instance] = None
        if not any(isinstance(result, SerinusError) for result in ran.results):
            self.step.observe(len(batch.steps), now - began)
        self._counts.passed(len(batch.steps), ran)
        for sequence, step, result in zip(batch.sequences, batch.steps, ran.results, strict=True):
            self._settle(sequence, step, result)
            self._answer(step.of, result, (began, now), ran)
        self._consider()

    def _settle(self, sequence: OpenSequence[Ticket], step: Step[Ticket], result: Arrays | SerinusError) -> None:
        """The sequence goes on with its new state, or with its old one, or is over."""
        failed = isinstance(result, SerinusError)
        if isinstance(result, dict):
            public, sequence.memory = self._feeder.kept(result)
            result.clear()
            result.update(public)
        broken = failed and not self._feeder.has_states
        self._orphaned(self._line.finished(sequence, self._clock(), ran=not failed, is_broken=broken))

    def _answer(self, ticket: Ticket, result: Arrays | SerinusError, times: tuple[float, float], ran: Ran) -> None:
        if ticket.has_ended:
            return
        began, now = times
        if isinstance(result, SerinusError):
            self._counts.failed(ticket, now)
            ticket.end(result)
            return
        self._counts.answered(ticket, began, now, ran)
        waited_ns, infer_ns = nanoseconds(began - ticket.arrived_at), ran.infer_ns or nanoseconds(now - began)
        ended = Outcome(
            result, len(ran.results), waited_ns, infer_ns, ran.input_ns, ran.output_ns, parameters=said(result)
        )
        if ran.doubts is not None:
            ended.is_invalid = ran.doubts(ticket.wanted(result))
        ticket.end(ended)

    def _hung(self) -> None:
        timeout_s = self._bounds.hang_timeout_s
        log.error("a forward pass takes longer than %s s: this process ends", timeout_s)
        self._closed = ReplicaLost()
        late = [step.of for batch in self._running if batch for step in batch.steps]
        self._fail(late, ModelFailed(f"The model did not answer within {timeout_s:g} s."))
        self._fail(self._everybody(), ReplicaLost())
        self._on_hang()

    def _everybody(self) -> list[Ticket]:
        self._steps.clear()
        running, self._running = self._running, [None] * len(self._running)
        left = [step.of for step in self._line.clear()]
        return left + [step.of for batch in running if batch for step in batch.steps]

    def _retry_after_s(self) -> float:
        passes = ceil(self._line.waiting / self._bounds.rules.max_batch_size)
        return retry_after_s(passes * self.step.value.of(self._bounds.rules.max_batch_size))

    def _fail(self, tickets: Iterable[Ticket], error: SerinusError) -> None:
        for ticket in tickets:
            if not ticket.has_ended:
                self._counts.refused(error)
                ticket.end(type(error)(error.message))


def _run(model: Instance, feeder: Feeder, rows: list[Arrays], places: Places | None) -> Ran:
    if places is None:
        return model.run(rows) if feeder.has_states else model.run_whole(rows)
    at = dict(zip(places.own, rows, strict=True))
    for slot, (memory, flags) in places.idle.items():
        at[slot] = feeder.row(rows[0], memory, flags)
    ran = model.run_whole([at[slot] for slot in sorted(at)])
    if feeder.has_states and any(isinstance(result, SerinusError) for result in ran.results):
        return model.run(rows)  # all state is ours, so a second pass does no harm and finds whose fault it is
    ran.padded_rows += len(places.idle)
    ran.results = [ran.results[slot] for slot in places.own]
    return ran


def _correlation(name: SequenceId) -> CorrelationId:
    """The correlation id in a sequence's name, which is (key, id)."""
    return cast("tuple[str, CorrelationId]", name)[1]
