"""Connections to replicas: one per replica, many requests in flight on it, kept up for as long as it is routed to.

A link connects by itself and again after every loss; it is ready from the replica's Hello to its Goodbye or loss.
Whatever was in flight when a connection breaks fails with ReplicaLost at once: whether to retry is the caller's
decision. A replica that is silent for three pings, a second apart, counts as lost.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Awaitable, Callable
from typing import cast

from inference.errors import ClientError, Malformed, NotReady, Overloaded, ReplicaLost, SerinusError, TooLarge, by_code
from inference.gateway.calls import Call
from inference.protocol import frames
from inference.protocol.messages import Answer, Cancel, Fault, FromReplica, Goodbye, Hello, Infer, Ping, Pong
from inference.protocol.routes import ReplicaRoute

PING_S = 1.0
MISSES = 3
HELLO_S = 60.0
BACKOFF_S = (0.02, 1.0)
RETIRE_S = 60.0
SMALL_BYTES = 64 << 10

Reply = tuple[Answer, memoryview]
_log = logging.getLogger(__name__)
_PATH = re.compile(r"(?<![\w:/])/(?:[\w.@+-]+/)+[\w.@+-]*")
_SPOKEN = (Overloaded, NotReady)


def fault_error(fault: Fault) -> SerinusError:
    """The error that a replica's Fault stands for. What a server's fault says may quote its insides: it is logged,
    and the caller gets the class's own words.
    """
    cls = by_code(fault.code)
    spoken = issubclass(cls, (ClientError, *_SPOKEN))
    message = _PATH.sub("...", fault.message[:1000]) if spoken else None
    try:
        return cls(message, retry_after_s=fault.retry_after_s)
    except TypeError:  # Rejected takes other arguments; no replica has a reason to send it
        return SerinusError()


class _Wire(asyncio.Protocol):
    """One connection's life."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._decoder: frames.Decoder[FromReplica] = frames.Decoder(FromReplica)
        self._transport: asyncio.Transport | None = None
        self.pending: dict[int, asyncio.Future[Reply]] = {}
        self.unanswered = 0
        self.greeted = False
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit from asyncio's

    def data_received(self, data: bytes) -> None:
        self.unanswered = 0
        try:
            for message, body in self._decoder.feed(data):
                self._take(message, body)
        except (Malformed, TooLarge) as error:
            _log.warning("replica %s broke the protocol: %s", self._link.route.id, error)
            self.close()

    def _take(self, message: FromReplica, body: memoryview) -> None:
        if type(message) is Answer:
            future = self.pending.pop(message.id, None)
            if future is not None and not future.done():
                future.set_result((message, body))
        elif type(message) is Fault:
            future = self.pending.pop(message.id, None)
            if future is not None and not future.done():
                _log.info("replica %s answered %s: %s", self._link.route.id, message.code, message.message)
                future.set_exception(fault_error(message))
        elif type(message) is Ping:
            self.send(frames.encode(Pong(message.token)))
        elif type(message) is Hello:
            self._link.greeted(self, message)
        elif type(message) is Goodbye:
            self._link.leaving(self)

    def send(self, *parts: bytes | memoryview) -> None:
        if self._transport is None or self._transport.is_closing():
            raise ReplicaLost
        if len(parts) == 1:
            self._transport.write(parts[0])
        else:
            self._transport.writelines(parts)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._link.unready(self)
        pending, self.pending = self.pending, {}
        for future in pending.values():
            if not future.done():
                future.set_exception(ReplicaLost(retry_after_s=1.0))
        if not self.lost.done():
            self.lost.set_result(None)


