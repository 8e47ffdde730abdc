"""Which requests a model executes just now, so that its calls of other models are made for them: with their time, and on
the connection by which they came.

A call belongs to the execution that its thread or task was started in; one from a thread that knows of none belongs to all
requests that are under way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import inf

from inference.errors import NotReady, Unsupported
from inference.models.asked import About
from inference.models.calling import Calls, Line, Question, Told

GRACE_S = 0.2
UNSERVED = (
    "other models can be called while a request is served, and not while this one is loaded, warmed up or validated"
)
TOO_DEEP = "no further model may be called from here: calls of models by models go that deep and no deeper"


@dataclass(eq=False, slots=True)
class Execution:
    """Requests that are executed together. until: a call must have ended then (seconds of the monotonic clock), or this
    process is taken for hung; patience_s: what one call may take in any case.
    """

    requests: Sequence[About]
    patience_s: float
    until: float = inf


_current: ContextVar[Execution | None] = ContextVar("execution", default=None)
_guard = threading.Lock()
_open: dict[Execution, None] = {}
_vain = [0]  # calls that came while nobody could carry them


@contextmanager
def under_way(execution: Execution) -> Iterator[None]:
    """While its requests are."""
    with _guard:
        _open[execution] = None
    try:
        yield
    finally:
        with _guard:
            del _open[execution]


@contextmanager
def entered(execution: Execution) -> Iterator[None]:
    """For this thread, and for what is started from it that takes its context along."""
    token = _current.set(execution)
    try:
        yield
    finally:
        _current.reset(token)


def current() -> Execution | None:
    """The execution that a call belongs to; None while none is under way."""
    found = _current.get()
    with _guard:
        if found in _open:
            return found
        every = list(_open)
    if not every:
        return None
    requests = [about for execution in every for about in execution.requests]
    return Execution(requests, max(one.patience_s for one in every), max(one.until for one in every))


def asked_in_vain() -> int:
    """How many calls came before requests could be served: in the warm-up and in validation."""
    return _vain[0]


def call(execution: Execution, question: Question, told: Told) -> tuple[Line, float]:
    """Sets a call on its way; answers it, and how long it may take (s). Raises what is wrong at once: NotReady, Unsupported
    and those of Calls.call.
    """
    alive = [about for about in execution.requests if not about.has_left()] or list(execution.requests)
    if all(about.calls is None for about in alive):
        if any(about.number for about in alive):
            raise Unsupported(TOO_DEEP)
        _vain[0] += 1
        raise NotReady(UNSERVED)
    calls, chosen = _way(alive, question)
    now = time.monotonic()
    until = min(execution.until, max(about.deadline for about in chosen), now + execution.patience_s)
    return calls.call(question, [about.number for about in chosen], until - now, told), until - now + GRACE_S


def _way(alive: Sequence[About], question: Question) -> tuple[Calls, list[About]]:
    """One connection, and the requests that came by it: first the one whose sequence goes on in the call."""
    sequence = question.sequence.id if question.sequence else None

    def rank(about: About) -> tuple[bool, float]:
        return bool(about.sequence and about.sequence.id == sequence), about.deadline

    ranked = sorted((about for about in alive if about.calls is not None), key=rank, reverse=True)
    calls = ranked[0].calls
    assert calls is not None
    return calls, [about for about in ranked if about.calls is calls]
