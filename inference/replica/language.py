"""Runs a language model's requests: an executor whose passes are the engine's iterations.

The law of admission: at most `queue_limit` requests that have no token yet, and at most `max_queued_tokens` prompt tokens
of them; more is Overloaded at once. Who leaves, or is too late, is out of the engine before its next iteration.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

import numpy as np

from inference.batching.counts import Counts, nanoseconds
from inference.errors import (
    DeadlineExceeded,
    Draining,
    ModelFailed,
    Overloaded,
    ReplicaLost,
    SerinusError,
    ServerError,
)
from inference.generation.engine import Engine
from inference.generation.requests import Output
from inference.generation.thread import EngineThread
from inference.protocol import generation
from inference.protocol.comeback import Emptying, retry_after_s
from inference.protocol.generation import Asked, Event, Generate, Tokenize
from inference.protocol.statistics import ModelStatistics
from inference.replica.alarm import Alarm
from inference.replica.language_answers import Answers
from inference.replica.language_jobs import Job, asked_of
from inference.replica.language_metrics import LanguageMeter
from inference.replica.language_text import LanguageText, Prepared
from inference.runtime.runner import Ran
from inference.runtime.work import Outcome, Ticket

log = logging.getLogger(__name__)
DRAIN_STEP_S = 0.005
WATCH_S = 1.0
ALARM_GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class LanguageBounds:
    """queue_limit: requests without a token; queued_tokens: their prompts' tokens, 0 for no bound; hang_timeout_s: an
    iteration longer than this is taken for hung.
    """

    queue_limit: int
    queued_tokens: int
    hang_timeout_s: float


class LanguageExecutor:
    """Belongs to one running event loop. `on_hang` is called once, after all callers were told."""

    def __init__(
        self,
        engine: Engine,
        text: LanguageText,
        bounds: LanguageBounds,
        *,
        on_hang: Callable[[], None],
        on_busy: Callable[[float], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._text = text
        self._bounds = bounds
        self._on_hang = on_hang
        self._on_busy = on_busy
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._alarm = Alarm(bounds.hang_timeout_s + ALARM_GRACE_S)
        self._jobs: dict[Ticket, Job] = {}
        self._queued = 0
        self._queued_tokens = 0
        self._emptying = Emptying()
        self._closed: SerinusError | None = None
        self._counts = Counts()
        self._meter = LanguageMeter(engine)
        self._reader = ThreadPoolExecutor(1, "text")
        self._thread = EngineThread(engine, self._loop, self._arrived, guard=self._guarded)
        self._watch = self._loop.call_later(WATCH_S, self._watching)

    @property
    def statistics(self) -> ModelStatistics:
        sums = self._counts.statistics
        sums.queue_depth, sums.in_flight = self.queue_depth, self.in_flight
        sums.generation = self._meter.sums()
        return sums

    @property
    def queue_depth(self) -> int:
        """Requests without a token."""
        return self._queued

    @property
    def in_flight(self) -> int:
        return len(self._jobs)

    # --- requests -------------------------------------------------------------------------------------------------

    def submit(self, ticket: Ticket) -> None:
        """Takes a request in. Raises InvalidInput, DeadlineExceeded, Overloaded or what closed this."""
        if self._closed:
            raise self._closed
        left_s = ticket.deadline - self._clock()
        if left_s <= 0:
            raise self._counts.refused(DeadlineExceeded())
        if self._queued >= self._bounds.queue_limit:
            raise self._counts.refused(self._full())
        is_oip = generation.REQUEST not in ticket.inputs
        asked = asked_of(ticket)
        job = self._jobs[ticket] = Job(ticket, is_oip, asked.adapter if isinstance(asked, Generate) else "")
        if not self._queued:
            self._emptying.began(self._clock())
        self._queued += 1
        if left_s < inf:
            job.timer = self._loop.call_later(left_s, self._late, job)
        read = self._reader.submit(self._read, asked)
        read.add_done_callback(lambda done: self._soon(self._was_read, job, done))

    def cancel(self, ticket: Ticket) -> None:
        """The caller has left: its sequences end before the next iteration."""
        ticket.has_ended = True
        if (job := self._jobs.get(ticket)) is not None:
            if not job.began:
                self._counts.statistics.cancelled += 1
            elif job.answers is not None:
                self._meter.ended(job.answers.usage(), ["abort"])
            self._forget(job)

    def pause(self, ticket: Ticket) -> None:
        """The caller reads slowly: its choices stand still, and others may use their memory, until `resume`."""
        self._hold(ticket, held=True)

    def resume(self, ticket: Ticket) -> None:
        self._hold(ticket, held=False)

    def close(self, reason: SerinusError | None = None) -> None:
        self._closed = self._closed or reason or Draining()

    async def drained(self, timeout_s: float) -> bool:
        until = self._clock() + timeout_s
        while self.in_flight and self._clock() < until:  # noqa: ASYNC110 (once in a lifetime, at its end)
            await asyncio.sleep(DRAIN_STEP_S)
        return not self.in_flight

    def stop(self) -> None:
        """Ends everything now: whoever is under way is told that the replica is gone."""
        self.close()
        self._watch.cancel()
        self._fail_all(ReplicaLost())
        self._thread.stop()
        self._reader.shutdown(wait=False, cancel_futures=True)

    # --- adapters: asked by another thread ------------------------------------------------------------------------

    def uses_adapter(self, name: str, slot: int) -> Future[bool]:
        """Whether a request that began with this adapter is still under way."""
        found: Future[bool] = Future()

        def look() -> None:
            found.set_result(any(job.has_adapter(name, slot) for job in self._jobs.values()))

        self._soon(look)
        return found

    def when_idle(self, act: Callable[[], None]) -> Future[None]:
        """Has the engine's thread call `act` between two iterations, behind everything that it was asked before."""
        found: Future[None] = Future()

        def acting(_: Engine) -> None:
            try:
                act()
            except Exception as error:  # noqa: BLE001 (whoever waits raises it)
                found.set_exception(error)
            else:
                found.set_result(None)

        self._thread.ask(acting)
        return found

    # --- from the prompt to the engine ----------------------------------------------------------------------------

    def _read(self, asked: Asked) -> Prepared | Event:
        """In the thread for text: templates and grammars take their time."""
        if isinstance(asked, Generate):
            return self._text.prepare(asked)
        return self._text.tokenized(asked) if isinstance(asked, Tokenize) else self._text.detokenized(asked)

    def _was_read(self, job: Job, done: Any) -> None:
        if self._jobs.get(job.ticket) is not job:
            return
        error = done.exception() if not done.cancelled() else ReplicaLost()
        if error is not None:
            self._end(job, _typed(error))
            return
        found = done.result()
        if isinstance(found, Event):
            self._end(job, self._outcome(job, found))
            return
        waiting, most = self._queued_tokens, self._bounds.queued_tokens
        if most and waiting and waiting + len(found.request.prompt) > most:
            self._end(job, self._full())
            return
        self._enter(job, found)

    def _enter(self, job: Job, prepared: Prepared) -> None:
        self._queued_tokens += len(prepared.request.prompt)
        job.prepared = prepared
        job.answers = Answers(prepared, self._text.spelled, self._text.stops, self._text.max_context)
        prepared.request.owner = job
        request, held = prepared.request, job.is_held
        job.ticket.is_waiting = False

        def add(engine: Engine) -> list[Output]:
            outputs = engine.add(request)
            engine.hold(request, held=held)
            return outputs

        self._thread.ask(add)

    def _hold(self, ticket: Ticket, *, held: bool) -> None:
        job = self._jobs.get(ticket)
        if job is None or job.is_held is held:
            return
        job.is_held = held
        if job.prepared is not None:
            request = job.prepared.request
            self._thread.ask(lambda engine: engine.hold(request, held=held))

    # --- from the engine to the caller ----------------------------------------------------------------------------

    def _arrived(self, outputs: list[Output]) -> None:
        """The outputs of one iteration: each request gets one event for all that is new."""
        touched: list[Job] = []
        now = self._clock()
        for output in outputs:
            job: Job = output.run.request.owner
            if self._jobs.get(job.ticket) is not job or job.answers is None:
                continue
            if output.error is not None:
                self._end(job, output.error)
                continue
            self._timed(job, output, now)
            if job.answers.take(output):
                self._thread.ask(partial(_ended, output))
            if not job.is_touched:
                job.is_touched = True
                touched.append(job)
        for job in touched:
            job.is_touched = False
            self._tell(job)

    def _timed(self, job: Job, output: Output, now: float) -> None:
        if not output.tokens:
            return
        if not job.began:
            job.began = now
            self._unqueue(job)
            self._meter.first_token(now - job.ticket.arrived_at, output.run.queued_ns / 1e9)
        elif not output.run.index:
            self._meter.next_tokens((now - job.last) / len(output.tokens), len(output.tokens))
        if not output.run.index:
            job.last = now

    def _tell(self, job: Job) -> None:
        if self._jobs.get(job.ticket) is not job or job.answers is None:
            return
        try:
            event = job.answers.event()
        except Exception as error:
            log.exception("an answer could not be made")
            self._end(job, _typed(error))
            return
        if job.answers.has_ended:
            self._meter.ended(job.answers.usage(), [piece.finish for piece in event.pieces] if event else [])
            self._meter.finished(job.answers.usage(), self._clock() - job.ticket.arrived_at)
            self._end(job, self._outcome(job, event or Event(usage=job.answers.usage())))
        elif event is not None:
            job.ticket.reply(job.ticket, self._outcome(job, event), False)

    def _outcome(self, job: Job, event: Event) -> Outcome:
        if job.is_oip:
            texts = [piece.text.encode() for piece in event.pieces]
            outputs = {generation.TEXT_OUTPUT: _bytes(texts or [b""])}
        else:
            outputs = {generation.EVENT: _bytes([generation.encode_event(event)])}
        began = job.began or self._clock()
        waited = nanoseconds(began - job.ticket.arrived_at)
        return Outcome(outputs, 1, waited, nanoseconds(self._clock() - began))

    # --- ends -----------------------------------------------------------------------------------------------------

    def _end(self, job: Job, result: Outcome | SerinusError) -> None:
        now = self._clock()
        if isinstance(result, SerinusError):
            if job.began:
                self._counts.failed(job.ticket, now)
            else:
                self._counts.refused(result)
        else:
            ran = Ran([], infer_ns=nanoseconds(now - (job.began or now)))
            self._counts.passed(1, ran)
            self._counts.answered(job.ticket, job.began or now, now, ran)
        self._forget(job)
        job.ticket.end(result)

    def _forget(self, job: Job) -> None:
        """Takes it out of everything, the engine too."""
        if self._jobs.pop(job.ticket, None) is None:
            return
        if job.timer:
            job.timer.cancel()
        if not job.began:
            self._unqueue(job)
        if job.prepared is not None and not (job.answers is not None and job.answers.has_ended):
            request = job.prepared.request
            self._thread.ask(lambda engine: engine.drop(request))

    def _unqueue(self, job: Job) -> None:
        self._queued -= 1
        self._emptying.left(self._clock)
        if job.prepared is not None:
            self._queued_tokens -= len(job.prepared.request.prompt)

    def _full(self) -> Overloaded:
        return Overloaded(retry_after_s=retry_after_s(self._emptying.empty_in_s(self._queued, self._clock())))

    def _late(self, job: Job) -> None:
        if self._jobs.get(job.ticket) is job:
            self._end(job, DeadlineExceeded())

    def _fail_all(self, error: SerinusError) -> None:
        for job in list(self._jobs.values()):
            self._end(job, type(error)(error.message))

    # --- watching -------------------------------------------------------------------------------------------------

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        began = time.monotonic()
        self._alarm.began(0)
        try:
            yield
        finally:
            self._alarm.ended(0)
            self._on_busy(time.monotonic() - began)

    def _watching(self) -> None:
        since, timeout_s = self._thread.busy_since, self._bounds.hang_timeout_s
        if since is not None and time.monotonic() - since > timeout_s:
            log.error("an iteration takes longer than %s s: this process ends", timeout_s)
            self._closed = ReplicaLost()
            self._fail_all(ModelFailed(f"The model did not answer within {timeout_s:g} s."))
            self._on_hang()
            return
        self._watch = self._loop.call_later(min(WATCH_S, timeout_s / 4), self._watching)

    def _soon(self, act: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(act, *arguments)
        except RuntimeError:
            log.info("an answer came after the end")


def _ended(output: Output, engine: Engine) -> None:
    engine.end(output.run)


def _bytes(values: list[bytes]) -> np.ndarray[Any, Any]:
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


def _typed(error: BaseException) -> SerinusError:
    if isinstance(error, SerinusError):
        return error
    log.error("a prompt could not be read", exc_info=error)
    return ServerError()
