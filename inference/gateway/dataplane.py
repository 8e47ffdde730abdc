"""The one handler behind every door: who calls, which variant, which replica, one retry, what is counted.

A door reads its own wire format into a Call with the reader it passes in, and writes the Done it gets back.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from inference.errors import Draining, NotFound, NotReady, ReplicaLost, SerinusError, ServerError
from inference.gateway import pipelines
from inference.gateway.admission import Caller, admit_caller
from inference.gateway.calls import Call
from inference.gateway.connections import Link, Pool, Reply
from inference.gateway.deadlines import Deadlines, Ticket
from inference.gateway.router import choose_variant, less_busy
from inference.gateway.steps import Steps
from inference.gateway.table import Endpoint, Table, Variant
from inference.gateway.telemetry import Telemetry
from inference.protocol.messages import Answer
from inference.protocol.oip import Signature

HOLD_S = 10.0
RETRY_AFTER_S = 1.0

Reader = Callable[[str, Signature], Call]


@dataclass(slots=True)
class Done:
    """An answered call: what was asked, who answered, the answer and its tensors' bytes."""

    call: Call
    variant: Variant
    answer: Answer
    body: memoryview


class DataPlane:
    """Everything a gateway process knows and counts."""

    def __init__(self, table: Table, pool: Pool, telemetry: Telemetry, *, insecure: bool = False) -> None:
        self.table = table
        self.pool = pool
        self.telemetry = telemetry
        self.insecure = insecure
        self.deadlines = Deadlines()
        self.draining = False
        self._steps = Steps(table, pool, telemetry)
        self._random = random.Random()  # noqa: S311 (spreads load, guards nothing)

    def admit(self, name: str, credential: str) -> tuple[Caller, Endpoint]:
        """The caller and the endpoint. Raises Unauthenticated, Forbidden or NotFound, in this order."""
        snapshot = self.table.now
        endpoint = snapshot.endpoints.get(name)
        route = endpoint.route if endpoint is not None else None
        caller = admit_caller(snapshot.keys, credential, name, route, insecure=self.insecure)
        if endpoint is None:
            raise NotFound(f"Request for unknown model: '{name}' is not found")
        return caller, endpoint

    def choose(self, endpoint: Endpoint, version: int | None, sticky: str) -> Variant:
        """The variant that answers this caller. Raises NotFound for a pin without replica, NotReady without weight."""
        if version is not None:
            return endpoint.pinned(version)
        route = choose_variant(endpoint.route.variants, endpoint.route.salt, sticky)
        if route is None:
            raise NotReady(retry_after_s=RETRY_AFTER_S)
        return endpoint.variants[route.version]

    async def infer(
        self, endpoint: Endpoint, version: int | None, sticky: str, reader: Reader, *, ticket: Ticket, timeout_ms: int
    ) -> Done:
        """Runs one request; raises only errors of inference.errors.

        1. takes a place in the endpoint's queue, 2. chooses the variant, 3. reads the call against its signature,
        4. sets the deadline, 5. has a replica answer it, 6. counts it.
        """
        queue = endpoint.queue
        key = (endpoint.route.name, 0, "")
        retries = 0
        queue.enter(endpoint.route.queue_limit)
        try:
            variant = self.choose(endpoint, version, sticky)
            key = (endpoint.route.name, variant.route.version, variant.route.arm)
            call = reader(endpoint.route.name, variant.route.signature)
            _set_deadline(ticket, endpoint, call, timeout_ms)
            while True:
                try:
                    answer, body = await self._answer(endpoint, variant, call, ticket)
                    break
                except (ReplicaLost, Draining):
                    # once elsewhere, or on the same replica when it is back; never after a second loss
                    if variant.plan is not None or retries or not queue.retries.take():
                        raise
                    retries = 1
            latency_ms = (time.monotonic() - ticket.started) * 1e3
            self.telemetry.answered(key, latency_ms, answer, retries)
            return Done(call, variant, answer, body)
        except SerinusError as error:
            self.telemetry.failed(key, (time.monotonic() - ticket.started) * 1e3, error, retries)
            raise
        except Exception:
            self.telemetry.failed(key, (time.monotonic() - ticket.started) * 1e3, ServerError(), retries)
            raise
        finally:
            queue.leave()

    def _answer(self, endpoint: Endpoint, variant: Variant, call: Call, ticket: Ticket) -> Awaitable[Reply]:
        if variant.plan is None:
            return self._attempt(endpoint, variant, call, ticket)
        return pipelines.run(variant.plan, call, ticket, partial(self._steps.run, endpoint, variant))

    async def _attempt(self, endpoint: Endpoint, variant: Variant, call: Call, ticket: Ticket) -> Reply:
        link = self._pick(variant) or await self._hold(endpoint, variant, ticket)
        if ticket.error is not None:
            raise ticket.error
        number, future = link.send(call, max(1, int(ticket.remaining() * 1e3)))
        ticket.waiting = future
        try:
            return await future
        except SerinusError:
            link.forget(number)  # only if it is still under way there: a deadline, or a caller who left
            raise
        except asyncio.CancelledError:
            link.forget(number)
            raise

    def _pick(self, variant: Variant) -> Link | None:
        ready = [link for link in variant.links if link.ready]
        if len(ready) < 2:
            return ready[0] if ready else None
        return less_busy(ready, self._random.random(), self._random.random())

    async def _hold(self, endpoint: Endpoint, variant: Variant, ticket: Ticket) -> Link:
        """Waits until a replica of this version is ready, ten seconds at most.

        Raises NotReady after that, or what the ticket ends with.
        """
        name, version = endpoint.route.name, variant.route.version
        until = time.monotonic() + HOLD_S
        while (left := until - time.monotonic()) > 0:
            future = ticket.waiting = self.pool.waiter()
            try:
                if ticket.error is not None:
                    raise ticket.error
                await asyncio.wait((future,), timeout=left)
                if future.done():
                    future.result()
            finally:
                self.pool.leave(future)
            current = self.table.now.endpoints.get(name)
            known = current.variants.get(version) if current is not None else None
            if known is None:
                break
            link = self._pick(known)
            if link is not None:
                return link
        raise NotReady(retry_after_s=RETRY_AFTER_S)


def _set_deadline(ticket: Ticket, endpoint: Endpoint, call: Call, timeout_ms: int) -> None:
    """The shortest of what the endpoint allows, the door was told and the request's own parameter says."""
    limit_ms = float(endpoint.route.timeout_ms)
    if timeout_ms:
        limit_ms = min(limit_ms, timeout_ms)
    if call.timeout_us:
        limit_ms = min(limit_ms, call.timeout_us / 1e3)
    ticket.deadline = ticket.started + limit_ms / 1e3
