"""Runs decoupled models: a request has any number of answers, made one by one while its caller reads.

The law: a generator is advanced only when its last answer has been handed on and its caller is not held, so one answer
a request is all that ever waits here. It holds a place from its first step to its last, unless its caller is held: then
the place is given on. Who left, or is too late, is noticed before the next step; its generator is closed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from math import inf
from typing import Any

from inference.batching.counts import Counts, nanoseconds
from inference.batching.lane import Lane
from inference.errors import (
    DeadlineExceeded,
    Draining,
    ModelFailed,
    OutOfMemory,
    Overloaded,
    ReplicaLost,
    SerinusError,
)
from inference.models.asked import said
from inference.protocol.comeback import Emptying, retry_after_s
from inference.protocol.statistics import ModelStatistics
from inference.runtime.runner import Ran, is_out_of_memory
from inference.runtime.work import Arrays, Outcome, Scalar, Ticket

log = logging.getLogger(__name__)
DRAIN_STEP_S = 0.005
StartStream = Callable[[Arrays, Mapping[str, Scalar]], Iterator[Arrays]]


@dataclass(frozen=True, slots=True)
class StreamBounds:
    """places: requests that run side by side; queue_limit: requests that may wait or be held; hang_timeout_s: a step
    longer than this is taken for hung. outputs: the names that an answer may hold.
    """

    outputs: frozenset[str]
    places: int = 1
    queue_limit: int = 1024
    hang_timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Stepped:
    """answer: None when there are no more."""

    answer: Arrays | None
    took_ns: int


@dataclass(slots=True, eq=False)
class _Stream:
    """place: of its next answer, from 0. is_given_up: its caller left, or its time was over."""

    ticket: Ticket
    answers: Iterator[Arrays] | None = None
    is_held: bool = False
    pending: Outcome | None = None
    began: float | None = None
    busy_ns: int = 0
    place: int = 0
    stepping_since: float = 0.0
    is_given_up: bool = False
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True, eq=False)
class _Place:
    """One lane, and the stream that is stepping on it."""

    number: int
    lane: Lane[Stepped]
    stream: _Stream | None = None
    hang_timer: asyncio.TimerHandle | None = field(default=None)


class Streamer:
    """Belongs to one running event loop. `start` makes a request's generator; `step_guard` is entered around each step
    in its thread, with the number of its place; `on_busy` hears how long each took (s); `on_hang` is called once, after
    all callers were told. doubts: says of an answer whether it holds NaN or infinity, where that is to be told.
    """

    def __init__(
        self,
        start: StartStream,
        bounds: StreamBounds,
        *,
        on_hang: Callable[[], None],
        on_busy: Callable[[float], None] = lambda _: None,
        step_guard: Callable[[int], AbstractContextManager[Any]] = nullcontext,
        doubts: Callable[[Arrays], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start = start
        self._doubts = doubts
        self._bounds = bounds
        self._on_hang = on_hang
        self._on_busy = on_busy
        self._step_guard = step_guard
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._places = [_Place(number, Lane(self._loop)) for number in range(bounds.places)]
        self._streams: dict[Ticket, _Stream] = {}
        self._waiting: deque[_Stream] = deque()
        self._resumed: deque[_Stream] = deque()
        self._waiting_count = 0
        self._emptying = Emptying()
        self._closed: SerinusError | None = None
        self._counts = Counts()

    @property
    def statistics(self) -> ModelStatistics:
        sums = self._counts.statistics
        sums.queue_depth, sums.in_flight = self.queue_depth, self.in_flight
        return sums

    @property
    def queue_depth(self) -> int:
        return self._waiting_count

    @property
    def in_flight(self) -> int:
        return len(self._streams)

    def submit(self, ticket: Ticket) -> None:
        """Puts a request in the line. Raises DeadlineExceeded, Overloaded or what closed this."""
        if self._closed:
            raise self._closed
        left_s = ticket.deadline - self._clock()
        if left_s <= 0:
            raise self._counts.refused(DeadlineExceeded())
        if len(self._streams) - sum(1 for place in self._places if place.stream) >= self._bounds.queue_limit:
            empty_in_s = self._emptying.empty_in_s(len(self._streams), self._clock())
            raise self._counts.refused(Overloaded(retry_after_s=retry_after_s(empty_in_s)))
        if not self._streams:
            self._emptying.began(self._clock())
        stream = self._streams[ticket] = _Stream(ticket)
        if left_s < inf:
            stream.timer = self._loop.call_later(left_s, self._late, stream)
        self._waiting.append(stream)
        self._waiting_count += 1
        self._loop.call_soon(self._fill)

    def cancel(self, ticket: Ticket) -> None:
        """The caller has left: a waiting request is dropped, a running one ends before its next step."""
        stream = self._streams.get(ticket)
        if stream is not None and ticket.is_waiting:
            self._counts.statistics.cancelled += 1
        ticket.has_ended = True
        if stream is not None:
            self._abandon(stream)

    def pause(self, ticket: Ticket) -> None:
        """The caller reads slowly: its generator stands still, and its place is given on, until `resume`."""
        if (stream := self._streams.get(ticket)) is not None:
            stream.is_held = True

    def resume(self, ticket: Ticket) -> None:
        """The caller reads again: the answer that was held goes out, and the generator is next for a place."""
        stream = self._streams.get(ticket)
        if stream is None or not stream.is_held:
            return
        stream.is_held = False
        if stream.pending is not None:
            pending, stream.pending = stream.pending, None
            stream.ticket.reply(stream.ticket, pending, False)
        if stream.answers is not None and not stream.is_held:
            self._queue_again(stream)

    def close(self, reason: SerinusError | None = None) -> None:
        """Refuses new requests with `reason` (Draining); what is under way still runs."""
        self._closed = self._closed or reason or Draining()

    async def drained(self, timeout_s: float) -> bool:
        """Waits until nothing is under way; False when that took too long."""
        until = self._clock() + timeout_s
        while self.in_flight and self._clock() < until:  # noqa: ASYNC110 (once in a lifetime, at its end)
            await asyncio.sleep(DRAIN_STEP_S)
        return not self.in_flight

    def stop(self) -> None:
        """Ends everything now: whoever is under way is told that the replica is gone."""
        self.close()
        self._fail(list(self._streams.values()), ReplicaLost())
        self._waiting.clear()
        self._resumed.clear()
        for place in self._places:
            if place.hang_timer:
                place.hang_timer.cancel()
            place.stream = None
            place.lane.close()

    # Places

    def _fill(self) -> None:
        for place in self._places:
            while place.stream is None and (stream := self._next()) is not None:
                place.stream = stream
                self._step(place, stream)

    def _next(self) -> _Stream | None:
        while self._resumed:
            stream = self._resumed.popleft()
            if stream.ticket.has_ended or not stream.is_held:
                return stream
        while self._waiting:
            stream = self._waiting.popleft()
            if stream.ticket in self._streams:
                stream.ticket.is_waiting = False
                stream.began = self._clock()
                self._waiting_count -= 1
                return stream
        return None

    def _queue_again(self, stream: _Stream) -> None:
        if stream not in self._resumed and all(place.stream is not stream for place in self._places):
            self._resumed.append(stream)
            self._loop.call_soon(self._fill)

    def _give_on(self, place: _Place) -> None:
        place.stream = None
        self._fill()

    # Steps

    def _step(self, place: _Place, stream: _Stream) -> None:
        job = (self._closing if stream.ticket.has_ended else self._advancing)(stream, place.number)
        stream.stepping_since = self._clock()
        place.hang_timer = self._loop.call_later(self._bounds.hang_timeout_s, self._hung, stream)
        place.lane.run(job, lambda result: self._stepped(place, stream, result))

    def _advancing(self, stream: _Stream, place: int) -> Callable[[], Stepped]:
        def advance() -> Stepped:
            began = time.perf_counter_ns()
            with self._step_guard(place):
                if stream.answers is None:
                    stream.answers = iter(self._start(stream.ticket.inputs, stream.ticket.parameters))
                answer = next(stream.answers, None)
            return Stepped(answer, time.perf_counter_ns() - began)

        return advance

    def _closing(self, stream: _Stream, place: int) -> Callable[[], Stepped]:
        def close() -> Stepped:
            began = time.perf_counter_ns()
            closer = getattr(stream.answers, "close", None)
            if callable(closer):
                with self._step_guard(place):
                    closer()
            return Stepped(None, time.perf_counter_ns() - began)

        return close

    def _stepped(self, place: _Place, stream: _Stream, result: Stepped | BaseException) -> None:
        if place.stream is not stream:
            return  # it was given up before
        if place.hang_timer:
            place.hang_timer.cancel()
        if isinstance(result, Stepped):
            stream.busy_ns += result.took_ns
            self._on_busy(result.took_ns / 1e9)
        if stream.ticket.has_ended:
            self._let_go(place, stream, result)
        elif isinstance(result, BaseException):
            self._counts.response(stream.place).failed(nanoseconds(self._clock() - stream.stepping_since))
            self._end(stream, _translated(result))
            self._give_on(place)
        elif result.answer is None:
            self._counts.response(stream.place).ended(result.took_ns)
            self._end(stream, self._outcome(stream, {}, result.took_ns))
            self._give_on(place)
        elif unknown := result.answer.keys() - self._bounds.outputs:
            log.error("the model answered with outputs that it does not have: %s", sorted(unknown))
            self._counts.response(stream.place).failed(result.took_ns)
            self._end(stream, ModelFailed())
            self._step(place, stream)
        else:
            self._counts.response(stream.place).answered(result.took_ns)
            stream.place += 1
            self._hand_on(place, stream, self._outcome(stream, result.answer, result.took_ns))

    def _hand_on(self, place: _Place, stream: _Stream, outcome: Outcome) -> None:
        if stream.is_held:
            stream.pending = outcome
        else:
            stream.ticket.reply(stream.ticket, outcome, False)
        if stream.is_held and not stream.ticket.has_ended:
            self._give_on(place)
        else:
            self._step(place, stream)

    def _let_go(self, place: _Place, stream: _Stream, result: Stepped | BaseException) -> None:
        """Its caller is gone. A generator that could go on is closed; then the place is free."""
        if isinstance(result, Stepped) and result.answer is not None:
            self._step(place, stream)
            return
        if stream.is_given_up:
            tidied_ns = result.took_ns if isinstance(result, Stepped) else 0
            self._counts.response(stream.place).cancel.add(tidied_ns)
        self._leave(stream)
        self._give_on(place)

    # Ends

    def _end(self, stream: _Stream, result: Outcome | SerinusError) -> None:
        """Tells the caller how it ended. The generator may still have to be closed."""
        now, ticket = self._clock(), stream.ticket
        ran = Ran([], infer_ns=stream.busy_ns)
        self._counts.passed(ticket.rows, ran)
        if isinstance(result, SerinusError):
            self._counts.failed(ticket, now)
        else:
            self._counts.answered(ticket, stream.began or now, now, ran)
        self._forget(stream)
        ticket.end(result)

    def _forget(self, stream: _Stream) -> None:
        if stream.timer:
            stream.timer.cancel()
        self._leave(stream)

    def _leave(self, stream: _Stream) -> None:
        if self._streams.pop(stream.ticket, None) is not None:
            self._emptying.left(self._clock)

    def _abandon(self, stream: _Stream) -> None:
        """Nobody waits for it any more: drops it, or has its generator closed."""
        if stream.timer:
            stream.timer.cancel()
        stream.pending = None
        if stream.ticket.is_waiting:
            stream.ticket.is_waiting = False
            self._waiting_count -= 1
            self._leave(stream)
        else:
            stream.is_given_up = True
            self._queue_again(stream)

    def _late(self, stream: _Stream) -> None:
        if not stream.ticket.has_ended:
            self._counts.refused(DeadlineExceeded())
            stream.ticket.end(DeadlineExceeded())
            self._abandon(stream)

    def _hung(self, stream: _Stream) -> None:
        timeout_s = self._bounds.hang_timeout_s
        log.error("a step of a stream takes longer than %s s: this process ends", timeout_s)
        self._closed = ReplicaLost()
        self._fail([stream], ModelFailed(f"The model did not answer within {timeout_s:g} s."))
        self._fail(list(self._streams.values()), ReplicaLost())
        self._on_hang()

    def _fail(self, streams: Iterable[_Stream], error: SerinusError) -> None:
        for stream in streams:
            self._forget(stream)
            if not stream.ticket.has_ended:
                self._counts.refused(error)
                stream.ticket.end(type(error)(error.message))

    def _outcome(self, stream: _Stream, answer: Arrays, took_ns: int) -> Outcome:
        ticket = stream.ticket
        waited_ns = nanoseconds((stream.began or ticket.arrived_at) - ticket.arrived_at)
        is_invalid = self._doubts is not None and self._doubts(ticket.wanted(answer))
        return Outcome(answer, ticket.rows, waited_ns, took_ns, parameters=said(answer), is_invalid=is_invalid)


def _translated(error: BaseException) -> SerinusError:
    if isinstance(error, SerinusError):
        return error
    log.error("the model raised %s", type(error).__name__, exc_info=error)
    return OutOfMemory() if is_out_of_memory(error) else ModelFailed()
