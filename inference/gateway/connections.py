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
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import cast

import msgspec

from inference.errors import ClientError, Malformed, NotReady, Overloaded, ReplicaLost, SerinusError, TooLarge, by_code
from inference.gateway.flights import Flight
from inference.gateway.lending import LEAST_BYTES, Budget, Lender, number_of
from inference.protocol import blocks, frames
from inference.protocol.blocks import Block
from inference.protocol.messages import (
    Answer,
    Ask,
    Cancel,
    Fault,
    FromReplica,
    Goodbye,
    Hand,
    Hello,
    Infer,
    Lend,
    Mapped,
    Pause,
    Ping,
    Pong,
    Resume,
    Return,
    Told,
)
from inference.protocol.routes import ReplicaRoute
from inference.protocol.statistics import ModelStatistics

PING_S = 1.0
MISSES = 3
HELLO_S = 60.0
BACKOFF_S = (0.02, 1.0)
RETIRE_S = 60.0
SMALL_BYTES = 64 << 10

_log = logging.getLogger(__name__)
_PATH = re.compile(r"(?<![\w:/])/(?:[\w.@+-]+/)+[\w.@+-]*")
_SPOKEN = (Overloaded, NotReady)


class ConnectionLost(ReplicaLost):
    """The replica was lost before it answered."""


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


