"""Numbers of requests: summed per second, endpoint, version and arm, and sent to a bounded Valkey stream.

Nothing here touches the network on a request's path. While Valkey is away samples wait in a bounded buffer and the
oldest are dropped. The same sums, never reset, feed /metrics. Answers of one batch come one after the other and bear
the same times, so what is the same in a batch is counted once for all of them (`Sums.settle`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import redis.asyncio as redis
from redis.exceptions import RedisError

from inference.errors import SerinusError, ServerError
from inference.gateway.copies import Copies
from inference.protocol.messages import Answer
from inference.protocol.routes import SAMPLES_STREAM
from inference.protocol.samples import BATCH_EDGES, LATENCY_EDGES_MS, STAGE_EDGES_NS, Sample, bucket_of

STREAM_MAXLEN = 20_000
BUFFER_MAXLEN = 20_000
SEND_AT_ONCE = 500
_log = logging.getLogger(__name__)

Key = tuple[str, int, str]


class Histogram:
    """Counts by upper edges, one more for what is above, and the sum of all values."""

    __slots__ = ("counts", "edges", "total")

    def __init__(self, edges: Sequence[float]) -> None:
        self.edges = edges
        self.counts = [0] * (len(edges) + 1)
        self.total = 0

    def observe(self, value: int, times: int = 1) -> None:
        self.counts[bisect_left(self.edges, value)] += times
        self.total += value * times

    def add(self, other: Histogram) -> None:
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.total += other.total


def _stage() -> Histogram:
    return Histogram(STAGE_EDGES_NS)


@dataclass(slots=True)
class Sums:
    """Running sums of one endpoint, version and arm. queue, input, compute, output: ns that answered requests spent in
    each stage; batches: rows of the batch that each ran in.
    """

    requests: int = 0
    errors: int = 0
    retries: int = 0
    latency_ms: float = 0.0
    counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_EDGES_MS) + 1))
    error_counts: dict[str, int] = field(default_factory=dict)
    queue: Histogram = field(default_factory=_stage)
    input: Histogram = field(default_factory=_stage)
    compute: Histogram = field(default_factory=_stage)
    output: Histogram = field(default_factory=_stage)
    batches: Histogram = field(default_factory=lambda: Histogram(BATCH_EDGES))
    batch: Answer | None = None
    in_batch: int = 0
    copies: Copies = field(default_factory=Copies)

    def add(self, other: Sums) -> None:
        """Adds `other` to these."""
        other.settle()
        for name in ("requests", "errors", "retries", "latency_ms"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        for code, count in other.error_counts.items():
            self.error_counts[code] = self.error_counts.get(code, 0) + count
        self.copies.add(other.copies)
        for name in ("queue", "input", "compute", "output", "batches"):
            getattr(self, name).add(getattr(other, name))

    def begin_batch(self, answer: Answer) -> None:
        """The next answers are of this one's batch."""
        self.settle()
        self.batch = answer

    def settle(self) -> None:
        """Counts the answers of the current batch, as far as they have come."""
        if self.batch is not None and self.in_batch:
            self.input.observe(self.batch.input_ns, self.in_batch)
            self.compute.observe(self.batch.compute_ns, self.in_batch)
            self.output.observe(self.batch.output_ns, self.in_batch)
            self.batches.observe(self.batch.batch_size, self.in_batch)
        self.in_batch = 0


def _held(counts: list[int]) -> dict[int, int]:
    return {index: count for index, count in enumerate(counts) if count}


class Telemetry:
    """The numbers of one gateway process. `source` names it, a new one with every start."""

    def __init__(self, source: str = "") -> None:
        self.source = source or f"gateway-{os.getpid()}-{os.urandom(4).hex()}"
        self._open: dict[Key, Sums] = {}
        self._total: dict[Key, Sums] = {}
        self._sequence = 0
        self.waiting: deque[bytes] = deque(maxlen=BUFFER_MAXLEN)
        self.refusals: dict[tuple[str, str], int] = {}

    def answered(self, key: Key, latency_ms: float, answer: Answer, retries: int) -> None:
        """A request that a replica answered."""
        sums = self._open.get(key)
        if sums is None:
            sums = self._open[key] = Sums()
        sums.requests += 1
        sums.latency_ms += latency_ms
        sums.counts[bucket_of(latency_ms)] += 1
        batch = sums.batch
        if batch is None or batch.compute_ns != answer.compute_ns or batch.batch_size != answer.batch_size:
            sums.begin_batch(answer)
        sums.in_batch += 1
        queue_ns = answer.queue_ns
        queue = sums.queue
        queue.counts[bisect_left(STAGE_EDGES_NS, queue_ns)] += 1
        queue.total += queue_ns
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

    def copies(self, key: Key) -> Copies:
        """The sums of copied requests in the current second."""
        return self._open.setdefault(key, Sums()).copies

    def refused(self, endpoint: str, error: SerinusError) -> None:
        """A request that was turned away before it reached an endpoint's queue; `endpoint` "" where there is none."""
        key = (endpoint, error.code)
        self.refusals[key] = self.refusals.get(key, 0) + 1

    def close_bin(self, at_unix_s: int) -> None:
        """Ends the current second: its sums become samples that wait to be sent."""
        current, self._open = self._open, {}
        for key, sums in current.items():
            self._total.setdefault(key, Sums()).add(sums)
            self._sequence += 1
            self.waiting.append(msgspec.msgpack.encode(self._sample(key, sums, at_unix_s)))

    def _sample(self, key: Key, sums: Sums, at_unix_s: int) -> Sample:
        endpoint, version, arm = key
        sums.settle()
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
            queue_sum_ms=sums.queue.total / 1e6,
            compute_sum_ms=sums.compute.total / 1e6,
            batch_sum=sums.batches.total,
            latency_counts=_held(sums.counts),
            error_counts=sums.error_counts,
            input_sum_ms=sums.input.total / 1e6,
            output_sum_ms=sums.output.total / 1e6,
            batch_counts=_held(sums.batches.counts),
            **sums.copies.told(),
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
