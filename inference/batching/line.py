"""The waiting requests, in groups that may run together. Knows no clock and runs nothing.

The law of the order: the lower level first; within a level, keys take turns by rows, so that one key's flood passes
nobody else's few; within a key, who came first. Rows of different non-batch shapes are never merged. Requests whose
callers left stay in their place, uncounted, until they come to the front.

Turns are start-time fair queueing (Goyal, Vin, Cheng 1996): a request's tag is the later of the level's virtual time and
the end of its key's last one. With one key the tags rise with the arrivals, so the line is only ever appended to.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf

from inference.runtime.work import Arrays, Ticket

MAX_KEYS = 4096
Pick = Callable[[Sequence[Ticket], int], list[Ticket]]


def shape_of(inputs: Arrays) -> Hashable:
    """What two requests must have in common to run together: all dimensions but the first, by name."""
    if len(inputs) == 1:
        for name, array in inputs.items():
            return (name, array.shape[1:])
    return tuple((name, inputs[name].shape[1:]) for name in sorted(inputs))


@dataclass(slots=True)
class Dues:
    """When waiting requests are due, the earliest first. Most come in order, which costs no heap."""

    _rising: deque[tuple[float, int, Ticket]] = field(default_factory=deque)
    _heap: list[tuple[float, int, Ticket]] = field(default_factory=list)

    def add(self, ticket: Ticket) -> None:
        due = ticket.due
        if due < inf:
            entry, rising = (due, ticket.order, ticket), self._rising
            if not rising or rising[-1][0] <= due:
                rising.append(entry)
            else:
                heapq.heappush(self._heap, entry)

    @property
    def first(self) -> Ticket | None:
        rising, heap = self._rising, self._heap
        while rising and not _holds(rising[0]):
            rising.popleft()
        while heap and not _holds(heap[0]):
            heapq.heappop(heap)
        if heap and (not rising or heap[0] < rising[0]):
            return heap[0][2]
        return rising[0][2] if rising else None


def _holds(entry: tuple[float, int, Ticket]) -> bool:
    return entry[2].is_waiting and entry[2].due == entry[0]


@dataclass(slots=True)
class Group:
    """Requests of one shape in the order of the law."""

    rows: int = 0
    _line: deque[Ticket] = field(default_factory=deque)
    _dues: Dues = field(default_factory=Dues)

    def add(self, ticket: Ticket) -> None:
        self.rows += ticket.rows
        line = self._line
        if not line or line[-1].rank <= ticket.rank:
            line.append(ticket)
        else:
            line.insert(bisect_right(line, ticket.rank, key=lambda one: one.rank), ticket)
        self._dues.add(ticket)

    @property
    def oldest(self) -> Ticket | None:
        """The next to be run."""
        line = self._line
        while line and not line[0].is_waiting:
            line.popleft()
        return line[0] if line else None

    @property
    def most_urgent(self) -> Ticket | None:
        return self._dues.first

    @property
    def earliest_deadline(self) -> float:
        ticket = self._dues.first
        return inf if ticket is None else ticket.due

    def rows_to_most_urgent(self) -> int:
        """The rows of the first requests up to the one that is due first; 0 where none is due ever."""
        rows, urgent = 0, self._dues.first
        for ticket in self._line if urgent else ():
            rows += ticket.rows if ticket.is_waiting else 0
            if ticket is urgent:
                break
        return rows

    def drop(self, ticket: Ticket) -> None:
        ticket.is_waiting = False
        self.rows -= ticket.rows

    def move(self, ticket: Ticket, rank: tuple[int, int, int]) -> None:
        """A waiting request takes the place of `rank`, and is due at its deadline only."""
        self._line.remove(ticket)
        self.rows -= ticket.rows
        ticket.rank, ticket.due, ticket.is_delayable = rank, ticket.deadline, False
        self.add(ticket)

    def prefix(self, sizes: Sequence[int]) -> int:
        """The largest of `sizes` that is the rows of the first requests together; 0 for none."""
        best = rows = 0
        largest = max(sizes)
        for ticket in self._line:
            if not ticket.is_waiting:
                continue
            rows += ticket.rows
            if rows > largest:
                break
            best = rows if rows in sizes else best
        return best

    def take(self, max_rows: int, pick: Pick | None = None) -> list[Ticket]:
        """The next requests, as many as have `max_rows` rows together; the first always, so that none starves."""
        if pick:
            return self._picked(pick, max_rows)
        taken: list[Ticket] = []
        line, room = self._line, max_rows
        while line:
            ticket = line[0]
            if ticket.is_waiting:
                if taken and ticket.rows > room:
                    break
                ticket.is_waiting = False
                room -= ticket.rows
                taken.append(ticket)
            line.popleft()
        self.rows -= sum([ticket.rows for ticket in taken])
        return taken

    def _picked(self, pick: Pick, max_rows: int) -> list[Ticket]:
        self._line = deque(ticket for ticket in self._line if ticket.is_waiting)
        first = self._line[0]
        taken = pick([one for one in self._line if one.rank[0] == first.rank[0]], max_rows)
        for ticket in taken:
            self.drop(ticket)
        return taken


class Line:
    """All groups. `count` requests wait, with `rows` rows. `levels`: how many there are beside level 0."""

    def __init__(self, levels: int = 0, pick: Pick | None = None) -> None:
        self._groups: dict[Hashable, Group] = {}
        self._pick = pick
        self._order = 0
        self._virtual = [0] * (levels + 2)
        self._ends: list[dict[str, int]] = [{} for _ in self._virtual]
        self._counts = [0] * (levels + 2)
        self.count = 0
        self.rows = 0

    def add(self, ticket: Ticket, level: int = 0) -> None:
        self._order = order = ticket.order = self._order + 1
        ends, tag, by = self._ends[level], self._virtual[level], ticket.key
        if (end := ends.get(by, 0)) > tag:
            tag = end
        ends[by] = tag + ticket.rows
        ticket.rank = (level, tag, order)
        ticket.due = min(ticket.due, ticket.deadline)
        ticket.group = key = shape_of(ticket.inputs)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group()
        group.add(ticket)
        self._counts[level] += 1
        self.count += 1
        self.rows += ticket.rows

    def waiting_at(self, level: int) -> int:
        return self._counts[level]

    def drop(self, ticket: Ticket) -> None:
        """The request waits no more. Nothing happens when it did not."""
        if ticket.is_waiting:
            self._groups[ticket.group].drop(ticket)
            self._less(ticket)

    def take(self, group: Group, max_rows: int) -> list[Ticket]:
        waiting_rows = group.rows
        taken = group.take(max_rows, self._pick)
        self.count -= len(taken)
        self.rows -= waiting_rows - group.rows
        counts, virtual = self._counts, self._virtual
        for ticket in taken:
            level, tag, _ = ticket.rank
            counts[level] -= 1
            virtual[level] = max(virtual[level], tag)
        for emptied in {ticket.rank[0] for ticket in taken}:
            self._forget(emptied)
        return taken

    def groups(self) -> list[tuple[Ticket, Group]]:
        """Groups with their next request, the first of them first; empty ones are forgotten."""
        found: list[tuple[Ticket, Group]] = []
        for key, group in list(self._groups.items()):
            oldest = group.oldest
            if oldest is not None:
                found.append((oldest, group))
            elif len(self._groups) > 1:
                del self._groups[key]
        return sorted(found, key=lambda pair: pair[0].rank) if len(found) > 1 else found

    def expired(self, now: float) -> Iterator[Ticket]:
        """Requests that may wait no longer; each is dropped as it is given out. Delayable ones go to the end instead."""
        for group in list(self._groups.values()):
            while (ticket := group.most_urgent) is not None and ticket.due <= now:
                if ticket.is_delayable and ticket.deadline > now:
                    self._delay(group, ticket)
                    continue
                group.drop(ticket)
                self._less(ticket)
                yield ticket

    def clear(self) -> list[Ticket]:
        """Everybody who waited; nobody does any more."""
        left = [ticket for _, group in self.groups() for ticket in group.take(1 << 62)]
        for ticket in left:
            self._less(ticket)
        return left

    def _delay(self, group: Group, ticket: Ticket) -> None:
        last = len(self._counts) - 1
        self._counts[ticket.rank[0]] -= 1
        self._counts[last] += 1
        self._order += 1
        group.move(ticket, (last, 0, self._order))

    def _less(self, ticket: Ticket) -> None:
        level = ticket.rank[0]
        self._counts[level] -= 1
        self.count -= 1
        self.rows -= ticket.rows
        self._forget(level)

    def _forget(self, level: int) -> None:
        # Turns matter among those who wait; whoever has nothing here starts afresh.
        if not self._counts[level]:
            self._virtual[level] = 0
            self._ends[level].clear()
        if len(self._ends[level]) <= MAX_KEYS:
            return
        virtual = self._virtual[level]
        kept = {key: end for key, end in self._ends[level].items() if end > virtual}
        self._ends[level] = kept if len(kept) < MAX_KEYS // 2 else {}