class _Wire(asyncio.BufferedProtocol):
    """One connection's life."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._decoder: frames.Decoder[FromReplica] = frames.Decoder(FromReplica)
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes | memoryview] = []
        self._offers: deque[Block] = deque()
        self._offered: Block | None = None
        self._later: list[bytes | memoryview] = []  # what is said while a descriptor is awaited
        self.pending: dict[int, Flight] = {}
        self.asked: dict[int, asyncio.Future[ModelStatistics]] = {}
        self.unanswered = 0
        self.greeted = False
        self.lost: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit from asyncio's

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._decoder.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self.unanswered = 0
        try:
            for message, body in self._decoder.received(nbytes):
                if type(message) is Answer:
                    self._answered(message, body)
                else:
                    self._take(message)
        except (Malformed, TooLarge) as error:
            _log.warning("replica %s broke the protocol: %s", self._link.route.id, error)
            self.close()

    def _answered(self, answer: Answer, body: memoryview) -> None:
        flight = self.pending.get(answer.id)
        if flight is None:
            return
        if answer.is_in_room:
            body = _in_room(flight, answer)
        if answer.final:
            del self.pending[answer.id]
            flight.has_ended = True
        if flight.parts or not answer.final:
            self._link.part(flight, answer)
        flight.parts += 1
        if len(body) >= LEAST_BYTES or self._link.lender.room_bytes:
            self._link.lender.saw_answer(len(body))
            flight.room = None
        flight.take(answer, body)

    def _take(self, message: FromReplica) -> None:
        if type(message) is Fault:
            flight = self.pending.pop(message.id, None)
            if flight is not None:
                _log.info("replica %s answered %s: %s", self._link.route.id, message.code, message.message)
                self._link.lender.give_up(flight.call.body)  # it may be a late one, whose pass goes on
                self._link.failed(flight, fault_error(message))
        elif type(message) is Ping:
            self.send(frames.encode(Pong(message.token)))
        elif type(message) is Told:
            future = self.asked.pop(message.id, None)
            if future is not None and not future.done():
                future.set_result(message.statistics)
        elif type(message) is Hello:
            self._link.greeted(self, message)
        elif type(message) is Goodbye:
            self._link.leaving(self)
        elif type(message) is Hand:
            self._hand(message.number)
        elif type(message) is Mapped and self._link.is_on(self):
            self._link.lender.is_mapped(message.number)

    # -- lending ----------------------------------------------------------------------------------------------------

    def offer(self, block: Block) -> None:
        """Lends a block: the replica is told now, and gets its descriptor when it has stopped reading for it."""
        self._offers.append(block)
        self._offer_next()

    def _offer_next(self) -> None:
        while self._offers and self._offered is None and self._transport and not self._transport.is_closing():
            block = self._offers.popleft()
            if block.descriptor >= 0:
                self.send(frames.encode(Lend(block.number, len(block), block.is_for_answers)))
                self._offered = block

    def _hand(self, number: int) -> None:
        block, self._offered = self._offered, None
        if block is None or block.number != number or self._transport is None:
            raise Malformed("a block was asked for that was not offered")
        # Everything up to the offer was read, so there is room for a byte, and nothing of ours is before it.
        try:
            blocks.handed(self._transport.get_extra_info("socket").fileno(), block)
        except OSError as error:
            raise Malformed(f"a block could not be handed over: {error}") from error
        later, self._later = self._later, []
        if later and not self._transport.is_closing():
            self.send(*later)
        self._offer_next()

    def send(self, *parts: bytes | memoryview) -> None:
        """Sends a frame; those of one turn of the event loop leave together."""
        if self._transport is None or self._transport.is_closing():
            raise ReplicaLost
        if self._offered is not None:
            self._later += parts
            return
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out += parts

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is None or self._transport.is_closing():
            return
        if len(out) == 1:
            self._transport.write(out[0])
        else:
            self._transport.writelines(out)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._link.unready(self)
        self._offers.clear()
        pending, self.pending = self.pending, {}
        for flight in pending.values():
            self._link.failed(flight, ConnectionLost(retry_after_s=1.0))
        for future in self.asked.values():
            if not future.done():
                future.set_exception(ReplicaLost(retry_after_s=1.0))
        if not self.lost.done():
            self.lost.set_result(None)


def _in_room(flight: Flight, answer: Answer) -> memoryview:
    size = sum([tensor.size_bytes for tensor in answer.tensors])
    if flight.room is None or not 0 <= size <= len(flight.room):
        raise Malformed("an answer lies in a block that its request did not name")
    return flight.room[:size]


class Link:
    """The way to one replica. `ready` says whether a request may be sent; `in_flight` how many are under way.

    The pool is told of every request that ends with an error here, or is lost with its connection.
    """

    def __init__(self, route: ReplicaRoute, pool: Pool) -> None:
        self.route = route
        self.ready = False
        self.draining = False  # it said goodbye: open sequences may still go there
        self._pool = pool
        self._wire: _Wire | None = None
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
        room = flight.room = self.lender.room() if self.lender.room_bytes else None
        head = frames.encode_head(
            Infer(
                number, timeout_ms, call.tensors, call.outputs, call.parameters, call.priority, call.timeout_us,
                call.sequence, call.traceparent, flight.key, block, at, 0 if room is None else number_of(room),
            ),
            0 if block else size,
        )  # fmt: skip
        if block:
            wire.send(head)
        elif size <= SMALL_BYTES:
            wire.send(b"".join((head, *call.body)))
        else:
            wire.send(head, *call.body)
        flight.link, flight.number = self, number
        wire.pending[number] = flight

    def forget(self, flight: Flight) -> None:
        """The caller no longer waits: the replica is told, its answer will be dropped."""
        wire = self._wire
        if wire is not None and wire.pending.pop(flight.number, None) is not None:
            self._tell(Cancel(flight.number))
            self.lender.give_up(flight.call.body)

    def pause(self, flight: Flight) -> None:
        """The reader of this streaming request is slow."""
        flight.heard = 0.0  # the next part waits for its reader, not for the model
        self._tell(Pause(flight.number))

    def resume(self, flight: Flight) -> None:
        self._tell(Resume(flight.number))

    async def statistics(self, timeout_s: float) -> ModelStatistics:
        """What the replica did so far. Raises ReplicaLost or TimeoutError."""
        wire = self._wire
        if wire is None or not self.ready:
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

    def is_on(self, wire: _Wire) -> bool:
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

    def part(self, flight: Flight, answer: Answer) -> None:
        """One of several answers has come."""
        self._pool.on_part(flight, answer)

    def greeted(self, wire: _Wire, hello: Hello) -> None:
        if hello.replica != self.route.id or hello.generation < self.route.generation:
            _log.warning("replica %s generation %s was replaced: not used", hello.replica, hello.generation)
            wire.close()
            return
        wire.greeted = True
        self.lender.is_open = hello.takes_blocks and self.route.address.startswith("unix:")
        if wire is self._wire and self._task is not None:
            self.ready = True
            self._pool.changed()

    def leaving(self, wire: _Wire) -> None:
        if wire is self._wire:
            self.draining, self.ready = self.ready, False

    def unready(self, wire: _Wire) -> None:
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
    """The links of one gateway. on_failed: who is told of failed requests; on_part: of each part of a streamed answer;
    on_lost: of the replicas whose connection ended; on_change: called when a link became ready or the table changed, so
    that those who wait for a replica are looked at.
    """

    def __init__(self) -> None:
        self._links: dict[ReplicaRoute, Link] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self.budget = Budget()
        self.on_failed: Callable[[Flight, SerinusError], None] = lambda _flight, _error: None
        self.on_part: Callable[[Flight, Answer], None] = lambda _flight, _answer: None
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
