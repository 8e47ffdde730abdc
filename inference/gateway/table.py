"""The routing table in this process: swapped by one assignment, never back a generation, and the last good one kept.

Valkey announces a new table and is asked twice a second besides; while it is away, empty or talks nonsense, requests
go on with the table in memory. The last table lies in the data folder (0600), so that a gateway started while Valkey
is dead serves too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from inference.errors import NotFound
from inference.gateway.admission import Keys, Limiter, Queue
from inference.gateway.connections import Link, Pool
from inference.gateway.pipelines import Plan, Step
from inference.gateway.plain import PlainForm, form_of
from inference.gateway.router import newest
from inference.gateway.steering import Rules
from inference.protocol import files, routes
from inference.protocol.routes import WEIGHT_TOTAL_BP, EndpointRoute, RoutingTable, VariantRoute

POLL_S = 0.5
NO_BOUND = 1 << 30
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Variant:
    """A version behind an endpoint, with its links, the key of its sums and what its answers carry; `lines` are the
    headers as they stand in an answer, `plain` the form of its plain requests. A pipeline has a plan and no links.
    others: the same under other arms, see `counted`.
    """

    route: VariantRoute
    links: list[Link]
    version: str
    key: tuple[str, int, str]
    headers: list[tuple[bytes, bytes]]
    lines: bytes
    plain: PlainForm | None
    plan: Plan | None = None
    others: dict[str, Variant] = field(default_factory=dict, compare=False)

    def counted(self, arm: str) -> Variant:
        """The same, whose requests are counted under `arm` (unless it is "") instead of its role in the split."""
        if not arm or arm == self.key[2]:
            return self
        found = self.others.get(arm)
        if found is None:
            name, version, _ = self.key
            found = self.others[arm] = replace(self, key=(name, version, arm))
        return found

    @property
    def apart(self) -> str:
        """The arm under which it is counted, "" where that is its role in the split."""
        return self.key[2] if self.key[2] != self.route.arm else ""

    @property
    def is_routed(self) -> bool:
        """Whether there is a replica for it, ready or not; for every step of a pipeline."""
        return self.plan.is_routed if self.plan is not None else bool(self.links)

    @property
    def is_ready(self) -> bool:
        return self.plan.is_ready if self.plan is not None else any(link.ready for link in self.links)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """only: the variant that has all the traffic, if one has it whatever a request says and whoever is ready. stable,
    candidate, rules: of the rollout that steers this endpoint; None without one.
    """

    route: EndpointRoute
    variants: dict[int, Variant]
    queue: Queue
    only: Variant | None
    stable: Variant | None = None
    candidate: Variant | None = None
    rules: Rules | None = None

    @property
    def is_watched(self) -> bool:
        """Whether some of its requests are copied or kept."""
        steering = self.route.steering
        return self.route.recording is not None or (steering is not None and steering.mirror_bp > 0)

    def pinned(self, version: int) -> Variant:
        """The variant of that version. Raises NotFound when there is none with a replica."""
        found = self.variants.get(version)
        if found is None or not found.is_routed:
            there = ", ".join(str(number) for number, one in sorted(self.variants.items()) if one.is_routed)
            raise NotFound(
                f"Request for unknown model: '{self.route.name}' version {version} is not at ready state or not found"
                f"{f'. Served are: {there}' if there else ''}"
            )
        return found


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One generation of the table, ready for use. generation -1: there is none yet. steps: of pipelines, by
    ENDPOINT/VERSION/STEP, which no client can name.
    """

    generation: int
    endpoints: dict[str, Endpoint]
    keys: Keys
    steps: dict[str, Endpoint] = field(default_factory=dict)

    def counted(self) -> set[tuple[str, int]]:
        """Names and versions that requests are counted under."""
        every = (*self.endpoints.values(), *self.steps.values())
        return {one.key[:2] for endpoint in every for one in endpoint.variants.values()}

    def known(self, name: str) -> Endpoint | None:
        return self.endpoints.get(name) or self.steps.get(name)


