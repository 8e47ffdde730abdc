"""The waiting requests, in groups that may run together. Knows no clock and runs nothing.

Rows of different non-batch shapes are never merged. Requests whose callers left stay in their place, uncounted, until
they come to the front.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from math import inf

from inference.batching.work import Arrays, Ticket


def shape_of(inputs: Arrays) -> Hashable:
    """What two requests must have in common to run together: all dimensions but the first, by name."""
    return tuple((name, inputs[name].shape[1:]) for name in sorted(inputs))


@dataclass(slots=True)
class Group:
    """Requests of one shape, oldest first."""

    rows: int = 0
    _line: deque[Ticket] = field(default_factory=deque)
    _deadlines: list[tuple[float, int, Ticket]] = field(default_factory=list)

    def add(self, ticket: Ticket) -> None:
        self.rows += ticket.rows
        self._line.append(ticket)
        if ticket.deadline < inf:
            heapq.heappush(self._deadlines, (ticket.deadline, ticket.order, ticket))

    @property
    def oldest(self) -> Ticket | None:
        while self._line and not self._line[0].is_waiting:
            self._line.popleft()
        return self._line[0] if self._line else None

    @property
    def most_urgent(self) -> Ticket | None:
        while self._deadlines and not self._deadlines[0][2].is_waiting:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][2] if self._deadlines else None

    @property
    def earliest_deadline(self) -> float:
        ticket = self.most_urgent
        return inf if ticket is None else ticket.deadline

    def drop(self, ticket: Ticket) -> None:
        ticket.is_waiting = False
        self.rows -= ticket.rows

    def take(self, max_rows: int) -> list[Ticket]:
        """The oldest requests, as many as have `max_rows` rows together; the first always, so that none starves."""
        taken: list[Ticket] = []
        room = max_rows
        while (ticket := self.oldest) is not None and (not taken or ticket.rows <= room):
            self._line.popleft()
            self.drop(ticket)
            taken.append(ticket)
            room -= ticket.rows
        return taken


class Line:
    """All groups. `count` requests wait, with `rows` rows."""

    def __init__(self) -> None:
        self._groups: dict[Hashable, Group] = {}
        self._order = 0
        self.count = 0
        self.rows = 0

    def add(self, ticket: Ticket) -> None:
        self._order += 1
        ticket.order = self._order
        self._groups.setdefault(shape_of(ticket.inputs), Group()).add(ticket)
        self.count += 1
        self.rows += ticket.rows

    def drop(self, ticket: Ticket) -> None:
        """The request waits no more. Nothing happens when it did not."""
        if ticket.is_waiting:
            self._groups[shape_of(ticket.inputs)].drop(ticket)
            self._less(ticket)

    def take(self, group: Group, max_rows: int) -> list[Ticket]:
        taken = group.take(max_rows)
        for ticket in taken:
            self._less(ticket)
        return taken

    def groups(self) -> list[tuple[Ticket, Group]]:
        """Groups with their oldest request, the longest waiting first; empty ones are forgotten."""
        found: list[tuple[Ticket, Group]] = []
        for key, group in list(self._groups.items()):
            oldest = group.oldest
            if oldest is None:
                del self._groups[key]
            else:
                found.append((oldest, group))
        return sorted(found, key=lambda pair: pair[0].order) if len(found) > 1 else found

    def expired(self, now: float) -> Iterator[Ticket]:
        """Requests whose deadline has come; each is dropped as it is given out."""
        for group in list(self._groups.values()):
            while (ticket := group.most_urgent) is not None and ticket.deadline <= now:
                group.drop(ticket)
                self._less(ticket)
                yield ticket

    def clear(self) -> list[Ticket]:
        """Everybody who waited; nobody does any more."""
        left = [ticket for _, group in self.groups() for ticket in group.take(1 << 62)]
        for ticket in left:
            self._less(ticket)
        return left

    def _less(self, ticket: Ticket) -> None:
        self.count -= 1
        self.rows -= ticket.rows
