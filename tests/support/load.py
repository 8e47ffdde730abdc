"""An open-loop client: so many requests a second, each with one recorded outcome. Bounded by its duration."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Self

import httpx


@dataclass
class Outcome:
    at_s: float
    status: int
    latency_s: float
    version: str
    text: str
    retry_after: str = ""


@dataclass
class Load:
    """Use as a context manager around a fault: requests start on the way in and have all ended on the way out.

    body: of every request, or what makes the one of a number. deadline_s: what each request asks for, 0 for nothing.
    """

    url: str
    body: Any
    key: str
    per_second: float = 50.0
    timeout_s: float = 30.0
    max_s: float = 120.0
    vary_session: bool = True
    deadline_s: float = 0.0
    outcomes: list[Outcome] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(self.timeout_s + 15)
        assert not self._thread.is_alive(), "a request never ended"

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=400, max_keepalive_connections=100)
        async with httpx.AsyncClient(timeout=self.timeout_s, limits=limits) as client:
            started, sent, tasks = time.monotonic(), 0, set()
            while not self._stop.is_set() and time.monotonic() - started < self.max_s:
                task = asyncio.create_task(self._one(client, sent))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                sent += 1
                await asyncio.sleep(max(0.0, started + sent / self.per_second - time.monotonic()))
            await asyncio.gather(*tasks)

    async def _one(self, client: httpx.AsyncClient, number: int) -> None:
        headers = {"Authorization": f"Bearer {self.key}"}
        if self.vary_session:
            headers["X-Session-Id"] = f"s{number}"
        if self.deadline_s:
            headers["X-Request-Timeout-Ms"] = str(round(self.deadline_s * 1000))
        body = self.body(number) if callable(self.body) else self.body
        at = time.monotonic()
        try:
            answer = await client.post(self.url, json=body, headers=headers)
            status, text = answer.status_code, answer.text[:300]
            version, later = answer.headers.get("X-Model-Version", ""), answer.headers.get("Retry-After", "")
        except httpx.HTTPError as error:
            status, version, text, later = 0, "", repr(error), ""
        self.outcomes.append(Outcome(at, status, time.monotonic() - at, version, text, later))

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status != 200]

    def p99_ms(self, since_s: float, until_s: float) -> float:
        """Of the requests that were sent between two times of time.monotonic(); there must be a hundred of them."""
        found = sorted(one.latency_s for one in self.outcomes if since_s <= one.at_s < until_s)
        assert len(found) >= 100, len(found)
        return found[int(0.99 * len(found))] * 1e3

    def explain(self) -> str:
        kinds: dict[str, int] = {}
        for outcome in self.failed:
            kinds[f"{outcome.status} {outcome.text[:120]}"] = kinds.get(f"{outcome.status} {outcome.text[:120]}", 0) + 1
        return f"{len(self.failed)} of {len(self.outcomes)} failed: {kinds}"
