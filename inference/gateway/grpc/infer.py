"""ModelInfer: one request, one answer."""

from __future__ import annotations

from itertools import count
from typing import Any

from inference.errors import Unsupported
from inference.gateway.calls import Call
from inference.gateway.choosing import Asked, pin
from inference.gateway.dataplane import DataPlane
from inference.gateway.grpc import answers, heads, requests, wire
from inference.gateway.grpc.heads import Head
from inference.gateway.grpc.wire import Message, Raw
from inference.gateway.shared_memory import Regions, Shared
from inference.gateway.table import Variant

_ids = count(1)


def asked_of(plane: DataPlane, head: Head, request: Message) -> Asked:
    """Who asks for what. Raises Unauthenticated, Forbidden, NotFound or InvalidInput."""
    caller, endpoint = plane.admit(request.model_name, head.credential)
    version = pin(endpoint.route, requests.version_of(request), head.version)
    sticky = head.session or caller.id or str(next(_ids))
    if endpoint.rules is not None:
        headers = head.headers()
        return Asked(
            caller, endpoint, version, sticky, head.timeout_ms, headers=headers, has_session=bool(head.session)
        )
    return Asked(caller, endpoint, version, sticky, head.timeout_ms, has_session=bool(head.session))


class Reading:
    """The reader of one request, for the data plane. trace: traceparent and tracestate. is_streamed: may have several
    answers.
    """

    __slots__ = ("_is_streamed", "_raw", "_request", "_shared", "_trace")

    def __init__(
        self, request: Message, raw: Raw, trace: tuple[str, str], shared: Shared | None, *, is_streamed: bool = False
    ) -> None:
        self._request = request
        self._raw = raw
        self._trace = trace
        self._shared = shared
        self._is_streamed = is_streamed

    def __call__(self, variant: Variant) -> Call:
        name = variant.key[0]
        if variant.route.settings.decoupled and not self._is_streamed:
            raise Unsupported(
                "ModelInfer RPC doesn't support models with decoupled transaction policy: "
                f"model '{name}' gives several answers, use ModelStreamInfer"
            )
        call = requests.read(self._request, self._raw, name, variant.route.signature, self._shared)
        call.traceparent, call.tracestate = self._trace
        return call


class Infer:
    """The handler of ModelInfer."""

    def __init__(self, plane: DataPlane, regions: Regions | None = None) -> None:
        self._plane = plane
        self._regions = regions

    async def answer(self, data: bytes, context: Any) -> bytes:
        """Raises SerinusErrors. A client that leaves cancels this coroutine, and the replica is told.

        Who answered stands in the trailing metadata: leading ones would be one more turn of gRPC's queue a call.
        """
        head = heads.read(context.invocation_metadata(), context.time_remaining())
        request, raw = wire.infer_request(data)
        asked = asked_of(self._plane, head, request)
        shared = self._regions.of(asked.caller.id) if self._regions is not None else None
        done = await self._plane.infer(asked, Reading(request, raw, head.trace, shared))
        context.set_trailing_metadata(answers.arm_metadata(done))
        return b"".join(answers.parts_of(done))
