"""Connections to replicas: one per replica, many requests in flight on it, kept up for as long as it is routed to.

A link connects by itself and again after every loss; it is ready from the replica's Hello to its Goodbye or loss.
Whatever was in flight when a connection breaks fails with ReplicaLost at once: whether to retry is the caller's
decision. A replica that is silent for three pings, a second apart, counts as lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable

import msgspec

from inference.errors import ReplicaLost, SerinusError
from inference.gateway.flights import Flight
from inference.gateway.lending import LEAST_BYTES, Budget, Lender, number_of
from inference.gateway.replica_wire import Wire
from inference.protocol import frames
from inference.protocol.blocks import Block
from inference.protocol.messages import (
    Answer,
    Ask,
    CallModel,
    Cancel,
    Hello,
    Infer,
    Pause,
    Ping,
    Resume,
    Return,
    Steer,
)
from inference.protocol.routes import ReplicaRoute
from inference.protocol.statistics import ModelStatistics

PING_S = 1.0
MISSES = 3
HELLO_S = 60.0
BACKOFF_S = (0.02, 1.0)
RETIRE_S = 60.0
LAST_WORDS_S = 1.0
SMALL_BYTES = 64 << 10

_log = logging.getLogger(__name__)


class Link:
    """The way to one replica. `ready` says whether a request may be sent; `in_flight` how many are under way.

    The pool is told of every request that ends with an error here, or is lost with its connection.
    """

    def __init__(self, route: ReplicaRoute, pool: Pool) -> None:
        self.route = route
        self.ready = False
        self.draining = False  # it said goodbye: open sequences may still go there
        self.last: ModelStatistics | None = None  # what it told of itself before it left
        self.is_retired = False
        self._pool = pool
        self._wire: Wire | None = None
        self._ids = 0
        self.lender = Lender(pool.budget, self._offer, lambda number: self._tell(Return(number)))
        self._task: asyncio.Task[None] | None = asyncio.ensure_future(self._keep_up())

    @property
    def in_flight(self) -> int:
        return len(self._wire.pending) if self._wire is not None else 0

    def send(self, flight: Flight, timeout_ms: int) -> None:
        """Sends the flight's call; its answers come to the flight. Raises ReplicaLost when there is no connection."""
        wire = self._wire
        if wire is None or not (self.ready or self.draining):
            raise ReplicaLost(retry_after_s=1.0)
        call = flight.call
        self._ids = number = self._ids + 1
        size = block = at = 0
        for part in call.body:
            size += len(part)
        if size > SMALL_BYTES:
            block, at = self.lender.place(call.body)
            if not block and size >= LEAST_BYTES:
                flight.lent = self.lender.copied(call.body, size)
                block, at = self.lender.place((flight.lent,)) if flight.lent is not None else (0, 0)
        room = flight.room = self.lender.room() if self.lender.room_bytes else None
        head = frames.encode_head(
            Infer(
                number, timeout_ms, call.tensors, call.outputs, call.parameters, call.priority, call.timeout_us,
                call.sequence, call.traceparent, flight.key, block, at, 0 if room is None else number_of(room),
                call.tracestate, call.id, flight.hops,
            ),
            0 if block else size,
        )  # fmt: skip
        if block:
            wire.send(head)
        elif size <= SMALL_BYTES:
            wire.send(b"".join((head, *call.body)))
        else:
            wire.send(head, *call.body)
            if size >= LEAST_BYTES:
                self.lender.prepare(call.body, size)
        flight.link, flight.number = self, number
        wire.pending[number] = flight

    def forget(self, flight: Flight) -> None:
        """The caller no longer waits: the replica is told, its answer will be dropped."""
        wire = self._wire
        if wire is not None and wire.pending.pop(flight.number, None) is not None:
            self._tell(Cancel(flight.number))
            self.give_up(flight)
            if wire.calls:
                self._pool.on_left(wire, flight)

    def give_up(self, flight: Flight) -> None:
        """Nobody knows whether the replica still reads this flight's tensors: no block that they lie in is used again."""
        self.lender.give_up(flight.call.body)
        if flight.lent is not None:
            self.lender.give_up((flight.lent,))
            flight.lent = None

    def pause(self, flight: Flight) -> None:
        """The reader of this streaming request is slow."""
        flight.heard = 0.0  # the next part waits for its reader, not for the model
        self._tell(Pause(flight.number))

    def resume(self, flight: Flight) -> None:
        self._tell(Resume(flight.number))

    async def statistics(self, timeout_s: float) -> ModelStatistics:
        """What the replica did so far. Raises ReplicaLost or TimeoutError."""
        if not self.ready:
            raise ReplicaLost
        return await self._ask(timeout_s)

    async def _ask(self, timeout_s: float) -> ModelStatistics:
        wire = self._wire
        if wire is None:
            raise ReplicaLost
        self._ids = number = self._ids + 1
        future = wire.asked[number] = asyncio.get_running_loop().create_future()
        try:
            wire.send(frames.encode(Ask(number)))
            return await asyncio.wait_for(future, timeout_s)
        finally:
            wire.asked.pop(number, None)

    def _tell(self, message: msgspec.Struct) -> None:
        if self._wire is not None:
            with contextlib.suppress(ReplicaLost):
                self._wire.send(frames.encode(message))

    def ping(self) -> None:
        """One beat of the heart: to be called once in PING_S."""
        wire = self._wire
        if wire is None or not (self.ready or wire.pending):
            return
        if wire.unanswered >= MISSES:
            _log.warning("replica %s is silent: connection dropped", self.route.id)
            wire.close()
            return
        wire.unanswered += 1
        self._tell(Ping(wire.unanswered))

    def is_on(self, wire: Wire) -> bool:
        """Whether this is the connection that stands."""
        return wire is self._wire

    def memory(self, size: int, offset: int) -> memoryview | None:
        """Where a body that will be sent here may be received, so that the replica reads it there; see Lender.take."""
        return self.lender.take(size, offset) if self.ready else None

    def _offer(self, block: Block) -> None:
        if self._wire is not None:
            self._wire.offer(block)

    def failed(self, flight: Flight, error: SerinusError) -> None:
        self._pool.on_failed(flight, error)

    def called(self, wire: Wire, message: CallModel | Steer, body: memoryview) -> None:
        """The replica's model calls another one, or steers such a call."""
        self._pool.on_call(wire, message, body)

    def part(self, flight: Flight, answer: Answer) -> None:
        """One of several answers has come."""
        self._pool.on_part(flight, answer)

    def greeted(self, wire: Wire, hello: Hello) -> None:
        if hello.replica != self.route.id or hello.generation < self.route.generation:
            _log.warning("replica %s generation %s was replaced: not used", hello.replica, hello.generation)
            wire.close()
            return
        wire.greeted = True
        self.lender.is_open = hello.takes_blocks and self.route.address.startswith("unix:")
        if wire is self._wire and self._task is not None:
            self.ready = True
            self._pool.changed()

    def leaving(self, wire: Wire) -> None:
        if wire is self._wire:
            self.draining, self.ready = self.ready, False

    def unready(self, wire: Wire) -> None:
        if wire.calls:
            self._pool.on_left(wire, None)
        if wire is self._wire:
            self.ready = self.draining = False
            self.lender.lost()
            self._pool.on_lost(self.route.id)

    async def retire(self) -> None:
        """Sends nothing more; lets what is under way finish, then closes. For a replica that left the table."""
        self.ready = False
        task, self._task = self._task, None
        if task is None:
            return
        for _ in range(int(RETIRE_S / 0.05)):
            if not self.in_flight:
                break
            await asyncio.sleep(0.05)
        with contextlib.suppress(SerinusError, TimeoutError):
            self.last = await self._ask(LAST_WORDS_S)
        self.is_retired = True
        task.cancel()
        if self._wire is not None:
            self._wire.close()

    async def _keep_up(self) -> None:
        delay = BACKOFF_S[0]
        while True:
            wire = Wire(self)
            self._wire = wire
            try:
                await _connect(self.route.address, wire)
            except (OSError, ValueError) as error:
                _log.debug("replica %s: %s", self.route.id, error)
            else:
                await _live(wire)
                if wire.greeted:
                    delay = BACKOFF_S[0]
            delay = min(delay * 2, BACKOFF_S[1])
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 (jitter)


