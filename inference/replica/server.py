"""Accepts on the listener it was given and speaks frames: requests in, answers and typed faults out.

The law: every request that was read gets exactly one answer or fault, unless its caller cancelled or left. One
connection's trouble (a peer that does not read, bytes that are no frames) never touches another's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import cast

import msgspec

from inference.errors import ClientError, Draining, InvalidInput, Malformed, ModelFailed, SerinusError, ServerError
from inference.models.asked import About, Request
from inference.protocol.custom_metrics import Families
from inference.protocol.frames import MAX_BODY_BYTES, Decoder, encode, encode_head
from inference.protocol.messages import (
    Answer,
    Ask,
    Cancel,
    Fault,
    Goodbye,
    Hello,
    Infer,
    Lend,
    Pause,
    Ping,
    Pong,
    Resume,
    Return,
    TensorHeader,
    Told,
    ToReplica,
)
from inference.protocol.oip import Signature
from inference.replica import checks
from inference.replica.borrowing import Borrower
from inference.replica.calling import Calling
from inference.runtime import tensors
from inference.runtime.work import Executor, Outcome, Ticket

log = logging.getLogger(__name__)
PAUSE_READING_BYTES = 8 << 20
MAX_UNSENT_BYTES = 512 << 20
FLUSH_STEP_S = 0.005
FLUSH_BYTES = 256 << 10
LEAST_ROOM_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Served:
    """What is served here, and under which name. tells: the model is given what callers say beside their inputs."""

    hello: Hello
    signature: Signature
    tells: bool = False

    @property
    def model(self) -> str:
        return self.hello.model


class Server:
    """All connections of one replica. memory: bytes by device; counted: what the model itself counts, both as of now."""

    def __init__(
        self,
        served: Served,
        executor: Executor,
        memory: Callable[[], dict[str, int]] = dict,
        counted: Callable[[], Families] = dict,
    ) -> None:
        self.served = served
        self.executor = executor
        self._memory, self._counted = memory, counted
        self._life = int.from_bytes(os.urandom(7), "big") or 1
        self.connections: set[Connection] = set()
        self.is_draining = False
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        connect = partial(Connection, self)
        is_unix = listener.family == socket.AF_UNIX
        made = (
            loop.create_unix_server(connect, sock=listener) if is_unix else loop.create_server(connect, sock=listener)
        )
        self._server = await made

    async def drain(self, timeout_s: float) -> bool:
        """1. Says goodbye. 2. Refuses what still comes. 3. Answers what is under way. 4. Tells its sums. 5. Flushes. True: all was answered."""
        until = time.monotonic() + timeout_s
        self.is_draining = True
        if self._server:
            self._server.close()
        self.executor.close(Draining())
        for connection in list(self.connections):
            connection.send(Goodbye())
        done = await self.executor.drained(timeout_s)
        await asyncio.sleep(0)  # the answers' callbacks
        for connection in list(self.connections):
            connection.send(self.told(0))
        while any(connection.unsent for connection in self.connections) and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(FLUSH_STEP_S)
        return done

    def told(self, number: int) -> Told:
        """What this replica has done so far."""
        sums = self.executor.statistics
        sums.life, sums.memory, sums.custom = self._life, self._memory(), self._counted()
        return Told(number, sums)

    def close(self) -> None:
        """Cuts all connections."""
        for connection in list(self.connections):
            connection.cut()


class Connection(asyncio.BufferedProtocol):
    """One gateway's connection; many requests are under way on it at once. What is said in one turn of the event loop
    leaves together.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._requests = checks.Requests(server.served.signature, server.served.model)
        self._out: list[bytes | memoryview] = []
        self._out_bytes = 0
        self._decoder: Decoder[ToReplica] = Decoder(ToReplica)
        self._tickets: dict[int, Ticket] = {}
        self._borrower = Borrower(self.send, self.cut)
        self._calling = Calling(self._write)
        self._is_open = False

    @property
    def unsent(self) -> int:
        """Bytes that wait for the peer to read."""
        return self._out_bytes + self._transport.get_write_buffer_size() if self._is_open else 0

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=PAUSE_READING_BYTES)
        self._is_open = True
        self._server.connections.add(self)
        self.send(self._server.served.hello)
        if self._server.is_draining:
            self.send(Goodbye())

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_open = False
        self._server.connections.discard(self)
        for ticket in list(self._tickets.values()):
            self._server.executor.cancel(ticket)
        self._tickets.clear()
        self._calling.close()
        self._borrower.close()

    def pause_writing(self) -> None:
        # Who does not read answers may not ask more.
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        if not self._borrower.is_waiting:
            self._transport.resume_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._decoder.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for message, body in self._decoder.received(nbytes):
                self._handle(message, body)
        except ClientError as error:
            log.warning("a connection was cut: %s", error.message)
            self.cut()

    # What arrives

    def _handle(self, message: ToReplica, body: memoryview) -> None:
        if isinstance(message, Infer):
            self._infer(message, body)
        elif isinstance(message, Cancel | Pause | Resume):
            self._steer(message)
        elif isinstance(message, Answer | Fault):
            self._calling.received(message, body)
        elif isinstance(message, Ping):
            self.send(Pong(message.token))
        elif isinstance(message, Ask):
            self.send(self._server.told(message.id))
        elif isinstance(message, Lend):
            self._lent(message)
        elif isinstance(message, Return):
            self._borrower.returned(message.number)

    def _steer(self, message: Cancel | Pause | Resume) -> None:
        ticket, executor = self._tickets.get(message.id), self._server.executor
        if ticket is None:
            return
        if isinstance(message, Cancel):
            del self._tickets[message.id]
            executor.cancel(ticket)
        elif isinstance(message, Pause):
            executor.pause(ticket)
        else:
            executor.resume(ticket)

    def _lent(self, message: Lend) -> None:
        if not self._server.served.hello.takes_blocks:
            raise Malformed("blocks are not taken here")
        self._transport.pause_reading()
        self._borrower.lend(message, self._transport.get_extra_info("socket").fileno(), self._go_on)

    def _go_on(self) -> None:
        if self._transport.get_write_buffer_size() < PAUSE_READING_BYTES:
            self._transport.resume_reading()

    def _infer(self, request: Infer, body: memoryview) -> None:
        if request.id in self._tickets:
            self._refuse(request.id, InvalidInput("the id of a request that is under way was used again"))
            return
        try:
            if request.block:
                size = sum(header.size_bytes for header in request.tensors)
                body = self._borrower.part(request.block, request.at, size)
            inputs, rows = self._requests.read(request, body)
            now = time.monotonic()
            ticket = Ticket(
                inputs,
                rows,
                now + request.timeout_ms / 1e3 if request.timeout_ms > 0 else inf,
                now,
                partial(self._replied, request),
                request.priority,
                request.queue_timeout_us,
                request.sequence,
                request.parameters,
                request.outputs,
                request.key,
                request.traceparent,
                request.tracestate,
            )
            if self._server.served.tells:
                ticket.inputs = Request(inputs, _about(request, ticket, self._calling))
            self._tickets[request.id] = ticket
            self._server.executor.submit(ticket)
        except BaseException as error:  # noqa: BLE001 (a boundary: whatever it is, its caller gets a typed fault)
            self._fault(request.id, error)

    # What leaves

    def _replied(self, request: Infer, ticket: Ticket, result: Outcome | SerinusError, final: bool) -> None:
        if self._tickets.get(request.id) is not ticket:
            return
        if isinstance(result, SerinusError):
            self._fault(request.id, result)
            return
        if final:
            del self._tickets[request.id]
        try:
            self._answer(request, result, final=final)
        except BaseException as error:  # noqa: BLE001 (a boundary)
            self._server.executor.cancel(ticket)
            self._fault(request.id, error)

    def _answer(self, request: Infer, outcome: Outcome, *, final: bool) -> None:
        headers, parts, size = [], [], 0
        for spec in self._server.served.signature.outputs:
            if (request.outputs and spec.name not in request.outputs) or spec.name not in outcome.outputs:
                continue
            array = outcome.outputs[spec.name]
            data = tensors.to_bytes(spec.datatype, array)
            headers.append(TensorHeader(spec.name, spec.datatype, list(array.shape), len(data)))
            parts.append(data)
            size += len(data)
        if size > MAX_BODY_BYTES:
            raise ModelFailed(f"the answer has {size} bytes; {MAX_BODY_BYTES} are the limit")
        answer = Answer(
            request.id,
            headers,
            outcome.batch_size,
            outcome.queue_ns,
            outcome.compute_ns,
            final,
            outcome.input_ns,
            outcome.output_ns,
            outcome.is_cached,
            dict(outcome.parameters) if outcome.parameters else {},
            outcome.is_invalid,
            is_in_room=final and self._fill(request.room, parts, size),
        )
        if answer.is_in_room:
            self._write(encode_head(answer))
        else:
            self._write(encode_head(answer, size), *parts)

    def _fill(self, room: int, parts: list[bytes | memoryview], size: int) -> bool:
        """Whether the answer was written to its room: not for one that is small, or larger than that."""
        if not room or size < LEAST_ROOM_BYTES or size > self._borrower.size_of(room):
            return False
        at = 0
        for part in parts:
            self._borrower.part(room, at, len(part))[:] = part
            at += len(part)
        return True

    def _fault(self, request_id: int, error: BaseException) -> None:
        self._tickets.pop(request_id, None)
        self._refuse(request_id, error)

    def _refuse(self, request_id: int, error: BaseException) -> None:
        if not isinstance(error, SerinusError):
            log.error("a request failed with %s", type(error).__name__, exc_info=error)
            error = ServerError()
        self.send(Fault(request_id, error.code, error.message, error.retry_after_s))

    def send(self, message: msgspec.Struct) -> None:
        self._write(encode(message))

    def cut(self) -> None:
        if self._is_open:
            self._transport.abort()

    def _write(self, *parts: bytes | memoryview) -> None:
        if not self._is_open:
            return
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out += parts
        for part in parts:
            self._out_bytes += len(part)
        if self._out_bytes > FLUSH_BYTES:
            self._flush()

    def _flush(self) -> None:
        out, size = self._out, self._out_bytes
        self._out, self._out_bytes = [], 0
        if not self._is_open or not out:
            return
        if size <= FLUSH_BYTES:
            self._transport.write(b"".join(out))
        else:
            self._transport.writelines(out)
        if self.unsent > MAX_UNSENT_BYTES:
            log.warning("a connection was cut: its peer does not read")
            self.cut()


def _about(request: Infer, ticket: Ticket, calling: Calling) -> About:
    known = weakref.ref(ticket)  # the ticket holds its inputs, and these hold what is said here

    def has_left() -> bool:
        found = known()
        return found is None or found.has_ended

    return About(
        request.request_id,
        request.outputs,
        request.parameters,
        request.sequence,
        request.queue_timeout_us,
        request.traceparent,
        has_left,
        ticket.deadline,
        calling if request.hops else None,
        request.id,
    )
