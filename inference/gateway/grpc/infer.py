"""ModelInfer: one request, one answer. The one path of this door where microseconds count, so callbacks and no task.

What a call's head and its model's name say (endpoint, caller, deadline) is found out once for the head's very bytes, and
holds for as long as the routing table and the credential do.
"""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

from inference.errors import InvalidInput, Malformed, SerinusError, Unsupported
from inference.gateway.awaiting import Done
from inference.gateway.bodies import Held
from inference.gateway.calls import Call
from inference.gateway.choosing import Asked, pin
from inference.gateway.dataplane import DataPlane
from inference.gateway.flights import Flight
from inference.gateway.grpc import answers, requests, wire
from inference.gateway.grpc.exchange import Body, Exchange
from inference.gateway.grpc.heads import Head
from inference.gateway.grpc.large import Large
from inference.gateway.grpc.wire import Message, Raw
from inference.gateway.shared_memory import Shared
from inference.gateway.table import Snapshot, Variant
from inference.protocol.messages import Answer

if TYPE_CHECKING:
    from inference.gateway.grpc.door import Door
    from inference.gateway.grpc.spoken import Spoken
    from inference.gateway.http2.machine import Machine
    from inference.gateway.http2.streams import Stream

LATE_S = 0.005  # a message that took longer to come has used up some of its deadline
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


class Known:
    """What a head and a model's name and version say, as of one routing table."""

    __slots__ = ("asked", "model", "shared", "snapshot", "version")

    def __init__(self, door: Door, head: Head, request: Message) -> None:
        self.snapshot: Snapshot = door.plane.table.now
        self.model: str = request.model_name
        self.version: str = request.model_version
        self.asked = asked_of(door.plane, head, request)
        self.shared: Shared | None = door.shared_of(self.asked.caller)


def known(door: Door, spoken: Spoken, request: Message) -> Known:
    """Raises as `asked_of`."""
    found: Known | None = spoken.asked
    if (
        found is None
        or found.snapshot is not door.plane.table.now
        or found.model != request.model_name
        or found.version != request.model_version
        or found.asked.caller.expires_at_unix_s <= time.time()
    ):
        found = spoken.asked = Known(door, spoken.head, request)
    return found


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


def read(data: Body) -> tuple[Message, Raw]:
    """A message and its raw tensors. Raises Malformed."""
    return data.read() if type(data) is Large else wire.infer_request(data)  # type: ignore[arg-type]


class InferExchange(Exchange):
    """One call of ModelInfer."""

    __slots__ = ("_flight", "_memory")
    is_tensors = True

    def __init__(self, door: Door, machine: Machine, stream: Stream, spoken: Spoken) -> None:
        super().__init__(door, machine, stream, spoken)
        self._flight: _Flying | None = None
        self._memory: Held | None = None

    def message(self, data: Body, held: Held | None) -> None:
        if self._flight is not None:
            raise Malformed("ModelInfer takes one message")
        self._memory = held
        plane, spoken = self.door.plane, self.spoken
        request, raw = read(data)
        found = known(self.door, spoken, request)
        asked = found.asked
        if not (asked.has_session or asked.caller.id):
            asked = replace(asked, sticky=str(next(_ids)))
        late_s = self.machine.now - self.opened_at
        if spoken.timeout_s is not None and late_s > LATE_S:
            asked = replace(asked, timeout_ms=max(1, asked.timeout_ms - int(late_s * 1e3)))
        flying = self._flight = _Flying(plane, self)
        try:
            plane.start(flying, asked, Reading(request, raw, spoken.head.trace, found.shared))
        except BaseException:
            flying.has_ended = True
            raise

    def ended(self) -> None:
        if self._flight is None and not self.is_done and self._need < 0 and not self._lead:
            self.fail(Malformed("the call has no message"))
        super().ended()

    def drop(self) -> None:
        flight = self._flight
        if flight is not None and not flight.has_ended:
            self.door.plane.abandon(flight)

    def _done(self) -> None:
        super()._done()
        self._flight = None
        if self._memory is not None:
            self._memory.release()
            self._memory = None


class _Flying(Flight):
    """One call's request, on its way."""

    __slots__ = ("_exchange", "_plane")

    def __init__(self, plane: DataPlane, exchange: InferExchange) -> None:
        super().__init__()
        self._plane = plane
        self._exchange = exchange

    def answered(self, answer: Answer, body: memoryview) -> None:
        if not answer.final:
            self._plane.abandon(self)
            name = self.endpoint.route.name
            self._exchange.fail(InvalidInput(f"model '{name}' gives several answers: ask for a stream"))
            return
        self._plane.answered(self, answer)
        try:
            feedback = self._plane.feedback.of(self) if self.endpoint.route.steering is not None else ""
            done = Done(self.call, self.variant, answer, body, feedback)
            self._exchange.answer(answers.parts_of(done), answers.trailers_of(done))
        except SerinusError as error:
            self._exchange.fail(error)
        except Exception:  # noqa: BLE001 (logged in full; the client gets one fixed sentence)
            self._exchange.broke()

    def failed(self, error: SerinusError) -> None:
        self._exchange.fail(error)
