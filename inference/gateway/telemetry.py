"""Numbers of requests: summed per second, endpoint, version and arm, and sent to a bounded Valkey stream.

Nothing here touches the network on a request's path. While Valkey is away samples wait in a bounded buffer and the
oldest are dropped. The same sums, never reset, feed /metrics.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import redis.asyncio as redis
from redis.exceptions import RedisError

from inference.errors import SerinusError, ServerError
from inference.protocol.messages import Answer
from inference.protocol.routes import SAMPLES_STREAM
from inference.protocol.samples import LATENCY_EDGES_MS, Sample, bucket_of

STREAM_MAXLEN = 20_000
BUFFER_MAXLEN = 20_000
SEND_AT_ONCE = 500
_log = logging.getLogger(__name__)

Key = tuple[str, int, str]


@dataclass(slots=True)
class Sums:
    """Running sums of one endpoint, version and arm."""

    requests: int = 0
    errors: int = 0
    retries: int = 0
    latency_ms: float = 0.0
    queue_ns: int = 0
    compute_ns: int = 0
    batches: int = 0
    counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_EDGES_MS) + 1))
    error_counts: dict[str, int] = field(default_factory=dict)

    def add(self, other: Sums) -> None:
        """Adds `other` to these."""
        for name in ("requests", "errors", "retries", "latency_ms", "queue_ns", "compute_ns", "batches"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for index, count in enumerate(other.counts):
            self.counts[index] += count
        for code, count in other.error_counts.items():
            self.error_counts[code] = self.error_counts.get(code, 0) + count


class Telemetry:
    """The numbers of one gateway process. `source` names it, a new one with every start."""

    def __init__(self, source: str = "") -> None:
        self.source = source or f"gateway-{os.getpid()}-{os.urandom(4).hex()}"
        self._open: dict[Key, Sums] = {}
        self._total: dict[Key, Sums] = {}
        self._sequence = 0
        self.waiting: deque[bytes] = deque(maxlen=BUFFER_MAXLEN)

    def answered(self, key: Key, latency_ms: float, answer: Answer, retries: int) -> None:
        """A request that a replica answered."""
        sums = self._open.get(key)
        if sums is None:
            sums = self._open[key] = Sums()
        sums.requests += 1
        sums.latency_ms += latency_ms
        sums.counts[bucket_of(latency_ms)] += 1
        sums.queue_ns += answer.queue_ns
        sums.compute_ns += answer.compute_ns
        sums.batches += answer.batch_size
        sums.retries += retries

    def failed(self, key: Key, latency_ms: float, error: SerinusError, retries: int) -> None:
        """A request that ended with `error`; only a server's fault counts as an error, every code is counted."""
        sums = self._open.setdefault(key, Sums())
        sums.requests += 1
        sums.errors += isinstance(error, ServerError)
        sums.retries += retries
        sums.latency_ms += latency_ms
        sums.counts[bucket_of(latency_ms)] += 1
        sums.error_counts[error.code] = sums.error_counts.get(error.code, 0) + 1

    def close_bin(self, at_unix_s: int) -> None:
        """Ends the current second: its sums become samples that wait to be sent."""
        current, self._open = self._open, {}
        for key, sums in current.items():
            self._total.setdefault(key, Sums()).add(sums)
            self._sequence += 1
            self.waiting.append(msgspec.msgpack.encode(self._sample(key, sums, at_unix_s)))

    def _sample(self, key: Key, sums: Sums, at_unix_s: int) -> Sample:
        endpoint, version, arm = key
        return Sample(
            source=self.source,
            sequence=self._sequence,
            at_unix_s=at_unix_s,
            endpoint=endpoint,
            version=version,
            arm=arm,
            requests=sums.requests,
            errors=sums.errors,
            retries=sums.retries,
            latency_sum_ms=sums.latency_ms,
            queue_sum_ms=sums.queue_ns / 1e6,
            compute_sum_ms=sums.compute_ns / 1e6,
            batch_sum=sums.batches,
            latency_counts={index: count for index, count in enumerate(sums.counts) if count},
            error_counts=sums.error_counts,
        )

    def totals(self) -> Iterator[tuple[Key, Sums]]:
        """Sums since the start of the process."""
        for key in self._total.keys() | self._open.keys():
            total = Sums()
            for part in (self._total.get(key), self._open.get(key)):
                if part is not None:
                    total.add(part)
            yield key, total

    async def run(self, client: redis.Redis | None) -> None:
        """Closes a bin at every second's end and sends what waits, for ever."""
        pause = 1.0
        retry_at = 0.0
        while True:
            await asyncio.sleep(1.0 - time.time() % 1.0 + 0.002)
            self.close_bin(int(time.time()) - 1)
            if client is None or time.monotonic() < retry_at:
                continue
            try:
                await self._send(client)
                pause = 1.0
            except (TimeoutError, RedisError, OSError) as error:
                _log.debug("samples wait: %s", error)
                pause = min(pause * 2, 10.0)
                retry_at = time.monotonic() + pause

    async def _send(self, client: Any) -> None:
        while self.waiting:
            batch = [self.waiting[index] for index in range(min(SEND_AT_ONCE, len(self.waiting)))]
            async with client.pipeline(transaction=False) as pipe:
                for sample in batch:
                    pipe.xadd(SAMPLES_STREAM, {"s": sample}, maxlen=STREAM_MAXLEN, approximate=True)
                await pipe.execute()
            for _ in batch:
                if self.waiting:
                    self.waiting.popleft()
