"""One timer for all requests: it fails what is past its deadline and notices callers who left.

A timer per request would cost more than the rest of its bookkeeping, and nearly all of them would be cancelled
unused; so one tick every 10 ms looks at what is under way, and only while something is. Callers are watched for
leaving from their second tick on: a quick answer never pays for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from inference.errors import Cancelled, DeadlineExceeded, SerinusError

TICK_S = 0.01
WATCH_AFTER_S = 0.02

Left = Callable[[], Awaitable[Any]]


class Ticket:
    """A request under way. `waiting` is the future it waits on; failing that future fails the request.

    Before that, while it reads its body, `reader` is its task, which is cancelled instead.
    """

    __slots__ = ("deadline", "error", "left", "reader", "started", "waiting", "watcher")

    def __init__(self, started: float, deadline: float, left: Left | None) -> None:
        self.reader: asyncio.Task[Any] | None = None
        self.started = started
        self.deadline = deadline
        self.left = left
        self.waiting: asyncio.Future[Any] | None = None
        self.watcher: asyncio.Task[None] | None = None
        self.error: SerinusError | None = None

    def fail(self, error: SerinusError) -> None:
        """Ends the request with `error`, now or as soon as it waits for something."""
        self.error = error
        if self.waiting is not None:
            if not self.waiting.done():
                self.waiting.set_exception(error)
        elif self.reader is not None:
            self.reader.cancel()
            self.reader = None

    def remaining(self) -> float:
        return self.deadline - time.monotonic()


class Deadlines:
    """All requests under way in this process."""

    def __init__(self) -> None:
        self._tickets: set[Ticket] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._tickets)

    def open(self, timeout_s: float, left: Left | None = None) -> Ticket:
        """A ticket that ends in `timeout_s` seconds, or when the ASGI receive `left` says that its caller is gone."""
        now = time.monotonic()
        ticket = Ticket(now, now + timeout_s, left)
        self._tickets.add(ticket)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)
        return ticket

    def close(self, ticket: Ticket) -> None:
        self._tickets.discard(ticket)
        ticket.waiting = None
        if ticket.watcher is not None:
            ticket.watcher.cancel()

    def fail_all(self, error: SerinusError) -> None:
        """Ends every request with `error`."""
        for ticket in self._tickets:
            ticket.fail(error)

    def _tick(self) -> None:
        now = time.monotonic()
        for ticket in self._tickets:
            if now >= ticket.deadline:
                ticket.fail(DeadlineExceeded())
            elif ticket.watcher is None and ticket.waiting and ticket.left and now - ticket.started > WATCH_AFTER_S:
                ticket.watcher = asyncio.ensure_future(_watch(ticket, ticket.left))
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(TICK_S, self._tick) if self._tickets else None


async def _watch(ticket: Ticket, left: Left) -> None:
    # an ASGI receive: what is left of a body may come before the news that the caller has gone
    while (await left())["type"] != "http.disconnect":
        pass
    ticket.fail(Cancelled())
