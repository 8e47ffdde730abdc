"""One step of a pipeline, as a request of its own: the less busy of two replicas, one retry, held while none is ready.

Whoever waits cancels it (inference.gateway.pipelines does, when its ticket ends): then the replica is told. A step is
counted as ENDPOINT/STEP, so that its times can be read like an endpoint's.
"""

from __future__ import annotations

import asyncio
import random
import time

from inference.errors import Draining, NotReady, ReplicaLost, SerinusError, ServerError
from inference.gateway.calls import Call
from inference.gateway.connections import Link, Pool, Reply
from inference.gateway.deadlines import Ticket
from inference.gateway.pipelines import Step
from inference.gateway.router import less_busy
from inference.gateway.table import Endpoint, Table, Variant
from inference.gateway.telemetry import Key, Telemetry

HOLD_S = 10.0
RETRY_AFTER_S = 1.0


class Steps:
    """Answers the calls of pipelines' steps."""

    def __init__(self, table: Table, pool: Pool, telemetry: Telemetry) -> None:
        self._table = table
        self._pool = pool
        self._telemetry = telemetry
        self._random = random.Random()  # noqa: S311 (spreads load, guards nothing)

    async def run(self, endpoint: Endpoint, variant: Variant, step: Step, call: Call, ticket: Ticket) -> Reply:
        """Raises errors of inference.errors only, or CancelledError."""
        route = variant.route
        key: Key = (f"{endpoint.route.name}/{step.route.name}", route.version, route.arm)
        began, retries = time.monotonic(), 0
        try:
            while True:
                try:
                    reply = await self._attempt(endpoint, variant, step, call, ticket)
                    break
                except (ReplicaLost, Draining):
                    if retries or not step.queue.retries.take():
                        raise
                    retries = 1
        except SerinusError as error:
            self._telemetry.failed(key, (time.monotonic() - began) * 1e3, error, retries)
            raise
        except Exception:
            self._telemetry.failed(key, (time.monotonic() - began) * 1e3, ServerError(), retries)
            raise
        self._telemetry.answered(key, (time.monotonic() - began) * 1e3, reply[0], retries)
        return reply

    async def _attempt(self, endpoint: Endpoint, variant: Variant, step: Step, call: Call, ticket: Ticket) -> Reply:
        link = self._pick(step) or await self._hold(endpoint, variant, step)
        number, future = link.send(call, max(1, int(ticket.remaining() * 1e3)))
        try:
            return await future
        except (SerinusError, asyncio.CancelledError):
            link.forget(number)  # only if it is still under way there
            raise

    def _pick(self, step: Step) -> Link | None:
        ready = [link for link in step.links if link.ready]
        if len(ready) < 2:
            return ready[0] if ready else None
        return less_busy(ready, self._random.random(), self._random.random())

    async def _hold(self, endpoint: Endpoint, variant: Variant, step: Step) -> Link:
        """Waits until a replica of this step's version is ready, ten seconds at most. Raises NotReady after that."""
        until = time.monotonic() + HOLD_S
        while (left := until - time.monotonic()) > 0:
            future = self._pool.waiter()
            try:
                await asyncio.wait((future,), timeout=left)
            finally:
                self._pool.leave(future)
            known = self._known(endpoint.route.name, variant.route.version, step)
            if known is None:
                break
            link = self._pick(known)
            if link is not None:
                return link
        raise NotReady(retry_after_s=RETRY_AFTER_S)

    def _known(self, name: str, version: int, step: Step) -> Step | None:
        """The step as the newest table has it."""
        endpoint = self._table.now.endpoints.get(name)
        variant = endpoint.variants.get(version) if endpoint is not None else None
        plan = variant.plan if variant is not None else None
        return next((one for one in plan.steps if one.route.name == step.route.name), None) if plan else None
