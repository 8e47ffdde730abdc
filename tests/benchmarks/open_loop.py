"""Open-loop load: requests at a fixed rate whatever the server does; latency counts from the moment a request was due.

A slow server therefore cannot hide behind a client that waits for it (coordinated omission).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httptools
import uvloop

MAX_CONNECTIONS = 512


@dataclass
class Outcome:
    """What an open-loop run measured. offered_per_s: what was sent; late: requests that found no free connection."""

    offered_per_s: float
    answered: int = 0
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
        self.pool.free(self)

    def send(self, due: float, request: bytes) -> None:
        self.due, self.busy = due, True
        self.pool.busy += 1
        self.parser = httptools.HttpResponseParser(self)
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.pool.latencies.append(time.perf_counter() - self.due)
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


async def _run(url: str, requests: list[bytes], per_s: float, seconds: float) -> Outcome:
    pool = Pool(url)
    began, sent, total = time.perf_counter(), 0, int(per_s * seconds)
    while sent < total:
        now = time.perf_counter()
        while sent < total and began + sent / per_s <= now:
            pool.send(began + sent / per_s, requests[sent % len(requests)])
            sent += 1
        await asyncio.sleep(max(0.0005, began + sent / per_s - time.perf_counter()))
    patience = time.perf_counter() + 30
    while (pool.busy or pool.waiting) and time.perf_counter() < patience:
        await asyncio.sleep(0.01)
    found = sorted(pool.latencies)

    def quantile(q: float) -> float:
        return round(1e3 * found[min(len(found) - 1, int(q * len(found)))], 1) if found else 0.0

    return Outcome(
        per_s, len(found), quantile(0.5), quantile(0.99), quantile(1.0), pool.late + pool.busy, dict(pool.errors)
    )


def offer(url: str, requests: list[bytes], per_s: float, seconds: float) -> Outcome:
    """Sends `per_s` requests a second for `seconds` and waits up to 30 s for the last answers."""
    return uvloop.run(_run(url, requests, per_s, seconds))
