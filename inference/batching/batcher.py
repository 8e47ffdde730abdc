"""The asyncio shell around the window: a bounded line, one batch on its way, the next one assembling.

The law: a request ends exactly once, with an answer or a typed error. Expired work and work whose caller left is never
executed. A full line refuses at once. A pass that never ends takes its process with it, after its callers were told.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, inf

from inference.batching.estimates import Arrivals, StepEstimate
from inference.batching.lane import Lane
from inference.batching.line import Group, Line
from inference.batching.window import Release, Rules, Wait, Waiting, decide
from inference.batching.work import Arrays, Outcome, Ticket, awaited
from inference.errors import (
    DeadlineExceeded,
    Draining,
    InvalidInput,
    ModelFailed,
    Overloaded,
    ReplicaLost,
    SerinusError,
)
from inference.protocol.statistics import BatchStatistics, ModelStatistics
from inference.runtime.runner import Ran

log = logging.getLogger(__name__)
MIN_RETRY_S, MAX_RETRY_S = 0.05, 30.0


RunBatch = Callable[[list[Arrays]], Ran]


@dataclass(frozen=True, slots=True)
class Bounds:
    """queue_limit: requests that may wait; hang_timeout_s: a pass longer than this is taken for hung."""

    rules: Rules
    queue_limit: int = 1024
    hang_timeout_s: float = 30.0


class Batcher:
    """Runs requests in batches by `run`, which gets the inputs of each and answers each with outputs or an error.

    Belongs to one running event loop. `on_hang` is called once, after all callers were told.
    """

    def __init__(
        self,
        run: RunBatch,
        bounds: Bounds,
        *,
        on_hang: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._bounds = bounds
        self._on_hang = on_hang
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._lane: Lane[Ran] = Lane(self._loop)
        self._line = Line()
        self._running: list[Ticket] = []
        self._running_rows = 0
        self._idle_since: float | None = clock()
        self._closed: SerinusError | None = None
        self._is_considering = False
        self._timer: asyncio.TimerHandle | None = None
        self._hang_timer: asyncio.TimerHandle | None = None
        self._arrivals = Arrivals()
        self.step = StepEstimate()
        self.statistics = ModelStatistics()

    @property
    def queue_depth(self) -> int:
        return self._line.count

    @property
    def in_flight(self) -> int:
        return self._line.count + len(self._running)

    def submit(self, ticket: Ticket) -> None:
        """Puts a request in the line.

        Raises InvalidInput (more rows than a batch may have), DeadlineExceeded, Overloaded, or what closed this.
        """
        now = self._clock()
        if self._closed:
            raise self._closed
        if ticket.rows > self._bounds.rules.max_batch_size:
            raise InvalidInput(f"inference request batch-size must be <= {self._bounds.rules.max_batch_size}")
        if ticket.deadline <= now:
            raise self._refused(DeadlineExceeded())
        if self._line.count >= self._bounds.queue_limit:
            raise self._refused(Overloaded(retry_after_s=self._retry_after_s()))
        self._line.add(ticket)
        self._arrivals.arrived(now, self._line.rows + self._running_rows)
        self._consider_soon()

    async def predict(self, inputs: Arrays, rows: int, *, deadline: float = inf) -> Outcome:
        """Submits and waits. A caller that is cancelled meanwhile cancels the request."""
        future: asyncio.Future[Outcome] = self._loop.create_future()
        ticket = Ticket(inputs, rows, deadline, self._clock(), awaited(future))
        self.submit(ticket)
        try:
            return await future
        finally:
            self.cancel(ticket)

    def cancel(self, ticket: Ticket) -> None:
        """The caller has left: a waiting request is dropped, a running one's answer will go nowhere."""
        if ticket.is_waiting:
            self._line.drop(ticket)
            if not ticket.has_ended:
                self.statistics.cancelled += 1
        ticket.has_ended = True

    def pause(self, ticket: Ticket) -> None:
        """One answer a request: there is nothing to hold."""

    def resume(self, ticket: Ticket) -> None:
        """See pause."""

    def close(self, reason: SerinusError | None = None) -> None:
        """Refuses new requests with `reason` (Draining); what is in the line still runs."""
        self._closed = self._closed or reason or Draining()

    async def drained(self, timeout_s: float) -> bool:
        """Waits until nothing is under way; False when that took too long."""
        until = self._clock() + timeout_s
        while self.in_flight and self._clock() < until:  # noqa: ASYNC110 (once in a lifetime, at its end)
            await asyncio.sleep(0.005)
        return not self.in_flight

    def stop(self) -> None:
        """Ends everything now: whoever is under way is told that the replica is gone."""
        self.close()
        self._fail([*self._line.clear(), *self._running], ReplicaLost())
        for timer in (self._timer, self._hang_timer):
            if timer:
                timer.cancel()
        self._lane.close()

    # Deciding

    def _consider_soon(self) -> None:
        # Once per turn of the loop, so that frames which came in one piece are seen together.
        if not self._is_considering:
            self._is_considering = True
            self._loop.call_soon(self._consider)

    def _consider(self) -> None:
        self._is_considering = False
        now = self._clock()
        self._expire(now)
        wake_at = min((ticket.deadline for ticket in self._running if not ticket.has_ended), default=inf)
        for oldest, group in self._line.groups():
            decision = self._decide(oldest, group, now)
            if isinstance(decision, Release):
                self._release(group, decision.rows, now)
                self._consider_soon()
                return
            wake_at = min(wake_at, decision.until, group.earliest_deadline)
        self._wake_at(wake_at, now)

    def _decide(self, oldest: Ticket, group: Group, now: float) -> Release | Wait:
        waiting = Waiting(
            rows=group.rows,
            present_rows=self._line.rows + self._running_rows,
            oldest_at=oldest.arrived_at,
            earliest_deadline=group.earliest_deadline,
        )
        return decide(
            waiting,
            rules=self._bounds.rules,
            step=self.step.value,
            outlook=self._arrivals.outlook(),
            idle_since=self._idle_since,
            now=now,
        )

    def _wake_at(self, at: float, now: float) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if at < inf:
            # Loops round to milliseconds; rounded down, this would be asked again and again until the time has come.
            self._timer = self._loop.call_later(max(0, ceil((at - now) * 1e3)) / 1e3, self._consider)

    def _expire(self, now: float) -> None:
        late = list(self._line.expired(now))
        late += [ticket for ticket in self._running if ticket.deadline <= now and not ticket.has_ended]
        self._fail(late, DeadlineExceeded())

    # Running

    def _release(self, group: Group, rows: int, now: float) -> None:
        batch = self._line.take(group, rows)
        self._running = batch
        self._running_rows = sum(ticket.rows for ticket in batch)
        self._idle_since = None
        self._arrivals.released()
        self._hang_timer = self._loop.call_later(self._bounds.hang_timeout_s, self._hung)
        inputs = [ticket.inputs for ticket in batch]
        self._lane.run(lambda: self._run(inputs), lambda results: self._finished(batch, now, results))

    def _finished(self, batch: list[Ticket], began: float, ran: Ran | BaseException) -> None:
        if self._running is not batch:
            return  # it was given up before
        if self._hang_timer:
            self._hang_timer.cancel()
        now = self._clock()
        if isinstance(ran, BaseException):
            log.error("running a batch raised %s", type(ran).__name__, exc_info=ran)
            ran = Ran([ModelFailed() for _ in batch])
        self._count(batch, began, now, ran)
        self._answer(batch, began, now, ran)
        self._running, self._running_rows, self._idle_since = [], 0, now
        self._consider()

    def _count(self, batch: list[Ticket], began: float, now: float, ran: Ran) -> None:
        sums, rows = self.statistics, self._running_rows
        if not any(isinstance(result, SerinusError) for result in ran.results):
            self.step.observe(rows, now - began)
        stages = (("compute_input", ran.input_ns), ("compute_infer", ran.infer_ns), ("compute_output", ran.output_ns))
        sums.execution_count += 1
        sums.last_inference_ms = int(time.time() * 1e3)
        sums.padded_rows += ran.padded_rows
        sums.elements += ran.elements
        sums.padding_elements += ran.padding_elements
        size = sums.batches.setdefault(rows, BatchStatistics())
        for name, ns in stages:
            getattr(size, name).add(ns)
        for ticket, result in zip(batch, ran.results, strict=True):
            if ticket.has_ended:
                continue
            total_ns = _ns(now - ticket.arrived_at)
            if isinstance(result, SerinusError):
                sums.fail.add(total_ns)
                continue
            sums.inference_count += ticket.rows
            sums.success.add(total_ns)
            sums.queue.add(_ns(began - ticket.arrived_at))
            for name, ns in stages:
                getattr(sums, name).add(ns)

    def _answer(self, batch: list[Ticket], began: float, now: float, ran: Ran) -> None:
        rows, infer_ns = self._running_rows, ran.infer_ns or _ns(now - began)
        for ticket, result in zip(batch, ran.results, strict=True):
            if isinstance(result, SerinusError):
                ticket.end(result)
            else:
                waited_ns = _ns(began - ticket.arrived_at)
                ticket.end(Outcome(result, rows, waited_ns, infer_ns, ran.input_ns, ran.output_ns))

    def _hung(self) -> None:
        timeout_s = self._bounds.hang_timeout_s
        log.error("a forward pass takes longer than %s s: this process ends", timeout_s)
        self._closed = ReplicaLost()
        self._fail(self._running, ModelFailed(f"The model did not answer within {timeout_s:g} s."))
        self._fail(self._line.clear(), ReplicaLost())
        self._on_hang()

    def _retry_after_s(self) -> float:
        largest = self._bounds.rules.max_batch_size
        passes = -(-(self._line.rows + self._running_rows) // largest)
        return min(max(passes * self.step.value.of(largest), MIN_RETRY_S), MAX_RETRY_S)

    def _refused(self, error: SerinusError) -> SerinusError:
        rejected = self.statistics.rejected
        rejected[error.code] = rejected.get(error.code, 0) + 1
        self.statistics.fail.add(0)
        return error

    def _fail(self, tickets: Sequence[Ticket], error: SerinusError) -> None:
        for ticket in tickets:
            if not ticket.has_ended:
                self._refused(error)
                ticket.end(type(error)(error.message))


def _ns(seconds: float) -> int:
    return max(0, int(seconds * 1e9))
