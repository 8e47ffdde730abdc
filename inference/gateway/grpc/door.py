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
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from inference.config import BadSetting
from inference.errors import SerinusError, ServerError, Unauthenticated
from inference.gateway.dataplane import DataPlane
from inference.gateway.grpc import heads, statuses, wire
from inference.gateway.grpc.control import Behind, Control
from inference.gateway.grpc.describe import Describe
from inference.gateway.grpc.health import INFERENCE, REQUEST, SERVICE, Health
from inference.gateway.grpc.infer import Infer
from inference.gateway.grpc.stream import Streams
from inference.gateway.table import Snapshot

MAX_CALLS = 8192
MAX_LET_IN = 4096
LAST_WORDS_S = 3.0
MAX_STREAMS_OF_CONNECTION = 1024
PUBLIC = frozenset({"ServerLive", "ServerReady"})
_WORDS = re.compile(r"(?<!^)(?=[A-Z])")
_log = logging.getLogger(__name__)

Handler = Callable[[Any, str], Awaitable[Any]]


def options(max_message_bytes: int) -> list[tuple[str, int]]:
    """Of the transport. Clients may ping ten times a second, with and without calls; a peer that is gone is noticed
    in a minute and a half.
    """
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", MAX_STREAMS_OF_CONNECTION),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 100),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]


class Door:
    """host, port: where it listens. max_message_bytes: the largest message it takes."""

    def __init__(
        self,
        plane: DataPlane,
        behind: Behind,
        *,
        host: str,
        port: int,
        max_message_bytes: int,
        server_name: str,
        extensions: list[str],
    ) -> None:
        self._plane = plane
        self._host, self._port = host, port
        self._options = options(max_message_bytes)
        self._closing = asyncio.Event()
        describe = Describe(plane, server_name=server_name, extensions=extensions)
        self.streams = Streams(plane, self._closing, behind.regions)
        self._methods = Methods(plane, describe, behind, self.streams)
        self._server: Any = None

    async def start(self) -> None:
        """Listens. Raises BadSetting when the port cannot be had."""
        server = grpc.aio.server(options=self._options, maximum_concurrent_rpcs=MAX_CALLS)
        server.add_generic_rpc_handlers((self._methods,))
        host = f"[{self._host}]" if ":" in self._host and not self._host.startswith("[") else self._host
        try:
            server.add_insecure_port(f"{host}:{self._port}")
        except RuntimeError as error:
            raise BadSetting(
                f"port {self._port} on {self._host} cannot be used for gRPC: "
                f"stop what listens there or set SERINUS_GRPC_PORT to another port, or to 0 for no gRPC"
            ) from error
        await server.start()
        self._server = server
        _log.info("listening on grpc://%s:%s", host, self._port)

    async def drain(self, within_s: float) -> None:
        """1. Takes no new calls; 2. tells streams, which finish what is under way; 3. cuts what is left when time is up,
        or soon after the last handler has ended: gRPC now and then waits out its grace for a stream that is over.
        """
        self._closing.set()
        if self._server is None:
            return
        end = time.monotonic() + within_s
        stopped = asyncio.ensure_future(self._server.stop(within_s))
        while self._methods.running and time.monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await asyncio.wait([stopped], timeout=LAST_WORDS_S)
        if not stopped.done():
            cut = asyncio.ensure_future(self._server.stop(None))
            await asyncio.wait([stopped, cut], timeout=LAST_WORDS_S)


class Methods(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc comes without types
    """Finds the handler of a call by its name, refusing callers who may use nothing here."""

    def __init__(self, plane: DataPlane, describe: Describe, behind: Behind, streams: Streams) -> None:
        self._plane = plane
        self._snapshot: Snapshot | None = None
        self._has_public = False
        self._let_in: dict[str, float] = {}
        self.running = 0
        self.handlers: dict[str, Any] = {}
        control, health = Control(plane, behind, describe.known), Health(plane, describe)
        for name in _plain_names():
            owner = describe if hasattr(describe, _snake(name)) else control
            request = wire.kind(f"{name}Request")
            self._add(f"{INFERENCE}/{name}", self._unary(_parsed(request, getattr(owner, _snake(name)))))
        infer = Infer(plane, behind.regions).answer
        self._add(f"{INFERENCE}/ModelInfer", grpc.unary_unary_rpc_method_handler(self._guarded(infer)))
        self._add(f"{INFERENCE}/ModelStreamInfer", grpc.stream_stream_rpc_method_handler(self._guarded(streams.answer)))
        self._add(f"{SERVICE}/Check", self._unary(_parsed(REQUEST, health.check)))
        self._add(f"{SERVICE}/Watch", grpc.unary_stream_rpc_method_handler(self._guarded(health.watch)))
        self._public = {f"/{INFERENCE}/{name}" for name in PUBLIC} | {f"/{SERVICE}/Check", f"/{SERVICE}/Watch"}
        # one that takes a stream is not handed a message before it runs
        self._refusing = grpc.stream_unary_rpc_method_handler(self._guarded(_refuse))

    def _add(self, name: str, handler: Any) -> None:
        self.handlers[f"/{name}"] = handler

    def service(self, call: Any) -> Any:
        handler = self.handlers.get(call.method)
        if handler is None or call.method in self._public or self._may_enter(call.invocation_metadata):
            return handler
        return self._refusing

    def _may_enter(self, metadata: Any) -> bool:
        plane = self._plane
        if plane.insecure:
            return True
        now = plane.table.now
        if now is not self._snapshot:
            self._snapshot = now
            self._has_public = any(endpoint.route.public for endpoint in now.endpoints.values())
            self._let_in.clear()
        if self._has_public:
            return True
        credential = heads.credential_of(metadata)
        if self._let_in.get(credential, 0.0) > time.time():
            return True
        try:
            caller = now.keys.caller(credential)
        except Unauthenticated:
            return False
        if len(self._let_in) >= MAX_LET_IN:
            self._let_in.clear()
        self._let_in[credential] = caller.expires_at_unix_s
        return True

    def _unary(self, answer: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._guarded(answer))

    def _guarded(self, handler: Any) -> Any:
        """The handler, counted while it runs, with its errors as statuses."""

        async def answer(given: Any, context: Any) -> Any:
            self.running += 1
            try:
                return await handler(given, context)
            except SerinusError as error:
                problem = error
            except grpc.aio.AbortError:
                raise
            except Exception:  # noqa: BLE001 (logged in full; the client gets one fixed sentence)
                _log.exception("a gRPC call failed")
                problem = ServerError()
            finally:
                self.running -= 1
            self._plane.refused("", problem)
            return await statuses.abort(context, problem)

        return answer


def _plain_names() -> list[str]:
    """The calls that take one message and give one, without tensors."""
    service = wire.pool().FindServiceByName(INFERENCE)
    return [method.name for method in service.methods if method.name not in {"ModelInfer", "ModelStreamInfer"}]


def _snake(name: str) -> str:
    return _WORDS.sub("_", name).lower()


def _parsed(request: Any, handler: Handler) -> Any:
    async def answer(data: bytes, context: Any) -> bytes:
        credential = heads.credential_of(context.invocation_metadata())
        found: bytes = (await handler(wire.parse(request, data), credential)).SerializeToString()
        return found

    return answer


async def _refuse(_messages: object, _context: Any) -> bytes:
    raise Unauthenticated
