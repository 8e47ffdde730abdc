"""A slice of a batch: up to SLICE_LINES lines, or SLICE_S seconds of starting them, in one short Celery task.

The law by which nothing is lost or written twice is in jobs.slices; how many lines are on the way at once, in jobs.pace.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections.abc import Callable
from itertools import islice

from channels.db import database_sync_to_async
from django.conf import settings
from django.db import InterfaceError, OperationalError
from django.db.models.functions import Now

from endpoints.publish import token_secret
from jobs import journal, leases, lines, rights, store
from jobs.asking import Asker, Broken, Outcome, Record, Refused
from jobs.leases import Held, Progress
from jobs.limits import LEASE_S, LINE_TRIES, MAX_INFLIGHT, SLICE_LINES, SLICE_S, TICK_S
from jobs.lines import Line
from jobs.pace import FIRST_WINDOW, Pace
from jobs.slices import LeaseLost, prefix
from jobs.statuses import Status

SLICE_BYTES = 16 << 20
IDLE_S = 1.0  # a pause longer than this ends the slice
RETRY_S = 0.5
LEAVE_S = 3.0  # what is on the way when the worker is told to stop
REVOKED = {
    "code": "access_revoked",
    "message": "Whoever made this batch may no longer call the endpoints.",
    "line": None,
    "param": None,
}
log = logging.getLogger(__name__)


def run_slice(held: Held, is_stopping: Callable[[], bool]) -> float:
    """Runs the next lines and commits what is done; answers for how many seconds the batch shall rest.

    1. May its maker still call anything? 2. Reads the slice. 3. Adopts what older journals hold of it. 4. Asks, commits
    every tick. Raises LeaseLost, StorageFull, Conflict when it was cancelled meanwhile.
    """
    batch = held.batch
    reach = rights.reach(batch)
    if reach is None:
        leases.move(held, Status.CANCELLING, cancelling_at=Now(), errors=[REVOKED])
        return 0.0
    todo = _read(held)
    asker = Asker(batch, url=settings.GATEWAY_URL, secret=token_secret(), reach=reach)
    pace = Pace(most=MAX_INFLIGHT, window=batch.window or FIRST_WINDOW, rate_per_s=rights.rate_per_s(batch))
    with journal.Journal(batch.public_id, held.fence) as written:
        running = Slice(held, todo, asker=asker, pace=pace, written=written, is_stopping=is_stopping)
        running.adopt()
        return asyncio.run(running.run())


def _read(held: Held) -> list[Line]:
    batch, found, size = held.batch, [], 0
    source = lines.read(store.path_of(batch.input_file_name), number=batch.cursor, offset=batch.offset)
    for line in islice(source, min(SLICE_LINES, batch.total - batch.cursor)):
        found.append(line)
        size += len(line.data)
        if size > SLICE_BYTES:
            break
    return found


class Slice:
    """The state of one slice. waiting: (not before, line) of those not on the way; done: line -> is it an answer."""

    def __init__(
        self,
        held: Held,
        todo: list[Line],
        *,
        asker: Asker,
        pace: Pace,
        written: journal.Journal,
        is_stopping: Callable[[], bool],
    ) -> None:
        self._held, self._asker, self._pace, self._journal, self._is_stopping = held, asker, pace, written, is_stopping
        self._lines = {line.number: line for line in todo}
        self._waiting = [(0.0, line.number) for line in todo]
        self._cursor = held.batch.cursor
        self._done: dict[int, bool] = {}
        self._tries: dict[int, int] = {}
        self._inflight: dict[asyncio.Task[Outcome], int] = {}
        self._began = self._renewed = time.monotonic()
        self._status: str = Status.IN_PROGRESS
        self._left_at: float | None = None

    def adopt(self) -> None:
        """Takes over what killed holders had written of this slice."""
        batch, last = self._held.batch, self._cursor + len(self._lines)
        for line, ok, data in journal.adoptable(batch.public_id, self._held.fence, self._cursor, last):
            self._write(line, Record(data, ok))
        self._waiting = [(at, line) for at, line in self._waiting if line not in self._done]

    def _write(self, line: int, record: Record) -> None:
        self._journal.append(line, record.data.rstrip(b"\n"), ok=record.ok)
        self._done[line] = record.ok

    async def run(self) -> float:
        """Answers for how many seconds the batch shall rest. Raises LeaseLost, StorageFull."""
        next_tick = time.monotonic() + TICK_S
        try:
            while self._goes_on():
                self._start()
                await self._wait(next_tick)
                if time.monotonic() >= next_tick:
                    await self._tick()
                    next_tick = time.monotonic() + TICK_S
        finally:
            await self._give_up()
        await self._tick()
        return self._pace.wait_s(time.monotonic()) if self._waiting else 0.0

    def _goes_on(self) -> bool:
        now = time.monotonic()
        if self._status != Status.IN_PROGRESS or now - self._began >= self._held.left_s:
            return False
        if self._is_stopping():
            self._left_at = self._left_at or now
        if self._left_at is not None and now - self._left_at >= LEAVE_S:
            return False
        return bool(self._inflight) or (self._may_start(now) and self._pace.wait_s(now) <= IDLE_S)

    def _may_start(self, now: float) -> bool:
        return bool(self._waiting) and self._left_at is None and now - self._began < SLICE_S

    def _start(self) -> None:
        now = time.monotonic()
        while self._may_start(now) and self._waiting[0][0] <= now and self._pace.may_start(now, len(self._inflight)):
            _, line = heapq.heappop(self._waiting)
            self._pace.started(now)
            self._inflight[asyncio.create_task(self._asker.ask(self._lines[line]))] = line

    async def _wait(self, next_tick: float) -> None:
        """Until something is answered, something may start, or the next tick."""
        now = time.monotonic()
        wait = next_tick - now
        if self._may_start(now) and len(self._inflight) < int(self._pace.window):
            wait = min(wait, max(self._pace.wait_s(now), self._waiting[0][0] - now))
        wait = max(0.005, wait)
        if not self._inflight:
            await asyncio.sleep(wait)
            return
        finished, _ = await asyncio.wait(self._inflight, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
        for task in finished:
            self._take(self._inflight.pop(task), task.result())

    def _take(self, line: int, outcome: Outcome) -> None:
        now = time.monotonic()
        if isinstance(outcome, Refused):
            self._pace.refused(now, outcome.retry_after_s)
            heapq.heappush(self._waiting, (0.0, line))
            return
        if isinstance(outcome, Broken):
            tries = self._tries[line] = self._tries.get(line, 0) + 1
            if tries < LINE_TRIES:
                heapq.heappush(self._waiting, (now + RETRY_S * 2**tries, line))
                return
            outcome = outcome.last
        else:
            self._pace.answered()
        self._write(line, outcome)

    async def _tick(self) -> None:
        """The journal to the disk, then the commit. A database that is away is waited for, as long as the lease lasts.

        Raises LeaseLost, StorageFull.
        """
        await asyncio.to_thread(self._journal.sync)
        count = prefix(self._done, self._cursor)
        fresh = range(self._cursor, self._cursor + count)
        offset = self._lines[fresh[-1]].end if count else 0
        failed = sum(not self._done[line] for line in fresh)
        progress = Progress(self._cursor, count, failed, offset, self._pace.window)
        asked = time.monotonic()
        try:
            self._status = await database_sync_to_async(leases.commit, thread_sensitive=False)(self._held, progress)
        except (OperationalError, InterfaceError) as error:
            if asked - self._renewed > LEASE_S:
                raise LeaseLost from error
            log.warning("the database does not answer: %s commits later", self._held.batch)
            return
        self._renewed = asked
        self._cursor += count
        for line in fresh:
            del self._done[line], self._lines[line]

    async def _give_up(self) -> None:
        """Closes the connections of what is on the way, so that the gateway stops it, too."""
        for task in self._inflight:
            task.cancel()
        await asyncio.gather(*self._inflight, return_exceptions=True)
        self._waiting += [(0.0, line) for line in self._inflight.values()]
        self._inflight.clear()
        await self._asker.close()
