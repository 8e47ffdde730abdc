"""Answers in the order in which their requests came, for versions that ask for it. Pure bookkeeping.

A request that failed or whose caller left holds nobody up: errors are told at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from inference.errors import SerinusError
from inference.runtime.work import Outcome, Ticket

Ended = tuple[Ticket, "Outcome | SerinusError"]


class Ordering:
    """Holds finished answers until all earlier requests have ended."""

    def __init__(self) -> None:
        self._line: deque[Ticket] = deque()
        self._held: dict[Ticket, Outcome | SerinusError] = {}

    def came(self, ticket: Ticket) -> None:
        self._line.append(ticket)

    def finished(self, ended: Iterable[Ended]) -> list[Ended]:
        """What may be told now that these have ended, in order."""
        self._held.update(ended)
        free: list[Ended] = []
        while self._line and (self._line[0] in self._held or self._line[0].has_ended):
            ticket = self._line.popleft()
            result = self._held.pop(ticket, None)
            if result is not None:
                free.append((ticket, result))
        return free
