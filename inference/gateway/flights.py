"""Requests under way, whichever door they came by, and the one timer that ends those whose time is up.

A timer per request would cost more than the rest of its bookkeeping, and nearly all of them would be cancelled
unused; so one tick every 10 ms looks at what is under way, and only while something is.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar, Protocol

from inference.errors import DeadlineExceeded, NotReady, SerinusError
from inference.protocol.messages import MAX_HOPS

if TYPE_CHECKING:
    from inference.gateway.calls import Call
    from inference.gateway.choosing import Asked
    from inference.gateway.connections import Link
    from inference.gateway.pipelines import Run
    from inference.gateway.rescue import Rescued
    from inference.gateway.table import Endpoint, Variant
    from inference.protocol.messages import Answer

TICK_S = 0.01


class Watcher(Protocol):
    """Who looks at a request's answers once its door has them, and changes nothing."""

    def part(self, flight: Flight, answer: Answer, body: memoryview) -> None: ...


class Flight(ABC):
    """One request. It ends with exactly one call of `failed`, or of `answered` with a final answer, unless it was
    abandoned. started, sent, deadline, held_until: seconds of the monotonic clock; sent: last given to a replica;
    held_until: while no replica is ready. asked: what its door knew; None for a step of a pipeline, and for others that
    stay where they were sent. rescued: what became of it before the stable version was asked. heard: when the newest
    part of a streamed answer came, 0 for none that the next one can be measured from. feedback: the id under which its
    score may come back, once it was asked for. watchers: who hears of its answers. origin: the request in whose course
    this one is made, by a pipeline or by a model's call.
    """

    __slots__ = (
        "asked", "call", "deadline", "endpoint", "feedback", "has_ended", "heard", "held_until", "is_abandoned",
        "is_invalid", "key", "lent", "link", "number", "origin", "parts", "rescued", "retries", "room", "sent", "started", "trace", "variant",
        "watchers",
    )  # fmt: skip

    is_call: ClassVar[bool] = False  # whether a model makes it

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.deadline = self.started
        self.origin: Flight | None = None
        self.endpoint: Endpoint
        self.variant: Variant
        self.call: Call
        self.key = ""
        self.link: Link | Run | None = None
        self.sent = 0.0
        self.trace: object = None  # of gateway.spans, where this request is traced
        self.number = 0
        self.retries = 0
        self.held_until = 0.0
        self.parts = 0  # answers so far
        self.room: memoryview | None = None  # lent for its answer
        self.lent: memoryview | None = None  # what it asks, where that was copied into a block of the replica's link
        self.asked: Asked | None = None
        self.rescued: Rescued | None = None
        self.heard = 0.0
        self.is_invalid = False  # a part of it, before the last
        self.feedback = ""
        self.has_ended = False
        self.is_abandoned = False
        self.watchers: tuple[Watcher, ...] = ()

    def take(self, answer: Answer, body: memoryview) -> None:
        """An answer has come: the flight is told, and then who watches it."""
        self.answered(answer, body)
        for watcher in self.watchers:
            watcher.part(self, answer, body)

    @abstractmethod
    def answered(self, answer: Answer, body: memoryview) -> None:
        """An answer has come; `DataPlane.answered` is to be called for the final one."""

    @abstractmethod
    def failed(self, error: SerinusError) -> None:
        """It has ended with `error`."""

    def chain(self) -> Iterator[Flight]:
        """This request, and those in whose course it is made."""
        found: Flight | None = self
        while found is not None:
            yield found
            found = found.origin

    @property
    def hops(self) -> int:
        """How deep calls may still go from here."""
        return MAX_HOPS if self.origin is None else MAX_HOPS - sum(one.is_call for one in self.chain())

    def remaining_s(self) -> float:
        return self.deadline - time.monotonic()


class Flights:
    """All requests under way in this process. `end` is called with each whose time is up."""

    def __init__(self, end: Callable[[Flight, SerinusError], None]) -> None:
        self._end = end
        self._flights: set[Flight] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._flights)

    def add(self, flight: Flight) -> None:
        self._flights.add(flight)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def discard(self, flight: Flight) -> None:
        self._flights.discard(flight)

    def fail_all(self, error: SerinusError) -> None:
        """Ends every request with `error`."""
        for flight in list(self._flights):
            self._end(flight, error)

    def _tick(self) -> None:
        now = time.monotonic()
        late = [flight for flight in self._flights if now >= flight.deadline]
        for flight in late:
            self._end(flight, DeadlineExceeded())
        held = [flight for flight in self._flights if flight.held_until and now >= flight.held_until]
        for flight in held:
            self._end(flight, NotReady(retry_after_s=1.0))
        # many requests: the scan is spread so that it stays below some hundredths of the time
        pause_s = max(TICK_S, len(self._flights) * 2e-6)
        self._timer = asyncio.get_running_loop().call_later(pause_s, self._tick) if self._flights else None
