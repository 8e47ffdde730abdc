"""The gRPC server of a gateway process: which method means what, who is let in before a message is read, start, drain.

A call's metadata are at hand before its message, so a caller who may use nothing here is refused without its message
being received. Every error becomes a status in one place; one that nobody foresaw reaches the client as a fixed
sentence.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from typing import Any

from inference.config import BadSetting
from inference.errors import Overloaded, SerinusError, Unauthenticated
from inference.gateway import listener
from inference.gateway.admission import Caller
from inference.gateway.bodies import Bodies
from inference.gateway.dataplane import DataPlane
from inference.gateway.grpc import requests, statuses, wire
from inference.gateway.grpc.control import Behind, Control
from inference.gateway.grpc.describe import Describe
from inference.gateway.grpc.exchange import Exchange
from inference.gateway.grpc.health import INFERENCE, REQUEST, SERVICE, Health
from inference.gateway.grpc.infer import InferExchange
from inference.gateway.grpc.spoken import Spoken, spoken
from inference.gateway.grpc.stream import Streams
from inference.gateway.grpc.tasks import StreamExchange, Streaming, TensorStreamExchange, Unary, UnaryExchange
from inference.gateway.http2.connection import Connection
from inference.gateway.http2.machine import Machine
from inference.gateway.http2.streams import Stream
from inference.gateway.shared_memory import Shared
from inference.gateway.table import Snapshot
from inference.protocol import memory

MAX_CALLS = 8192
MAX_LET_IN = 4096
LAST_WORDS_S = 1.0
PUBLIC = frozenset({"ServerLive", "ServerReady"})
_WORDS = re.compile(r"(?<!^)(?=[A-Z])")
_log = logging.getLogger(__name__)

Make = Callable[["Door", Machine, Stream, Spoken], Exchange]


class Method:
    """make: what answers a call of it. is_public: whoever calls."""

    __slots__ = ("is_public", "make")

    def __init__(self, make: Make, *, is_public: bool) -> None:
        self.make = make
        self.is_public = is_public


class Door:
    """max_message_bytes: the largest message it takes. running: calls under way."""

    def __init__(
        self, plane: DataPlane, behind: Behind, *, max_message_bytes: int, server_name: str, extensions: list[str]
    ) -> None:
        self.plane = plane
        self.max_message_bytes = max_message_bytes
        self.bodies = Bodies(max_message_bytes)
        self.running = 0
        self._regions = behind.regions
        self._closing = asyncio.Event()
        self._snapshot: Snapshot | None = None
        self._has_public = False
        self._let_in: dict[str, float] = {}
        self._listener: listener.Listener[Connection] | None = None
        describe = Describe(plane, server_name=server_name, extensions=extensions)
        self.streams = Streams(plane, self._closing, behind.regions)
        self.methods = methods(plane, describe, behind, self.streams)

    # -- start and end ----------------------------------------------------------------------------------------------

    def start(
        self, host: str, port: int, *, max_connections: int, others: Callable[[], int] = lambda: 0
    ) -> listener.Listener[Connection]:
        """Listens, and answers what accepts its connections. max_connections, others: as for Listener. Raises BadSetting
        when the port cannot be had.
        """
        try:
            sock = listener.listen(host, port)
        except OSError as error:
            raise BadSetting(
                f"port {port} on {host} cannot be used for gRPC: "
                f"stop what listens there or set SERINUS_GRPC_PORT to another port, or to 0 for no gRPC"
            ) from error
        found = self._listener = listener.Listener(
            lambda connections: Connection(self, connections), sock, max_connections=max_connections, others=others
        )
        found.start()
        _log.info("listening on grpc://%s:%s", f"[{host}]" if ":" in host else host, port)
        return found

    async def drain(self, within_s: float) -> None:
        """1. Takes no new connections; 2. tells clients to begin no more calls; 3. tells streams, which finish what is
        under way; 4. cuts what is left when time is up.
        """
        self._closing.set()
        found = self._listener
        if found is None:
            return
        end = time.monotonic() + within_s
        found.close()
        for connection in list(found.connections):
            connection.drain()
        while self.running and time.monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        end = min(end, time.monotonic() + LAST_WORDS_S)
        while found.connections and time.monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await found.finish()

    # -- calls ------------------------------------------------------------------------------------------------------

    def opened(self, machine: Machine, stream: Stream) -> Exchange | None:
        """A call has begun; see http2.machine.Application."""
        known: Spoken | None = stream.head.memo
        if known is None:
            known = stream.head.memo = spoken(stream.head, self.methods)
        if known.refusal is not None:
            machine.end(stream, known.refusal)
            return None
        problem = known.problem
        if problem is None and self.running >= MAX_CALLS:
            problem = Overloaded("Too many calls at once", retry_after_s=1.0)
        method = known.method
        if method is not None and not method.is_public and not self._may_enter(known.head.credential):
            problem = Unauthenticated()
        if problem is not None or method is None:
            machine.end(stream, statuses.BEGIN + statuses.block(problem or SerinusError()))
            return None
        self.running += 1
        return method.make(self, machine, stream, known)

    def _may_enter(self, credential: str) -> bool:
        plane = self.plane
        if plane.insecure:
            return True
        now = plane.table.now
        if now is not self._snapshot:
            self._snapshot = now
            self._has_public = any(endpoint.route.public for endpoint in now.endpoints.values())
            self._let_in.clear()
        if self._has_public or self._let_in.get(credential, 0.0) > time.time():
            return True
        try:
            caller = now.keys.caller(credential)
        except Unauthenticated:
            return False
        if len(self._let_in) >= MAX_LET_IN:
            self._let_in.clear()
        self._let_in[credential] = caller.expires_at_unix_s
        return True

    def shared_of(self, caller: Caller) -> Shared | None:
        """The caller's shared memory, where that is allowed."""
        return self._regions.of(caller.id) if self._regions is not None else None

    def refused(self, error: SerinusError) -> None:
        """To be called for what a call is told: counts it, unless it has been."""
        self.plane.refused("", error)

    def memory(self, known: Spoken, request: Any, size: int) -> memoryview:
        """Where a request's raw tensors shall be received, `size` bytes in all, so that its replica reads them there
        where that can be. Raises what is wrong with its caller or its model's name.
        """
        self.plane.admit(request.model_name, known.head.credential)
        version = requests.version_of(request)
        found = self.plane.memory(request.model_name, version, size, 0)
        return found if found is not None else memory.pool.take(size)


