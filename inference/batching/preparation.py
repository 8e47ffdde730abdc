"""What happens to a request before it waits: its text becomes tokens, once, on a thread of its own.

So the length is known before the batch forms, and the forward pass never waits for a tokenizer. All that come while one
round runs go together in the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from inference.batching.lane import Lane
from inference.errors import ModelFailed, SerinusError
from inference.models.contract import Prepared
from inference.runtime.work import Arrays, Ticket

Prepare = Callable[[Sequence[Arrays]], Sequence[Prepared | SerinusError]]
MAX_ROUND = 64


class Preparation:
    """`ready` is called in the event loop for each ticket, prepared, or with the error that its preparing raised."""

    def __init__(
        self,
        prepare: Prepare,
        loop: asyncio.AbstractEventLoop,
        ready: Callable[[Ticket, SerinusError | None], None],
        *,
        hang_timeout_s: float,
        on_hang: Callable[[], None],
    ) -> None:
        self._prepare = prepare
        self._loop = loop
        self._ready = ready
        self._hang_timeout_s = hang_timeout_s
        self._on_hang = on_hang
        self._lane: Lane[Sequence[Prepared | SerinusError]] = Lane(loop)
        self._timer: asyncio.TimerHandle | None = None
        self.tickets: dict[Ticket, None] = {}

    def add(self, ticket: Ticket) -> None:
        self.tickets[ticket] = None
        if self._timer is None:
            self._round()

    def close(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._lane.close()

    def _round(self) -> None:
        batch = [ticket for ticket, _ in zip(self.tickets, range(MAX_ROUND), strict=False)]
        inputs = [ticket.inputs for ticket in batch]
        self._timer = self._loop.call_later(self._hang_timeout_s, self._on_hang)
        self._lane.run(lambda: self._prepare(inputs), lambda found: self._prepared(batch, found))

    def _prepared(self, batch: list[Ticket], found: Sequence[Prepared | SerinusError] | BaseException) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        results = [ModelFailed() for _ in batch] if isinstance(found, BaseException) else found
        for ticket, result in zip(batch, results, strict=True):
            if self.tickets.pop(ticket, ticket) is ticket:
                continue  # cancelled, expired or stopped meanwhile
            if isinstance(result, SerinusError):
                self._ready(ticket, result)
                continue
            ticket.inputs, ticket.length, ticket.elements = result.inputs, result.length, result.elements
            self._ready(ticket, None)
        if self.tickets:
            self._round()
