"""ModelInfer: one request, one answer."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

from inference.errors import SerinusError, Unsupported
from inference.gateway.calls import Call
from inference.gateway.dataplane import Asked, DataPlane, Done
from inference.gateway.flights import Flight
from inference.gateway.grpc import answers, heads, requests, wire
from inference.gateway.grpc.heads import Head
from inference.gateway.grpc.wire import Message, Raw
from inference.gateway.shared_memory import Regions, Shared
from inference.protocol.messages import Answer
from inference.protocol.oip import Signature

_ids = count(1)


def asked_of(plane: DataPlane, head: Head, request: Message, *, is_streaming: bool = False) -> Asked:
    """Who asks for what. Raises Unauthenticated, Forbidden, NotFound or InvalidInput."""
    caller, endpoint = plane.admit(request.model_name, head.credential)
    version = requests.version_of(request)
    sticky = head.session or caller.id or str(next(_ids))
    return Asked(caller, endpoint, version, sticky, head.timeout_ms, is_streaming)


class Reading:
    """The reader of one request, for the data plane."""

    __slots__ = ("_raw", "_request", "_shared", "_traceparent")

    def __init__(self, request: Message, raw: Raw, traceparent: str, shared: Shared | None) -> None:
        self._request = request
        self._raw = raw
        self._traceparent = traceparent
        self._shared = shared

    def __call__(self, model: str, signature: Signature) -> Call:
        call = requests.read(self._request, self._raw, model, signature, self._shared)
        call.traceparent = self._traceparent
        return call


class Infer:
    """The handler of ModelInfer."""

    def __init__(self, plane: DataPlane, regions: Regions | None = None) -> None:
        self._plane = plane
        self._regions = regions

    async def answer(self, data: bytes, context: Any) -> bytes:
        """Raises SerinusErrors. A client that leaves cancels this coroutine, and the replica is told."""
        head = heads.read(context.invocation_metadata(), context.time_remaining())
        request, raw = wire.infer_request(data)
        asked = asked_of(self._plane, head, request)
        shared = self._regions.of(asked.caller.id) if self._regions is not None else None
        done = await self._one(asked, Reading(request, raw, head.traceparent, shared))
        context.set_trailing_metadata(answers.arm_metadata(done))
        return b"".join(answers.parts_of(done))

    async def _one(self, asked: Asked, reading: Reading) -> Done:
        future: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        plane = self._plane

        def on_answer(flight: Flight, answer: Answer, body: memoryview) -> None:
            if answer.final:
                plane.answered(flight, answer)
                if not future.done():
                    future.set_result(Done(flight.call, flight.variant, answer, body))
                return
            plane.abandon(flight)
            if not future.done():
                future.set_exception(_several(flight))

        def on_failed(_flight: Flight, error: SerinusError) -> None:
            if not future.done():
                future.set_exception(error)

        flight = plane.start(asked, reading, on_answer, on_failed)
        try:
            return await future
        except asyncio.CancelledError:
            plane.abandon(flight)
            raise


def _several(flight: Flight) -> SerinusError:
    return Unsupported(
        "ModelInfer RPC doesn't support models with decoupled transaction policy: "
        f"model '{flight.endpoint.route.name}' gives several answers, use ModelStreamInfer"
    )
