"""Numbers of requests: summed per second, endpoint, version and arm, and sent to a bounded Valkey stream.

Nothing here touches the network on a request's path. While Valkey is away samples wait in a bounded buffer and the
oldest are dropped. The same sums, never reset, feed /metrics.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from typing import Any

import msgspec
import redis.asyncio as redis
from redis.exceptions import RedisError

from inference.errors import InvalidOutput, SerinusError, ServerError
from inference.gateway.absences import Absences
from inference.gateway.copies import Copies
from inference.gateway.sums import WAIT_EDGES_NS, Sums, held
from inference.protocol.messages import Answer
from inference.protocol.routes import SAMPLES_STREAM, USED_KEYS
from inference.protocol.samples import Sample, bucket_of

STREAM_MAXLEN = 20_000
BUFFER_MAXLEN = 20_000
SEND_AT_ONCE = 500
USED_EVERY_S = 5
# Codes of requests that were turned away or given up without having been run, as against those that failed.
REFUSALS = frozenset({
    "cancelled", "conflict", "context_length_exceeded", "deadline_exceeded", "draining", "forbidden", "invalid_input", "invalid_request",
    "malformed", "method_not_allowed", "not_found", "not_ready", "overloaded", "poison_input", "rate_limited", "rejected",
    "too_large", "unauthenticated", "unsupported", "unsupported_encoding",
})  # fmt: skip
_log = logging.getLogger(__name__)

Key = tuple[str, int, str]


class Telemetry:
    """The numbers of one gateway process. `source` names it, a new one with every start. used_keys: ids of the keys that
    were used since they were last told.
    """

    def __init__(self, source: str = "") -> None:
        self.source = source or f"gateway-{os.getpid()}-{os.urandom(4).hex()}"
        self._open: dict[Key, Sums] = {}
        self._total: dict[Key, Sums] = {}
        self._sequence = 0
        self.waiting: deque[bytes] = deque(maxlen=BUFFER_MAXLEN)
        self.refusals: dict[tuple[str, str], int] = {}
        self._absent: Absences[Key] = Absences()
        self.used_keys: set[str] = set()
        self._used_at = 0.0

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
        waits = sums.waits
        waits.counts[bisect_left(WAIT_EDGES_NS, queue_ns)] += 1
        waits.total += queue_ns
        sums.retries += retries
        if answer.is_invalid:
            sums.invalid += 1

    def failed(
        self, key: Key, latency_ms: float, error: SerinusError, retries: int, *, is_fault: bool | None = None
    ) -> None:
        """A request that ended with `error`; only a server's fault counts as an error (is_fault: whether it is one, where
        the error does not say), every code is counted.
        """
        sums = self._sums(key)
        sums.requests += 1
        sums.errors += isinstance(error, ServerError) if is_fault is None else is_fault
        sums.invalid += isinstance(error, InvalidOutput)
        sums.retries += retries
        sums.latency_ms += latency_ms
        sums.counts[bucket_of(latency_ms)] += 1
        sums.error_counts[error.code] = sums.error_counts.get(error.code, 0) + 1

    def rescued(self, key: Key) -> None:
        """A request that failed there has been answered by the stable version."""
        self._sums(key).rescued += 1

    def drawn(self, key: Key) -> None:
        """A request was assigned there by itself alone."""
        self._sums(key).drawn += 1

    def part(self, key: Key, ms: float, *, is_first: bool) -> None:
        """A part of a streamed answer: ms since its request came, or since the part before."""
        self._sums(key).part(ms, is_first=is_first)

    def invalid(self, key: Key) -> None:
        """A streamed answer holds NaN or infinity."""
        self._sums(key).invalid += 1

    def scored(self, key: Key, score: float) -> None:
        """What an answer turned out to be worth, 0..1."""
        sums = self._sums(key)
        sums.scores += 1
        sums.score_sum += score
        sums.score_sq += score * score

    def _sums(self, key: Key) -> Sums:
        found = self._open.get(key)
        if found is None:
            found = self._open[key] = Sums()
        return found

    def copies(self, key: Key) -> Copies:
        """The sums of copied requests in the current second."""
        return self._sums(key).copies

    def refused(self, endpoint: str, error: SerinusError) -> None:
        """A request that was turned away before it reached an endpoint's queue; `endpoint` "" where there is none."""
        error.is_counted = True
        key = (endpoint, error.code)
        self.refusals[key] = self.refusals.get(key, 0) + 1

    def keep(self, counted: set[tuple[str, int]], now_s: float) -> None:
        """Forgets the sums of versions that have not been among these for a while: rollouts go on for years."""
        names = {name for name, _ in counted}
        missing = {one for one in self._total if one[:2] not in counted and (one[1] or one[0] not in names)}
        for key in self._absent.over(missing, now_s):
            del self._total[key]
        kept = names.union(name for name, _, _ in self._total)
        self.refusals = {key: count for key, count in self.refusals.items() if not key[0] or key[0] in kept}

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
            queue_sum_ms=sums.waits.total / 1e6,
            compute_sum_ms=sums.compute.total / 1e6,
            batch_sum=sums.batches.total,
            latency_counts=held(sums.counts),
            error_counts=sums.error_counts,
            input_sum_ms=sums.input.total / 1e6,
            output_sum_ms=sums.output.total / 1e6,
            batch_counts=held(sums.batches.counts),
            queue_counts=sums.queue_counts,
            first_counts=sums.first,
            next_counts=sums.next,
            invalid=sums.invalid,
            rescued=sums.rescued,
            drawn=sums.drawn,
            scores=sums.scores,
            score_sum=sums.score_sum,
            score_sq=sums.score_sq,
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
        if self.used_keys and time.monotonic() - self._used_at >= USED_EVERY_S:
            told = list(self.used_keys)
            await client.sadd(USED_KEYS, *told)
            self.used_keys.difference_update(told)
            self._used_at = time.monotonic()
        while self.waiting:
            batch = [self.waiting[index] for index in range(min(SEND_AT_ONCE, len(self.waiting)))]
            async with client.pipeline(transaction=False) as pipe:
                for sample in batch:
                    pipe.xadd(SAMPLES_STREAM, {"s": sample}, maxlen=STREAM_MAXLEN, approximate=True)
                await pipe.execute()
            for _ in batch:
                if self.waiting:
                    self.waiting.popleft()