class Table:
    """Holds the current Snapshot under `now`."""

    def __init__(self, pool: Pool, path: Path, used_keys: set[str] | None = None) -> None:
        self._used_keys = used_keys
        self.now = Snapshot(-1, {}, Keys(RoutingTable(generation=-1)))
        self._pool = pool
        self._path = path
        self._queues: dict[str, Queue] = {}
        self._limiters: dict[str, Limiter] = {}
        self._unsaved: bytes | None = None
        self._saved = asyncio.Event()
        self.changed: list[Callable[[], None]] = [pool.changed]

    def accept(self, data: bytes) -> bool:
        """Takes the table in `data` if it is newer than what is in force; answers whether it was taken."""
        try:
            table = routes.decode(data)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            _log.error("routing table cannot be read, the old one stays: %s", error)
            return False
        if table.generation <= self.now.generation:
            return False
        self.now = self._build(table)
        self._unsaved = data
        self._saved.set()
        for call in self.changed:
            call()
        _log.info("routing table generation %s with %s endpoints", table.generation, len(table.endpoints))
        return True

    def _build(self, table: RoutingTable) -> Snapshot:
        held = [
            held for e in table.endpoints for v in e.variants for held in (v, *(v.pipeline.steps if v.pipeline else ()))
        ]
        wanted = {replica for one in held for replica in newest(one.replicas)}
        endpoints = {endpoint.name: self._endpoint(endpoint) for endpoint in table.endpoints}
        snapshot = Snapshot(
            table.generation,
            endpoints,
            Keys(table, limiters=self._limiters, used=self._used_keys),
            _steps_of(endpoints),
        )
        self._pool.keep(wanted)
        for name in self._queues.keys() - snapshot.endpoints.keys() - snapshot.steps.keys():
            del self._queues[name]
        return snapshot

    def _endpoint(self, route: EndpointRoute) -> Endpoint:
        variants = {variant.version: self._variant(route, variant) for variant in route.variants}
        weighted = [variant for variant in variants.values() if variant.route.weight_bp]
        only = weighted[0] if len(weighted) == 1 else None
        queue, steering = self._queues.setdefault(route.name, Queue()), route.steering
        if steering is None:
            return Endpoint(route, variants, queue, only)
        stable, candidate = variants.get(steering.stable), variants.get(steering.candidate)
        rules = Rules(steering, route.salt) if steering.match else None
        if rules is not None or only is candidate:
            only = None
        return Endpoint(route, variants, queue, only, stable, candidate, rules)

    def _variant(self, endpoint: EndpointRoute, route: VariantRoute) -> Variant:
        number = str(route.version)
        headers = [
            (b"x-model-version", number.encode()),
            (b"x-rollout-arm", route.arm.encode("ascii", "replace")),
        ]
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        return Variant(
            route,
            [self._pool.link(replica) for replica in newest(route.replicas)],
            number,
            (counted_as(endpoint.name), route.version, route.arm),
            headers,
            lines,
            form_of(route.signature, endpoint.name, number, lines),
            self._plan(endpoint, route) if route.pipeline is not None else None,
        )

    def _plan(self, endpoint: EndpointRoute, route: VariantRoute) -> Plan:
        assert route.pipeline is not None
        steps = []
        for step in route.pipeline.steps:
            own = VariantRoute(route.version, route.arm, WEIGHT_TOTAL_BP, step.signature, step.replicas, step.settings)
            hidden = EndpointRoute(
                name=f"{endpoint.name}/{route.version}/{step.name}",
                model=step.model,
                salt="",
                public=False,
                timeout_ms=endpoint.timeout_ms,
                queue_limit=step.max_inflight or NO_BOUND,
                variants=[own],
                team=endpoint.team,
            )
            steps.append(Step(step, self._endpoint(hidden)))
        return Plan(steps, [output.name for output in route.signature.outputs])

    def load(self) -> None:
        """Takes the table on disk, if there is one."""
        try:
            data = self._path.read_bytes()
        except OSError:
            return
        self.accept(data)

    async def run(self, client: redis.Redis | None) -> None:
        """Follows Valkey and keeps the last table on disk, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep())
            if client is not None:
                group.create_task(self._follow(client))

    async def _keep(self) -> None:
        while True:
            await self._saved.wait()
            self._saved.clear()
            data, self._unsaved = self._unsaved, None
            if data is not None:
                await asyncio.to_thread(self._write, data)

    def _write(self, data: bytes) -> None:
        try:
            files.put(self._path, data, durable=True)
        except OSError:
            _log.exception("the routing table could not be written to disk")

    async def _follow(self, client: redis.Redis) -> None:
        pause = 0.1
        while True:
            try:
                async with client.pubsub() as announced:
                    await announced.subscribe(routes.TABLE_CHANNEL)
                    await self._listen(client, announced)
            except (TimeoutError, RedisError, OSError) as error:
                _log.warning("no routing table from Valkey, the one in memory stays: %s", type(error).__name__)
            pause = min(pause * 2, 2.0)
            with contextlib.suppress(RedisError, OSError, asyncio.TimeoutError):
                await self._poll(client)
                pause = 0.1
            await asyncio.sleep(pause)

    async def _listen(self, client: redis.Redis, announced: Any) -> None:
        last = b""
        while True:
            data = await client.get(routes.TABLE_KEY)
            if data and data != last:
                last = _bytes(data)
                self.accept(last)
            await announced.get_message(ignore_subscribe_messages=False, timeout=POLL_S)

    async def _poll(self, client: redis.Redis) -> None:
        data = await client.get(routes.TABLE_KEY)
        if data:
            self.accept(_bytes(data))


def _steps_of(endpoints: dict[str, Endpoint]) -> dict[str, Endpoint]:
    plans = [v.plan for endpoint in endpoints.values() for v in endpoint.variants.values() if v.plan is not None]
    return {step.endpoint.route.name: step.endpoint for plan in plans for step in plan.steps}


def counted_as(name: str) -> str:
    """The name under which sums are kept: an endpoint's own, ENDPOINT/STEP for a step of any version."""
    parts = name.split("/")
    return name if len(parts) == 1 else f"{parts[0]}/{parts[-1]}"


def connect(url: str, *, retries: int = 0) -> redis.Redis | None:
    """A client that never holds anybody up for long; None without a URL. retries: 1 for who may find a connection that a
    Valkey which is gone since has left behind, and cannot ask again later.
    """
    if not url:
        return None
    client: redis.Redis = redis.Redis.from_url(
        url.replace("redis+socket://", "unix://", 1),
        socket_connect_timeout=1.0,
        socket_timeout=2.0,
        retry=Retry(NoBackoff(), retries),
    )
    return client


def _bytes(data: bytes | str) -> bytes:
    return data if isinstance(data, bytes) else data.encode()
