"""Which sequences are open, where each stands, and which of their requests run next. Pure: it is told the time.

The laws: a sequence has one request under way at most, and its requests run in the order in which they came. It begins
with a START request and ends with END, by standing idle, or when a START did not run. A place (a batch slot of one
instance, for the direct strategy) belongs to one sequence at a time; who finds none waits, oldest first.

Triton's sequence batcher has the same two strategies; the words follow it.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from math import ceil, inf
from typing import Any, Generic, TypeVar

T = TypeVar("T")
SequenceId = Hashable
ANY = -1


@dataclass(frozen=True, slots=True)
class SlotRules:
    """is_direct: places are slots of instances; else there are `max_candidates` places and any instance runs anybody.

    A batch waits up to `delay_s` for `min_ready` of an instance's slots (direct), or for one of the `preferred` sizes.
    """

    is_direct: bool
    instances: int
    max_batch_size: int
    max_candidates: int
    max_idle_s: float
    delay_s: float = 0.0
    preferred: tuple[int, ...] = ()
    min_utilization: float = 0.0

    @property
    def min_ready(self) -> int:
        return max(1, ceil(self.min_utilization * self.max_batch_size))


@dataclass(slots=True, eq=False)
class Step(Generic[T]):
    """One request of a sequence. kind: requests of different kinds never share a batch; of: what the caller knows it by."""

    of: T
    id: SequenceId
    start: bool
    end: bool
    deadline: float = inf
    kind: Hashable = None
    order: int = 0
    sequence: OpenSequence[T] | None = None

    @property
    def is_waiting(self) -> bool:
        return self.sequence is not None


@dataclass(slots=True, eq=False)
class OpenSequence(Generic[T]):
    """A sequence from its START on. memory: whatever its caller keeps for it; dropped with it.

    place: (instance, slot), (ANY, 0) for the oldest strategy, None in the backlog. is_cut: what comes next must START.
    """

    id: SequenceId
    line: deque[Step[T]] = field(default_factory=deque)
    running: Step[T] | None = None
    place: tuple[int, int] | None = None
    is_cut: bool = False
    memory: Any = None


@dataclass(frozen=True, slots=True)
class Batch(Generic[T]):
    """What runs now on `instance`: each sequence's oldest request."""

    instance: int
    sequences: list[OpenSequence[T]]
    steps: list[Step[T]]