def methods(plane: DataPlane, describe: Describe, behind: Behind, streams: Streams) -> dict[bytes, Method]:
    """All calls of both services, by their path."""
    control, health = Control(plane, behind, describe.known), Health(plane, describe)
    found: dict[bytes, Method] = {}
    for name in _plain_names():
        owner = describe if hasattr(describe, _snake(name)) else control
        handler = _parsed(wire.kind(f"{name}Request"), getattr(owner, _snake(name)))
        found[_path(INFERENCE, name)] = Method(_unary(handler), is_public=name in PUBLIC)
    found[_path(INFERENCE, "ModelInfer")] = Method(InferExchange, is_public=False)
    stream = _streaming(TensorStreamExchange, streams.answer)
    found[_path(INFERENCE, "ModelStreamInfer")] = Method(stream, is_public=False)
    found[_path(SERVICE, "Check")] = Method(_unary(_parsed(REQUEST, health.check)), is_public=True)
    found[_path(SERVICE, "Watch")] = Method(_streaming(StreamExchange, health.watch), is_public=True)
    return found


def _path(service: str, name: str) -> bytes:
    return f"/{service}/{name}".encode()


def _unary(handler: Unary) -> Make:
    return lambda door, machine, stream, known: UnaryExchange(door, machine, stream, known, handler)


def _streaming(kind: type[StreamExchange], handler: Streaming) -> Make:
    return lambda door, machine, stream, known: kind(door, machine, stream, known, handler)


def _plain_names() -> list[str]:
    """The calls that take one message and give one, without tensors."""
    service = wire.pool().FindServiceByName(INFERENCE)
    return [method.name for method in service.methods if method.name not in {"ModelInfer", "ModelStreamInfer"}]


def _snake(name: str) -> str:
    return _WORDS.sub("_", name).lower()


def _parsed(request: Any, handler: Any) -> Unary:
    async def answer(data: bytes, credential: str) -> bytes:
        found: bytes = (await handler(wire.parse(request, data), credential)).SerializeToString()
        return found

    return answer
