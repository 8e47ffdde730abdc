"""Answers a request that was answered before from memory: an executor around another one.

The law: equal inputs, wanted outputs and parameters get the first one's outputs, byte for byte, without a pass. What is
kept never exceeds its bytes; the least recently asked goes first. Only whole, faultless answers are kept.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from inference.batching.counts import nanoseconds
from inference.errors import SerinusError
from inference.protocol.statistics import ModelStatistics
from inference.runtime.work import Arrays, Executor, Outcome, Reply, Scalar, Ticket

KEY_BYTES = 32
ENTRY_BYTES = 512  # what an entry costs beside its arrays


class Store:
    """Answers by key, the least recently used dropped first. Pure."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[bytes, tuple[Arrays, int, Mapping[str, Scalar]]] = OrderedDict()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes) -> Arrays | None:
        found = self._kept.get(key)
        if found is None:
            return None
        self._kept.move_to_end(key)
        return found[0]

    def told(self, key: bytes) -> Mapping[str, Scalar]:
        """What a kept answer said beside its outputs."""
        return self._kept[key][2]

    def put(self, key: bytes, outputs: Arrays, told: Mapping[str, Scalar] | None = None) -> None:
        """Keeps a copy, unless it is larger than everything that may be kept."""
        size = ENTRY_BYTES + sum(_size(array) for array in outputs.values())
        if size > self._max_bytes or key in self._kept:
            return
        while self.size_bytes + size > self._max_bytes:
            _, (_, freed, _) = self._kept.popitem(last=False)
            self.size_bytes -= freed
        self._kept[key] = ({name: _frozen(array) for name, array in outputs.items()}, size, dict(told or {}))
        self.size_bytes += size


def key_of(inputs: Arrays, wanted: Sequence[str], parameters: Mapping[str, Scalar]) -> bytes:
    """A digest of everything that an answer depends on. Lengths go in too, so that no two requests run together."""
    digest = blake2b(digest_size=KEY_BYTES)

    def add(part: Any) -> None:
        view = memoryview(part)
        digest.update(view.nbytes.to_bytes(8, "little"))
        digest.update(view)

    digest.update(len(inputs).to_bytes(8, "little"))
    for name in sorted(inputs):
        array = inputs[name]
        add(name.encode())
        add(f"{array.dtype.str}{array.shape}".encode())
        if array.dtype == object:
            for item in array.ravel():
                add(item.encode() if isinstance(item, str) else item)
        else:
            add(np.ascontiguousarray(array).reshape(-1).view("u1"))
    add("\0".join(sorted(wanted)).encode())
    for name, value in sorted(parameters.items()):
        add(name.encode())
        add(f"{type(value).__name__} {value!r}".encode())
    return digest.digest()


class Cached:
    """`inner` with a cache of up to `max_bytes` before it. Statistics are `inner`'s, with the cache's counts in them."""

    def __init__(self, inner: Executor, max_bytes: int) -> None:
        self._inner = inner
        self._store = Store(max_bytes)
        self._loop = asyncio.get_running_loop()
        self._hits: set[Ticket] = set()
        self._closed = False

    @property
    def statistics(self) -> ModelStatistics:
        return self._inner.statistics

    @property
    def queue_depth(self) -> int:
        return self._inner.queue_depth

    @property
    def in_flight(self) -> int:
        return self._inner.in_flight + len(self._hits)

    def submit(self, ticket: Ticket) -> None:
        """Answers from memory in the next turn of the loop, or hands on. Raises what `inner` raises."""
        began = time.perf_counter_ns()
        key = key_of(ticket.inputs, ticket.outputs, ticket.parameters)
        found = None if self._closed else self._store.get(key)
        took_ns = time.perf_counter_ns() - began
        if found is not None:
            self._hits.add(ticket)
            self._loop.call_soon(self._answer, ticket, found, self._store.told(key), took_ns)
            return
        ticket.reply = self._keeping(key, took_ns, ticket.reply)
        self._inner.submit(ticket)

    def cancel(self, ticket: Ticket) -> None:
        if ticket in self._hits:
            self._hits.discard(ticket)
            ticket.has_ended = True
        else:
            self._inner.cancel(ticket)

    def pause(self, ticket: Ticket) -> None:
        self._inner.pause(ticket)

    def resume(self, ticket: Ticket) -> None:
        self._inner.resume(ticket)

    def close(self, reason: SerinusError | None = None) -> None:
        self._closed = True
        self._inner.close(reason)

    async def drained(self, timeout_s: float) -> bool:
        await asyncio.sleep(0)  # hits are answered in the next turn
        return await self._inner.drained(timeout_s)

    def stop(self) -> None:
        self._inner.stop()

    def _answer(self, ticket: Ticket, outputs: Arrays, told: Mapping[str, Scalar], took_ns: int) -> None:
        if ticket not in self._hits:
            return
        self._hits.discard(ticket)
        ticket.is_waiting = False
        sums = self.statistics
        total_ns = nanoseconds(time.monotonic() - ticket.arrived_at)
        sums.inference_count += ticket.rows
        sums.success.add(total_ns)
        sums.queue.add(max(0, total_ns - took_ns))
        sums.cache_hit.add(took_ns)
        sums.last_inference_ms = int(time.time() * 1e3)
        waited_ns = max(0, total_ns - took_ns)
        ticket.end(Outcome(dict(outputs), ticket.rows, waited_ns, 0, is_cached=True, parameters=told))

    def _keeping(self, key: bytes, took_ns: int, reply: Reply) -> Reply:
        def replied(ticket: Ticket, result: Outcome | SerinusError, final: bool) -> None:
            if isinstance(result, Outcome):
                began = time.perf_counter_ns()
                if final and not result.is_invalid:
                    self._store.put(key, result.outputs, result.parameters)
                self.statistics.cache_miss.add(took_ns + time.perf_counter_ns() - began)
            reply(ticket, result, final)

        return replied


def _size(array: np.ndarray[Any, Any]) -> int:
    if array.dtype != object:
        return array.nbytes
    return array.nbytes + sum(len(item) + 64 for item in array.ravel())


def _frozen(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    kept = array.copy()
    kept.flags.writeable = False
    return kept
