"""The asyncio shell around the window: a bounded line, batches on their way on one or more lanes, the next assembling.

The law: a request ends exactly once, with an answer or a typed error. Expired work and work whose caller left is never
executed. A full line refuses at once. A batch is formed only when a lane is free for it, so it grows until then. A pass
that never ends takes its process with it, after its callers were told.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import ceil, inf

from inference.batching import lengths
from inference.batching.bounds import Bounds, Lengths, RunBatch
from inference.batching.estimates import Arrivals, StepEstimate
from inference.batching.line import Group, Line
from inference.batching.ordering import Ended, Ordering
from inference.batching.passes import Pass, Passes
from inference.batching.policies import PLAIN
from inference.batching.preparation import Preparation
from inference.batching.results import results
from inference.batching.tally import Tally, ns
from inference.batching.window import Release, Rules, Wait, Waiting, decide
from inference.errors import (
    DeadlineExceeded,
    Draining,
    InvalidInput,
    ModelFailed,
    Overloaded,
    ReplicaLost,
    SerinusError,
)
from inference.protocol.comeback import retry_after_s
from inference.protocol.messages import BACKGROUND
from inference.protocol.statistics import ModelStatistics
from inference.runtime.runner import Ran
from inference.runtime.work import Arrays, Outcome, Ticket, awaited

log = logging.getLogger(__name__)


class Batcher:
    """Runs requests in batches by `run`, which gets the inputs of each and answers each with outputs or an error; given
    several, as many batches run side by side. Belongs to one running event loop. `on_hang` is called once, after all
    callers were told.
    """

    def __init__(
        self,
        run: RunBatch | Sequence[RunBatch],
        bounds: Bounds,
        *,
        on_hang: Callable[[], None],
        lengths: Lengths | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bounds, self._rules = bounds, bounds.rules
        self._on_hang = on_hang
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._passes = Passes(
            [run] if callable(run) else list(run), self._loop, self._finished,
            hang_timeout_s=bounds.hang_timeout_s, hung=self._hung,
        )  # fmt: skip
        self._idle_since: float = clock()
        self._policies = None if bounds.policies.are_plain else bounds.policies
        self._line = Line(bounds.policies.levels, self._pick if lengths and lengths.pads else None)
        self._ordering = Ordering() if bounds.preserve_ordering else None
        self._preparation = self._prepares(lengths) if lengths else None
        self._restore = lengths.restore if lengths else None
        self._objective = bounds.objective()
        self._delay_until = bounds.delay_until
        self._closed: SerinusError | None = None
        self._is_considering = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._arrivals = Arrivals()
        self._tally = Tally()
        self.step = StepEstimate()
        self._step_of_elements = StepEstimate()
        self.compute = StepEstimate()  # of the pass alone, without the way to its lane and back

    @property
    def statistics(self) -> ModelStatistics:
        sums = self._tally.sums
        sums.queue_depth, sums.in_flight = self.queue_depth, self.in_flight
        return sums

    @property
    def rules(self) -> Rules:
        """The window's rules now: the settings', or what the latency objective made of them."""
        return self._rules

    @property
    def queue_depth(self) -> int:
        return self._line.count + (len(self._preparation.tickets) if self._preparation else 0)

    @property
    def in_flight(self) -> int:
        return self.queue_depth + self._passes.count

    def submit(self, ticket: Ticket) -> None:
        """Puts a request in the line.

        Raises InvalidInput (more rows than a batch may have, no such priority), DeadlineExceeded, Overloaded, or what
        closed this.
        """
        now = self._clock()
        if self._closed:
            raise self._tally.refused(self._closed)
        if ticket.rows > self._bounds.rules.max_batch_size:
            largest = self._bounds.rules.max_batch_size
            raise self._tally.refused(InvalidInput(f"inference request batch-size must be <= {largest}"))
        if ticket.deadline <= now:
            raise self._tally.refused(DeadlineExceeded())
        is_background = ticket.priority == BACKGROUND
        level = self._admitted(ticket) if self._policies else PLAIN.background if is_background else 0
        preparing = len(self._preparation.tickets) if self._preparation else 0
        if self._line.count + preparing >= self._bounds.queue_limit >> is_background:
            raise self._tally.refused(Overloaded(retry_after_s=self._retry_after_s()))
        if self._ordering:
            self._ordering.came(ticket)
        if self._preparation:
            ticket.rank = (level, 0, 0)
            self._preparation.add(ticket)
            self._wake_by(ticket.deadline, now)
        else:
            self._enter(ticket, level, now)

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
            self._unqueue(ticket)
            if not ticket.has_ended:
                self._tally.sums.cancelled += 1
        ticket.has_ended = True
        if self._ordering:
            self._tell(())

    def pause(self, ticket: Ticket) -> None:
        """One answer a request: there is nothing to hold."""

    def resume(self, ticket: Ticket) -> None:
        """See pause."""

    def close(self, reason: SerinusError | None = None) -> None:
        """Refuses new requests with `reason` (Draining); what is in the line still runs."""
        self._closed = self._closed or reason or Draining()
        self._delay_until = 0
        self._consider_soon()

    async def drained(self, timeout_s: float) -> bool:
        """Waits until nothing is under way; False when that took too long."""
        until = self._clock() + timeout_s
        while self.in_flight and self._clock() < until:  # noqa: ASYNC110 (once in a lifetime, at its end)
            await asyncio.sleep(0.005)
        return not self.in_flight

    def stop(self) -> None:
        """Ends everything now: whoever is under way is told that the replica is gone."""
        self._closed = self._closed or Draining()
        self._fail([*self._everybody_waiting(), *self._passes.tickets()], ReplicaLost())
        if self._timer:
            self._timer.cancel()
        if self._preparation:
            self._preparation.close()
        self._passes.stop()

    # Entering

    def _admitted(self, ticket: Ticket) -> int:
        """The ticket's level, after its queue's policy was asked and its queue timeout set."""
        policies = self._bounds.policies
        try:
            level = policies.level(ticket.priority)
        except InvalidInput as error:
            raise self._tally.refused(error) from None
        waiting = self._line.waiting_at(level)
        if self._preparation:
            waiting += sum(other.rank[0] == level for other in self._preparation.tickets)
        if policies.is_full(level, waiting):
            raise self._tally.refused(Overloaded(retry_after_s=self._retry_after_s()))
        ticket.due = ticket.arrived_at + policies.may_wait_s(level, ticket.queue_timeout_us)
        ticket.is_delayable = ticket.due < inf and policies.delays(level)
        return level

    def _enter(self, ticket: Ticket, level: int, now: float) -> None:
        line = self._line
        line.add(ticket, level)
        self._arrivals.arrived(now, line.rows + self._passes.rows)
        if self._passes.idle:
            if not self._is_considering:
                self._consider_soon()
        elif ticket.due < self._timer_at:
            self._wake_by(ticket.due, now)

    def _prepares(self, lengths: Lengths) -> Preparation:
        return Preparation(
            lengths.prepare,
            self._loop,
            self._ready,
            hang_timeout_s=self._bounds.hang_timeout_s,
            on_hang=partial(self._hung, None),
        )

    def _ready(self, ticket: Ticket, error: SerinusError | None) -> None:
        if ticket.has_ended:
            return
        if error:
            ticket.is_waiting = False
            self._fail([ticket], error)
        else:
            self._enter(ticket, ticket.rank[0], self._clock())

    def _unqueue(self, ticket: Ticket) -> None:
        if self._preparation and ticket in self._preparation.tickets:
            del self._preparation.tickets[ticket]
            ticket.is_waiting = False
        else:
            self._line.drop(ticket)

    def _pick(self, waiting: Sequence[Ticket], rows: int) -> list[Ticket]:
        step = self._step_of_elements.value
        return lengths.pick(waiting, rows, step.fixed_s / step.per_row_s if step.per_row_s else inf)

    # Deciding

    def _consider_soon(self) -> None:
        # Once per turn of the loop, so that frames which came in one piece are seen together.
        if not self._is_considering:
            self._is_considering = True
            self._loop.call_soon(self._consider)

    def _consider(self) -> None:
        self._is_considering = False
        now = self._clock()
        wake_at = self._expire(now)
        if self._line.count < self._delay_until:
            self._wake_by(min(wake_at, self._earliest_waiting()), now)
            return
        self._delay_until = 0
        for oldest, group in self._line.groups():
            decision = self._decide(oldest, group, now) if self._passes.idle else Wait(inf)
            if isinstance(decision, Release):
                self._release(group, decision.rows, now)
                if self._line.count:
                    self._consider_soon()
                else:
                    self._wake_by(min(wake_at, self._passes.due), now)
                return
            wake_at = min(wake_at, decision.until, group.earliest_deadline)
        self._wake_by(wake_at, now)

    def _decide(self, oldest: Ticket, group: Group, now: float) -> Release | Wait:
        rules, step = self._rules, self.step.value
        is_late = now + step.of(min(group.rows, rules.max_batch_size)) > group.earliest_deadline
        waiting = Waiting(
            rows=group.rows,
            present_rows=self._line.rows + self._passes.rows,
            oldest_at=oldest.arrived_at,
            earliest_deadline=group.earliest_deadline,
            preferred_rows=group.prefix(rules.preferred) if rules.preferred else 0,
            idle_lanes=len(self._passes.idle),
            urgent_rows=group.rows_to_most_urgent() if is_late else 0,
        )
        outlook = self._arrivals.outlook()
        return decide(waiting, rules=rules, step=step, outlook=outlook, idle_since=self._idle_since, now=now)

    def _earliest_waiting(self) -> float:
        return min((group.earliest_deadline for _, group in self._line.groups()), default=inf)

    def _wake_by(self, at: float, now: float) -> None:
        """Looks again at `at`, or before. A timer that rings early costs less than moving it at each request."""
        if at >= self._timer_at:
            return
        if self._timer:
            self._timer.cancel()
        self._timer_at = at
        # Loops round to milliseconds; rounded down, this would be asked again and again until the time has come.
        self._timer = self._loop.call_later(max(0, ceil((at - now) * 1e3)) / 1e3, self._woken)

    def _woken(self) -> None:
        self._timer, self._timer_at = None, inf
        self._consider()

    def _expire(self, now: float) -> float:
        """Refuses whoever is late, waiting or running; gives the earliest deadline of those who run or are prepared."""
        late = list(self._line.expired(now))
        wake_at = inf
        if self._preparation:
            tickets = self._preparation.tickets
            overdue = [ticket for ticket in tickets if ticket.deadline <= now]
            for ticket in overdue:
                self._unqueue(ticket)
            late += overdue
            wake_at = min((ticket.deadline for ticket in tickets), default=inf)
        late += self._passes.late(now)
        wake_at = min(wake_at, self._passes.due)
        if late:
            self._fail(late, DeadlineExceeded())
        return wake_at

    # Running

    def _release(self, group: Group, rows: int, now: float) -> None:
        batch = self._line.take(group, rows)
        self._arrivals.released()
        rows = sum([ticket.rows for ticket in batch])
        is_inline = self.compute.value.of(rows) < self._bounds.inline_below_s
        self._passes.start(batch, rows, now, is_inline=is_inline)

    def _finished(self, one: Pass, ran: Ran | BaseException) -> None:
        if self._closed_by_hang():
            return  # everybody was told
        now, batch = self._clock(), one.batch
        if isinstance(ran, BaseException):
            log.error("running a batch raised %s", type(ran).__name__, exc_info=ran)
            ran = Ran([ModelFailed() for _ in batch])
        self._learn(one, now, ran)
        self._tally.ran(batch, one.began, now, ran)
        self._idle_since = now
        if self._line.count:
            self._consider()  # before the answers: the lane should not stand still while they are written
        took_ns, restore = ns(now - one.began), self._restore
        self._tell(results(batch, ran, rows=one.rows, began=one.began, took_ns=took_ns, restore=restore))

    def _learn(self, one: Pass, now: float, ran: Ran) -> None:
        if not any(isinstance(result, SerinusError) for result in ran.results):
            self.step.observe(one.rows, now - one.began)
            if self._bounds.inline_below_s:
                # On a crowded core the clock goes on while others run, and a short pass would be taken for a long one.
                took_ns = ran.thread_ns or ran.input_ns + ran.infer_ns + ran.output_ns
                self.compute.observe(one.rows, took_ns / 1e9)
            if ran.elements:
                self._step_of_elements.observe(ran.elements, now - one.began)
        if self._objective:
            self._objective.saw(now, [now - ticket.arrived_at for ticket in one.batch])
            self._rules = self._objective.rules(self.step.value, self._line.rows)

    def _tell(self, ended: Iterable[Ended]) -> None:
        for ticket, result in self._ordering.finished(ended) if self._ordering else ended:
            ticket.end(result)

    # Ending badly

    def _hung(self, lane: int | None) -> None:
        timeout_s = self._bounds.hang_timeout_s
        what = "preparing a request" if lane is None else "a forward pass"
        log.error("%s takes longer than %s s: this process ends", what, timeout_s)
        self._closed = ReplicaLost()
        if lane is not None:
            self._fail(self._passes.tickets(lane), ModelFailed(f"The model did not answer within {timeout_s:g} s."))
        self._fail([*self._everybody_waiting(), *self._passes.tickets()], ReplicaLost())
        self._on_hang()

    def _closed_by_hang(self) -> bool:
        return isinstance(self._closed, ReplicaLost)

    def _everybody_waiting(self) -> list[Ticket]:
        preparing = list(self._preparation.tickets) if self._preparation else []
        for ticket in preparing:
            self._unqueue(ticket)
        return [*self._line.clear(), *preparing]

    def _retry_after_s(self) -> float:
        largest = self._bounds.rules.max_batch_size * self._passes.lanes
        passes = -(-(self._line.rows + self._passes.rows) // largest)
        return retry_after_s(passes * self.step.value.of(self._bounds.rules.max_batch_size))

    def _fail(self, tickets: Sequence[Ticket], error: SerinusError) -> None:
        for ticket in tickets:
            if not ticket.has_ended:
                self._tally.refused(error)
                ticket.end(type(error)(error.message))
        if tickets and self._ordering:
            self._tell(())
