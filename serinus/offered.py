"""Load on an endpoint from this process: a closed loop of connections, or Poisson arrivals at a rate. Keep-alive HTTP."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

from serinus.autotune import Load

ANSWER_TIMEOUT_S = 30.0
WARM_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go, and what they are."""

    url: str
    path: str
    key: str
    bodies: list[bytes]

    def requests(self) -> list[bytes]:
        host = urlsplit(self.url).netloc
        head = f"POST {self.path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {self.key}\r\nContent-Type: application/json\r\n"
        return [f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in self.bodies]


@dataclass(slots=True)
class Seen:
    latencies: list[float] = field(default_factory=list)
    errors: int = 0


async def closed(target: Target, connections: int, seconds: float) -> Load:
    """Each of `connections` sends its next request when its answer has come."""
    seen, requests, loop = Seen(), target.requests(), asyncio.get_running_loop()
    start = loop.time() + WARM_SHARE * seconds
    end = start + seconds

    async def client(number: int) -> None:
        async with _Connection(target.url) as connection:
            turn = number
            while loop.time() < end:
                turn += 1
                began = loop.time()
                is_good = await connection.ask(requests[turn % len(requests)])
                if began >= start:
                    _note(seen, loop.time() - began, is_good=is_good)

    await asyncio.gather(*(client(number) for number in range(connections)))
    return _load(seen, loop.time() - start)


async def steady(target: Target, rate: float, connections: int, seconds: float, *, seed: int = 1) -> Load:
    """Poisson arrivals at `rate` a second over at most `connections`; a request that finds none free waits, and that
    waiting is part of its latency.
    """
    seen, requests, loop = Seen(), target.requests(), asyncio.get_running_loop()
    due: asyncio.Queue[float] = asyncio.Queue()
    rng, began = random.Random(seed), loop.time()  # noqa: S311 (arrivals, no secret)

    async def client(number: int) -> None:
        async with _Connection(target.url) as connection:
            turn = number
            while (at := await due.get()) >= 0:
                turn += 1
                is_good = await connection.ask(requests[turn % len(requests)])
                _note(seen, loop.time() - at, is_good=is_good)

    clients = [asyncio.ensure_future(client(number)) for number in range(connections)]
    at = began
    while (at := at + rng.expovariate(rate)) < began + seconds:
        await asyncio.sleep(max(0.0, at - loop.time()))
        due.put_nowait(at)
    for _ in clients:
        due.put_nowait(-1.0)
    await asyncio.gather(*clients)
    return _load(seen, loop.time() - began, rate=rate)


class _Connection:
    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._drop()

    async def ask(self, request: bytes) -> bool:
        """Whether it was answered with 200. A connection that broke is opened anew for the next."""
        try:
            return await asyncio.wait_for(self._ask(request), ANSWER_TIMEOUT_S)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
            self._drop()
            return False

    async def _ask(self, request: bytes) -> bool:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0]) if b"content-length:" in head else 0
        await self._reader.readexactly(length)
        if b"connection: close" in head:
            self._drop()
        return head.startswith(b"http/1.1 200")

    def _drop(self) -> None:
        if self._writer:
            self._writer.close()
        self._writer = None


def _note(seen: Seen, latency_s: float, *, is_good: bool) -> None:
    if is_good:
        seen.latencies.append(latency_s)
    else:
        seen.errors += 1


def _load(seen: Seen, took_s: float, *, rate: float = 0.0) -> Load:
    ordered = sorted(seen.latencies) or [0.0]
    return Load(
        round(len(seen.latencies) / max(took_s, 1e-9), 1),
        _at(ordered, 0.5),
        _at(ordered, 0.99),
        seen.errors,
        round(rate, 1),
    )


def _at(ordered: list[float], share: float) -> float:
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3, 3)


def play(target: Target, *, connections: int, seconds: float, share: float) -> tuple[Load, Load]:
    """As fast as possible, then at `share` of that rate."""
    fast = asyncio.run(closed(target, connections, seconds))
    time.sleep(0.2)
    rate = max(1.0, share * fast.requests_per_s)
    return fast, asyncio.run(steady(target, rate, connections, seconds))
