"""The batches on their way, each on a lane of its own: who runs, since when, until when, and that each ends only once.

The law: a lane has one pass at a time. A pass that was given up (its process is about to end) answers nobody any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf

from inference.batching.bounds import RunBatch
from inference.batching.lane import Lane
from inference.runtime.runner import Ran
from inference.runtime.work import Arrays, Ticket

Finished = Callable[["Pass", "Ran | BaseException"], None]


@dataclass(slots=True, eq=False)
class Pass:
    """A batch that runs on `lane`. due: the earliest deadline in it; timer: rings when the pass hangs, None for one in
    the event loop, which would not hear it (an alarm of the kernel's stands guard there, see replica/alarm.py).
    """

    lane: int
    batch: list[Ticket]
    rows: int
    began: float
    due: float
    timer: asyncio.TimerHandle | None = field(repr=False)

    def unwatch(self) -> None:
        """It does not hang any more."""
        if self.timer:
            self.timer.cancel()


class Passes:
    """`rows` rows of `count` requests run; `idle`: the lanes that are free.

    `finished` is called in the event loop for each pass that ends; `hung` with its lane for one that takes longer than
    hang_timeout_s.
    """

    def __init__(
        self,
        runs: Sequence[RunBatch],
        loop: asyncio.AbstractEventLoop,
        finished: Finished,
        *,
        hang_timeout_s: float,
        hung: Callable[[int], None],
    ) -> None:
        self._runs, self._loop, self._finished = runs, loop, finished
        self._hang_timeout_s, self._hung = hang_timeout_s, hung
        self._lanes: list[Lane[Ran]] = [Lane(loop) for _ in runs]
        self._by_lane: dict[int, Pass] = {}
        self.lanes = len(runs)
        self.idle = list(range(len(runs)))
        self.rows = self.count = 0

    def start(self, batch: list[Ticket], rows: int, now: float, *, is_inline: bool) -> None:
        """Runs the batch, of `rows` rows, on a free lane; is_inline: in the event loop itself, in its next turn."""
        lane = self.idle.pop()
        due = min([ticket.deadline for ticket in batch])
        timer = None if is_inline else self._loop.call_later(self._hang_timeout_s, self._hung, lane)
        one = Pass(lane, batch, rows, now, due, timer)
        self._by_lane[lane] = one
        self.rows += rows
        self.count += len(batch)
        inputs, run = [ticket.inputs for ticket in batch], self._runs[lane]
        if is_inline:
            self._loop.call_soon(self._run_inline, one, run, inputs)
        else:
            self._lanes[lane].run(partial(run, inputs), partial(self._ended, one))

    def tickets(self, lane: int | None = None) -> list[Ticket]:
        """Who runs, on that lane or on any."""
        passes = self._by_lane.values() if lane is None else [self._by_lane[lane]]
        return [ticket for one in passes for ticket in one.batch]

    def late(self, now: float) -> list[Ticket]:
        """Who runs and is past their deadline; each is given out once."""
        found: list[Ticket] = []
        for one in self._by_lane.values():
            if one.due <= now:
                found += [ticket for ticket in one.batch if ticket.deadline <= now]
                one.due = min((ticket.deadline for ticket in one.batch if ticket.deadline > now), default=inf)
        return found

    @property
    def due(self) -> float:
        """The earliest deadline of those who run and are not late yet; inf without any."""
        return min((one.due for one in self._by_lane.values()), default=inf)

    def stop(self) -> None:
        """No further passes; what runs may finish."""
        for one in self._by_lane.values():
            one.unwatch()
        for lane in self._lanes:
            lane.close()

    def _run_inline(self, one: Pass, run: RunBatch, inputs: list[Arrays]) -> None:
        ran: Ran | BaseException
        try:
            ran = run(inputs)
        except BaseException as error:  # noqa: BLE001 (as in a lane: whatever it is, its callers get a typed error)
            ran = error
        self._ended(one, ran)

    def _ended(self, one: Pass, ran: Ran | BaseException) -> None:
        if self._by_lane.get(one.lane) is not one:
            return  # it was given up before
        one.unwatch()
        del self._by_lane[one.lane]
        self.idle.append(one.lane)
        self.rows -= one.rows
        self.count -= len(one.batch)
        self._finished(one, ran)
