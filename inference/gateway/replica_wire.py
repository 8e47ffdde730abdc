"""One connection to a replica, from its first byte to its end: frames out and in, and the handing over of lent blocks."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from typing import TYPE_CHECKING, cast

from inference.errors import ClientError, Malformed, NotReady, Overloaded, ReplicaLost, SerinusError, TooLarge, by_code
from inference.gateway.flights import Flight
from inference.gateway.lending import LEAST_BYTES
from inference.protocol import blocks, frames
from inference.protocol.blocks import Block
from inference.protocol.messages import (
    Answer,
    CallModel,
    Cancel,
    Fault,
    FromReplica,
    Goodbye,
    Hand,
    Hello,
    Lend,
    Mapped,
    Pause,
    Ping,
    Pong,
    Resume,
    Steer,
    Told,
)
from inference.protocol.statistics import ModelStatistics

if TYPE_CHECKING:
    from inference.gateway.connections import Link

_log = logging.getLogger(__name__)
_PATH = re.compile(r"(?<![\w:/])/(?:[\w.@+-]+/)+[\w.@+-]*")
_SPOKEN = (Overloaded, NotReady)
_OF_CALLS = {CallModel, Cancel, Pause, Resume}


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


class Wire(asyncio.BufferedProtocol):
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
        self.calls: dict[int, Flight] = {}  # that the replica's model makes, by its own numbers
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
                elif type(message) in _OF_CALLS:
                    self._link.called(self, cast("CallModel | Steer", message), body)
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
            flight.lent = None
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
                self._link.give_up(flight)  # it may be a late one, whose pass goes on
                self._link.failed(flight, fault_error(message))
        elif type(message) is Ping:
            self.send(frames.encode(Pong(message.token)))
        elif type(message) is Told:
            self._told(message)
        elif type(message) is Hello:
            self._link.greeted(self, message)
        elif type(message) is Goodbye:
            self._link.leaving(self)
        elif type(message) is Hand:
            self._hand(message.number)
        elif type(message) is Mapped and self._link.is_on(self):
            self._link.lender.is_mapped(message.number)

    def _told(self, message: Told) -> None:
        future = self.asked.pop(message.id, None)
        if future is not None and not future.done():
            future.set_result(message.statistics)
        elif not message.id:
            self._link.last = message.statistics

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
