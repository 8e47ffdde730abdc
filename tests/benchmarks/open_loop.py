"""Open-loop load: requests at a fixed rate whatever the server does; latency counts from the moment a request was due.

A slow server therefore cannot hide behind a client that waits for it (coordinated omission).
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections import deque
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httptools
import uvloop

MAX_CONNECTIONS = 512


@dataclass
class Outcome:
    """What an open-loop run measured. offered_per_s: what was sent; answered_per_s: of those due in the measured time,
    until the last was answered; late: requests that found no free connection, or no answer within the patience.
    """

    offered_per_s: float
    answered: int = 0
    answered_per_s: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0
    late: int = 0
    errors: dict[str, int] = field(default_factory=dict)


class Pool:
    """Keep-alive connections, the requests that wait for one, and the latencies."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        self.idle: list[Line] = []
        self.waiting: deque[tuple[float, bytes]] = deque()
        self.latencies: list[float] = []
        self.since = 0.0  # what was due before is not measured
        self.last = 0.0  # when the newest answer came
        self.errors: dict[str, int] = {}
        self.open = self.busy = self.late = 0

    def send(self, due: float, request: bytes) -> None:
        if self.idle:
            self.idle.pop().send(due, request)
            return
        self.waiting.append((due, request))
        if self.open < MAX_CONNECTIONS:
            self.open += 1
            asyncio.get_running_loop().create_task(self._connect())
        else:
            self.late += 1

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: Line(self), self.host, self.port)
        except OSError:
            self.open -= 1
            self.errors["refused"] = self.errors.get("refused", 0) + 1
            if self.waiting:
                self.waiting.popleft()

    def free(self, line: Line) -> None:
        if self.waiting:
            line.send(*self.waiting.popleft())
        else:
            self.idle.append(line)


class Line(asyncio.Protocol):
    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.busy = False

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.parser = httptools.HttpResponseParser(self)
        self.pool.free(self)

    def send(self, due: float, request: bytes) -> None:
        self.due, self.busy = due, True
        self.pool.busy += 1
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        if self.due >= self.pool.since:
            self.pool.last = now = time.perf_counter()
            self.pool.latencies.append(now - self.due)
        self._done(str(self.parser.get_status_code()))
        asyncio.get_running_loop().call_soon(self.pool.free, self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.pool.open -= 1
        if self in self.pool.idle:
            self.pool.idle.remove(self)
        if self.busy:
            self._done("lost")

    def _done(self, what: str) -> None:
        self.busy = False
        self.pool.busy -= 1
        if what != "200":
            self.pool.errors[what] = self.pool.errors.get(what, 0) + 1


@dataclass(frozen=True)
class Arrivals:
    """When requests are due. warm_s: before what is measured; seed: a Poisson process of it, None for equal gaps;
    is_exact: this process spins until a request is due, because the loop's timers know whole milliseconds only: for a
    core of its own; patience_s: how long the last answers are waited for.
    """

    per_s: float
    seconds: float
    warm_s: float = 0.0
    seed: int | None = None
    is_exact: bool = False
    patience_s: float = 30.0

    def due(self) -> list[float]:
        """Seconds from the beginning."""
        total = int(self.per_s * (self.warm_s + self.seconds))
        if self.seed is None:
            return [number / self.per_s for number in range(total)]
        rng, at, found = random.Random(self.seed), 0.0, []
        for _ in range(total):
            at += rng.expovariate(self.per_s)
            found.append(at)
        return found


async def _send(pool: Pool, requests: list[bytes], due: list[float], began: float, *, is_exact: bool) -> None:
    sent = 0
    while sent < len(due):
        now = time.perf_counter() - began
        while sent < len(due) and due[sent] <= now:
            pool.send(began + due[sent], requests[sent % len(requests)])
            sent += 1
        if sent < len(due):
            await asyncio.sleep(0 if is_exact else max(0.0005, began + due[sent] - time.perf_counter()))


async def _run(url: str, requests: list[bytes], arrivals: Arrivals) -> Outcome:
    pool, due = Pool(url), arrivals.due()
    began = time.perf_counter()
    pool.since = began + arrivals.warm_s
    await _send(pool, requests, due, began, is_exact=arrivals.is_exact)
    patience = time.perf_counter() + arrivals.patience_s
    while (pool.busy or pool.waiting) and time.perf_counter() < patience:
        await asyncio.sleep(0.01)
    found = sorted(pool.latencies)

    def quantile(q: float) -> float:
        return round(1e3 * found[min(len(found) - 1, int(q * len(found)))], 3) if found else 0.0

    late = pool.late + pool.busy + len(pool.waiting)
    rate = round(len(found) / max(pool.last - pool.since, 1e-9), 1) if found else 0.0
    errors = dict(pool.errors)
    return Outcome(arrivals.per_s, len(found), rate, quantile(0.5), quantile(0.99), quantile(1.0), late, errors)


def arrive(url: str, requests: list[bytes], arrivals: Arrivals) -> Outcome:
    """Sends requests as they are due. Nobody collects garbage meanwhile: a pause here would look like one of the server."""
    gc.collect()
    gc.disable()
    try:
        return uvloop.run(_run(url, requests, arrivals))
    finally:
        gc.enable()


def offer(url: str, requests: list[bytes], per_s: float, seconds: float) -> Outcome:
    """Sends `per_s` requests a second for `seconds` and waits up to 30 s for the last answers."""
    return arrive(url, requests, Arrivals(per_s, seconds))