class Sequences(Generic[T]):
    """All sequences of one replica."""

    def __init__(self, rules: SlotRules) -> None:
        self._rules = rules
        self._order = 0
        self._reset()

    def _reset(self) -> None:
        rules = self._rules
        self._by_id: dict[SequenceId, OpenSequence[T]] = {}
        self._backlog: OrderedDict[SequenceId, OpenSequence[T]] = OrderedDict()
        self._idle: OrderedDict[OpenSequence[T], float] = OrderedDict()
        self._ready: dict[tuple[int, Hashable], OrderedDict[OpenSequence[T], float]] = {}
        self._slots: list[list[OpenSequence[T] | None]] = [
            [None] * rules.max_batch_size for _ in range(rules.instances if rules.is_direct else 0)
        ]
        self._placed = 0
        self._deadlines: list[tuple[float, int, Step[T]]] = []
        self.waiting = 0

    @property
    def open(self) -> int:
        """Sequences that hold a place."""
        return self._placed

    def knows(self, name: SequenceId) -> bool:
        """Whether a request without START would be taken."""
        sequence = self._by_id.get(name)
        return sequence is not None and not sequence.is_cut

    # What happens to requests

    def add(self, step: Step[T], now: float) -> None:
        """Takes a request in; one without START only where `knows` says so."""
        assert step.start or self.knows(step.id)
        self._order += 1
        step.order = self._order
        sequence = self._by_id.get(step.id)
        if sequence is None:
            sequence = self._by_id[step.id] = self._backlog[step.id] = OpenSequence(step.id)
        sequence.line.append(step)
        sequence.is_cut = step.end
        step.sequence = sequence
        self.waiting += 1
        if step.deadline < inf:
            heapq.heappush(self._deadlines, (step.deadline, step.order, step))
        self._admit(now)
        self._offer(sequence, now)

    def drop(self, step: Step[T], now: float) -> list[Step[T]]:
        """`step` waits no more and will not run. Returns the waiting requests that lost their START by this."""
        sequence = step.sequence
        if sequence is None:
            return []
        at = sequence.line.index(step)
        orphans = self._cut(sequence, at + 1) if step.start else []
        del sequence.line[at]
        for gone in (step, *orphans):
            self._forget(gone)
        if at == 0:
            self._withdraw(sequence)
        self._settle(sequence, now)
        return orphans

    def late(self, now: float) -> list[Step[T]]:
        """Waiting requests whose deadline has come; the caller drops each, which may take later ones of them along."""
        found = []
        while self._deadlines and (self._deadlines[0][0] <= now or not self._deadlines[0][2].is_waiting):
            _, _, step = heapq.heappop(self._deadlines)
            if step.is_waiting:
                found.append(step)
        return found

    def finished(self, sequence: OpenSequence[T], now: float, *, ran: bool, is_broken: bool = False) -> list[Step[T]]:
        """The request under way is over. Returns the waiting requests that lost their START by this.

        ran: it changed the sequence; one that did not and bore START ends it. is_broken: nobody knows the state now.
        """
        step, sequence.running = sequence.running, None
        assert step is not None
        orphans: list[Step[T]] = []
        if is_broken or (step.start and not ran):
            orphans = self._cut(sequence, 0)
            for orphan in orphans:
                self._forget(orphan)
            self._close(sequence, now)
        elif step.end:
            self._close(sequence, now)
        else:
            self._settle(sequence, now)
        return orphans

    def expire_idle(self, now: float) -> list[SequenceId]:
        """Ends the sequences that stood idle too long."""
        ended = []
        while self._idle:
            sequence, since = next(iter(self._idle.items()))
            if now - since < self._rules.max_idle_s:
                break
            ended.append(sequence.id)
            self._close(sequence, now)
        return ended

    def clear(self) -> list[Step[T]]:
        """Everybody who waited; nothing is open any more."""
        left = sorted((step for s in self._by_id.values() for step in s.line), key=lambda step: step.order)
        for step in left:
            self._forget(step)
        self._reset()
        return left

    # What runs next

    def next_batch(self, instance: int, now: float, step_s: float = 0.0) -> Batch[T] | float:
        """A batch for a free instance, or when to ask again (infinity: when something changes).

        step_s: how long a pass takes, so that no waiting request is held past a deadline that can be met.
        """
        groups = [
            (next(iter(ready.values())), key, ready)
            for key, ready in self._ready.items()
            if key[0] in (ANY, instance) and ready
        ]
        wake_at = inf
        for oldest_at, _, ready in sorted(groups, key=lambda group: group[0]):
            count = self._releasable(len(ready), now - oldest_at)
            if not count:
                urgent_at = min(sequence.line[0].deadline for sequence in ready) - step_s
                if urgent_at <= now:
                    count = min(len(ready), self._rules.max_batch_size)
                wake_at = min(wake_at, oldest_at + self._rules.delay_s, urgent_at)
            if count:
                return self._take(instance, ready, count)
        return wake_at

    def wake_at(self) -> float:
        """When the next deadline or idle time comes."""
        while self._deadlines and not self._deadlines[0][2].is_waiting:
            heapq.heappop(self._deadlines)
        deadline = self._deadlines[0][0] if self._deadlines else inf
        idle = next(iter(self._idle.values())) + self._rules.max_idle_s if self._idle else inf
        return min(deadline, idle)

    def slots(self, instance: int) -> list[OpenSequence[T] | None]:
        """Who owns which batch slot of an instance (direct strategy)."""
        return list(self._slots[instance])

    def _releasable(self, ready: int, age_s: float) -> int:
        rules = self._rules
        largest = min(ready, rules.max_batch_size)
        if ready >= rules.max_batch_size or age_s >= rules.delay_s:
            return largest
        if rules.is_direct:
            return largest if ready >= rules.min_ready else 0
        return max((size for size in rules.preferred if size <= largest), default=0)

    def _take(self, instance: int, ready: OrderedDict[OpenSequence[T], float], count: int) -> Batch[T]:
        batch: Batch[T] = Batch(instance, [], [])
        for _ in range(count):
            sequence, _ = ready.popitem(last=False)
            step = sequence.line.popleft()
            self._forget(step)
            sequence.running = step
            batch.sequences.append(sequence)
            batch.steps.append(step)
        self._ready = {key: group for key, group in self._ready.items() if group}
        return batch

    # Places

    def _admit(self, now: float) -> None:
        while self._backlog and (place := self._free_place()) is not None:
            _, sequence = self._backlog.popitem(last=False)
            sequence.place = place
            self._placed += 1
            if self._rules.is_direct:
                self._slots[place[0]][place[1]] = sequence
            self._offer(sequence, now)

    def _free_place(self) -> tuple[int, int] | None:
        if self._placed >= self._rules.max_candidates:
            return None
        if not self._rules.is_direct:
            return (ANY, 0)
        free = [(slots.count(None), -at) for at, slots in enumerate(self._slots)]
        count, at = max(free)  # the emptiest instance, the first of equals
        return (-at, self._slots[-at].index(None)) if count else None

    def _offer(self, sequence: OpenSequence[T], now: float) -> None:
        """Makes the sequence's oldest request a candidate, if it has a place and nothing under way."""
        if sequence.place is None or sequence.running is not None:
            return
        if not sequence.line:
            self._idle.setdefault(sequence, now)
            return
        self._idle.pop(sequence, None)
        key = (sequence.place[0], sequence.line[0].kind)
        self._ready.setdefault(key, OrderedDict()).setdefault(sequence, now)

    def _withdraw(self, sequence: OpenSequence[T]) -> None:
        self._idle.pop(sequence, None)
        for ready in self._ready.values():
            ready.pop(sequence, None)

    def _settle(self, sequence: OpenSequence[T], now: float) -> None:
        """After a change of its line: it is a candidate, idle, or over."""
        is_spent = sequence.running is None and not sequence.line
        if is_spent and (sequence.is_cut or sequence.place is None):
            self._close(sequence, now)
        else:
            self._offer(sequence, now)

    def _close(self, sequence: OpenSequence[T], now: float) -> None:
        """Frees its place. Requests that wait behind its END begin a new sequence, at the end of the backlog."""
        self._withdraw(sequence)
        self._backlog.pop(sequence.id, None)
        del self._by_id[sequence.id]
        if sequence.place is not None:
            self._placed -= 1
            if self._rules.is_direct:
                self._slots[sequence.place[0]][sequence.place[1]] = None
        sequence.place, sequence.memory = None, None
        if sequence.line:
            again: OpenSequence[T] = OpenSequence(sequence.id, sequence.line, is_cut=sequence.is_cut)
            for step in again.line:
                step.sequence = again
            sequence.line = deque()
            self._by_id[again.id] = self._backlog[again.id] = again
        self._admit(now)

    def _cut(self, sequence: OpenSequence[T], at: int) -> list[Step[T]]:
        """Takes the waiting requests from `at` up to the next START out of the line."""
        orphans = []
        while at < len(sequence.line) and not sequence.line[at].start:
            orphans.append(sequence.line[at])
            del sequence.line[at]
        if at == len(sequence.line):
            sequence.is_cut = True
        return orphans

    def _forget(self, step: Step[T]) -> None:
        step.sequence = None
        self.waiting -= 1