class Link:
    """The way to one replica. `ready` says whether a request may be sent; `in_flight` how many are under way."""

    def __init__(self, route: ReplicaRoute, changed: Callable[[], None]) -> None:
        self.route = route
        self.ready = False
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._wire: _Wire | None = None
        self._ids = 0
        self._task: asyncio.Task[None] | None = asyncio.ensure_future(self._keep_up())

    @property
    def in_flight(self) -> int:
        return len(self._wire.pending) if self._wire is not None else 0

    def send(self, call: Call, timeout_ms: int) -> tuple[int, asyncio.Future[Reply]]:
        """Sends `call`; answers its id and the future of its reply. Raises ReplicaLost when there is no connection."""
        wire = self._wire
        if wire is None or not self.ready:
            raise ReplicaLost(retry_after_s=1.0)
        self._ids = number = self._ids + 1
        size = 0
        for part in call.body:
            size += len(part)
        head = frames.encode_head(Infer(number, timeout_ms, call.tensors, call.outputs, call.parameters), size)
        if size <= SMALL_BYTES:
            wire.send(b"".join((head, *call.body)))
        else:
            wire.send(head, *call.body)
        future = wire.pending[number] = self._loop.create_future()
        return number, future

    def forget(self, number: int) -> None:
        """The caller of request `number` no longer waits: the replica is told, its answer will be dropped."""
        wire = self._wire
        if wire is not None and wire.pending.pop(number, None) is not None:
            try:
                wire.send(frames.encode(Cancel(number)))
            except ReplicaLost:
                return

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
        try:
            wire.send(frames.encode(Ping(wire.unanswered)))
        except ReplicaLost:
            return

    def greeted(self, wire: _Wire, hello: Hello) -> None:
        if hello.replica != self.route.id or hello.generation < self.route.generation:
            _log.warning("replica %s generation %s was replaced: not used", hello.replica, hello.generation)
            wire.close()
            return
        wire.greeted = True
        if wire is self._wire and self._task is not None:
            self.ready = True
            self._changed()

    def leaving(self, wire: _Wire) -> None:
        if wire is self._wire:
            self.ready = False

    def unready(self, wire: _Wire) -> None:
        if wire is self._wire:
            self.ready = False

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
        task.cancel()
        if self._wire is not None:
            self._wire.close()

    async def _keep_up(self) -> None:
        delay = BACKOFF_S[0]
        while True:
            wire = _Wire(self)
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


async def _live(wire: _Wire) -> None:
    """Waits for the connection's end."""
    # a listener outlives its replica, so a connection may wait in its queue until the next one stands
    await asyncio.wait([wire.lost], timeout=HELLO_S)
    if not wire.greeted:
        wire.close()
    await wire.lost


async def _connect(address: str, wire: _Wire) -> None:
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
    """The links of one gateway, and those who wait for one to become ready."""

    def __init__(self) -> None:
        self._links: dict[ReplicaRoute, Link] = {}
        self._waiters: set[asyncio.Future[None]] = set()
        self._retiring: set[asyncio.Task[None]] = set()

    def link(self, route: ReplicaRoute) -> Link:
        """The link to this replica, made when there is none yet."""
        found = self._links.get(route)
        if found is None:
            found = self._links[route] = Link(route, self.changed)
        return found

    def keep(self, routes: set[ReplicaRoute]) -> None:
        """Retires every link that is not in `routes`."""
        for route in [route for route in self._links if route not in routes]:
            task = asyncio.ensure_future(self._links.pop(route).retire())
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    def changed(self) -> None:
        """Wakes those who wait: a link became ready, or the table changed."""
        waiters, self._waiters = self._waiters, set()
        for future in waiters:
            if not future.done():
                future.set_result(None)

    def waiter(self) -> asyncio.Future[None]:
        """A future that ends at the next change. Give it back with `leave`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(future)
        return future

    def leave(self, future: asyncio.Future[None]) -> None:
        self._waiters.discard(future)

    async def run(self) -> None:
        """Pings every link, for ever."""
        while True:
            await asyncio.sleep(PING_S)
            for link in list(self._links.values()):
                link.ping()

    def counts(self) -> tuple[int, int]:
        """(ready links, links)"""
        return sum(link.ready for link in self._links.values()), len(self._links)