async def _live(wire: Wire) -> None:
    """Waits for the connection's end."""
    # a listener outlives its replica, so a connection may wait in its queue until the next one stands
    await asyncio.wait([wire.lost], timeout=HELLO_S)
    if not wire.greeted:
        wire.close()
    await wire.lost


async def _connect(address: str, wire: Wire) -> None:
    """Connects to 'unix:/path' or 'tcp:host:port'. Raises OSError, or ValueError for any other address."""
    loop = asyncio.get_running_loop()
    kind, _, place = address.partition(":")
    done: Awaitable[object]
    if kind == "unix":
        done = loop.create_unix_connection(lambda: wire, place)
    elif kind == "tcp":
        host, _, port = place.rpartition(":")
        done = loop.create_connection(lambda: wire, host.strip("[]"), int(port))
    else:
        raise ValueError(f"unknown kind of address: {kind!r}")
    await asyncio.wait_for(done, 5.0)


class Pool:
    """The links of one gateway. on_failed: who is told of failed requests; on_part: of each part of a streamed answer;
    on_call: of what models say about calls of their own; on_left: of a request on a connection with calls whose caller has
    left, or (None) that such a connection has ended;
    on_lost: of the replicas whose connection ended; on_change: called when a link became ready or the table changed, so
    that those who wait for a replica are looked at.
    """

    def __init__(self) -> None:
        self._links: dict[ReplicaRoute, Link] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self.budget = Budget()
        self.on_failed: Callable[[Flight, SerinusError], None] = lambda _flight, _error: None
        self.on_part: Callable[[Flight, Answer], None] = lambda _flight, _answer: None
        self.on_call: Callable[[Wire, CallModel | Steer, memoryview], None] = lambda _wire, _message, _body: None
        self.on_left: Callable[[Wire, Flight | None], None] = lambda _wire, _flight: None
        self.on_lost: Callable[[str], object] = lambda _replica: None
        self.on_change: list[Callable[[], None]] = []

    def link(self, route: ReplicaRoute) -> Link:
        """The link to this replica, made when there is none yet."""
        found = self._links.get(route)
        if found is None:
            found = self._links[route] = Link(route, self)
        return found

    def keep(self, routes: set[ReplicaRoute]) -> None:
        """Retires every link that is not in `routes`."""
        for route in [route for route in self._links if route not in routes]:
            task = asyncio.ensure_future(self._links.pop(route).retire())
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    def changed(self) -> None:
        """A link became ready, or the table changed."""
        for call in self.on_change:
            call()

    async def run(self) -> None:
        """Pings every link, for ever."""
        while True:
            await asyncio.sleep(PING_S)
            for link in list(self._links.values()):
                link.ping()
                link.lender.tidy(time.monotonic())

    def counts(self) -> tuple[int, int]:
        """(ready links, links)"""
        return sum(link.ready for link in self._links.values()), len(self._links)
