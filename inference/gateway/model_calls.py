"""Models that call other models: a replica says so on the connection by which it was asked, and the gateway runs the call
as a request of its own behind the called endpoint.

The law: a call belongs to requests that are under way on that very connection. It goes to an endpoint of their team, has no
more time than they have, and ends when all their callers have left. What is wrong with it is told to the model that made
it, and is nobody else's trouble; but bytes that no honest model sends end the connection.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Protocol

import msgspec

from inference.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidInput,
    Malformed,
    NotFound,
    Overloaded,
    ReplicaLost,
    SerinusError,
    ServerError,
    Unsupported,
)
from inference.gateway import calls, codec
from inference.gateway.admission import Caller
from inference.gateway.calls import Call, InferBody, OutputBody
from inference.gateway.choosing import Asked
from inference.gateway.flights import Flight
from inference.gateway.replicas import unheld
from inference.protocol import frames
from inference.protocol.messages import (
    BACKGROUND,
    MAX_CALL_BYTES,
    MAX_CALLS,
    MAX_HOPS,
    Answer,
    CallModel,
    Cancel,
    Fault,
    Pause,
    Steer,
    TensorHeader,
)
from inference.protocol.oip import MAX_TENSORS

if TYPE_CHECKING:
    from inference.gateway.replica_wire import Wire
    from inference.gateway.replicas import Reader
    from inference.gateway.table import Endpoint, Table, Variant

log = logging.getLogger(__name__)
MAX_PARAMETERS = 64
CODE = "python"  # the platform of versions whose models may call others; each of them a person has approved
SMALL_BYTES = 64 << 10


class Plane(Protocol):
    """What a call asks of the data plane."""

    table: Table

    def start(self, flight: Flight, asked: Asked, reader: Reader) -> None: ...

    def answered(self, flight: Flight, answer: Answer) -> None: ...

    def abandon(self, flight: Flight) -> None: ...


class ModelCalls:
    """Of one gateway. What is under way on a connection stands at its wire."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    def said(self, wire: Wire, message: CallModel | Steer, body: memoryview) -> None:
        """Raises Malformed for what no honest replica says."""
        if isinstance(message, CallModel):
            self._begin(wire, message, body)
            return
        flight = wire.calls.get(message.id)
        if flight is None:
            return
        if isinstance(message, Cancel):
            del wire.calls[message.id]
            self._plane.abandon(flight)
        elif flight.link is not None:
            (flight.link.pause if isinstance(message, Pause) else flight.link.resume)(flight)

    def left(self, wire: Wire, parent: Flight | None) -> None:
        """The caller of `parent` has left; None: of everything on this connection, which has ended."""
        for number, flight in list(wire.calls.items()):
            if not isinstance(flight, ModelCall):
                continue
            flight.parents.discard(parent)
            if parent is not None and flight.parents:
                continue
            if wire.calls.pop(number, None) is not None:
                self._plane.abandon(flight)
                refuse(wire, number, Cancelled())

    def _begin(self, wire: Wire, message: CallModel, body: memoryview) -> None:
        parents = [flight for number in message.parents if (flight := wire.pending.get(number)) is not None]
        if any(parent.variant.route.signature.platform != CODE for parent in parents):
            raise Malformed("a model called another one that is not trusted to run code")
        if message.id in wire.calls:
            raise Malformed("a call's number was used again")
        try:
            self._start(wire, message, body, parents)
        except SerinusError as error:
            wire.calls.pop(message.id, None)
            refuse(wire, message.id, error)
        except Exception:
            log.exception("a model's call could not be set on its way")
            wire.calls.pop(message.id, None)
            refuse(wire, message.id, ServerError())

    def _start(self, wire: Wire, message: CallModel, body: memoryview, parents: list[Flight]) -> None:
        """1. Who calls, and whether it may. 2. Bounds. 3. The time that is left. 4. On its way as any other request."""
        if not parents:
            raise Cancelled("the request that this call is made for is not under way any more")
        origin = parents[0]
        endpoint = reachable(self._plane.table, origin.endpoint.route.team, message.model)
        if not origin.hops:
            raise Unsupported(f"calls of models by models go at most {MAX_HOPS} deep, and this one would go deeper")
        held = sum(sum(map(len, flight.call.body)) for flight in wire.calls.values())
        if len(wire.calls) >= MAX_CALLS or held + len(body) > MAX_CALL_BYTES:
            raise Overloaded("too many calls of other models are under way here", retry_after_s=1.0)
        left_ms = int((max(parent.deadline for parent in parents) - time.monotonic()) * 1e3)
        timeout_ms = min(left_ms, message.timeout_ms)
        if timeout_ms < 1:
            raise DeadlineExceeded
        flight = ModelCall(self._plane, wire, message, parents)
        caller = Caller(origin.key, frozenset())
        sticky = origin.asked.sticky if origin.asked is not None else origin.key
        asked = Asked(caller, endpoint, message.version or None, sticky, timeout_ms, timeout_ms if message.many else 0)
        flight.call = Call("", [], [])  # until it is read
        wire.calls[message.id] = flight
        self._plane.start(flight, asked, lambda variant: read(message, body, variant, origin))


class ModelCall(Flight):
    """A call under way. parents: the requests that it is made for, but those whose callers have left."""

    __slots__ = ("_many", "_number", "_plane", "_wire", "parents")
    is_call: ClassVar[bool] = True

    def __init__(self, plane: Plane, wire: Wire, message: CallModel, parents: Iterable[Flight]) -> None:
        super().__init__()
        self._plane = plane
        self._wire = wire
        self._number = message.id
        self._many = message.many
        self.parents: set[Flight | None] = set(parents)
        self.origin = next(iter(parents))

    def answered(self, answer: Answer, body: memoryview) -> None:
        if answer.final:
            self._plane.answered(self, answer)
            self._gone()
        elif not self._many:
            self._gone()
            self._plane.abandon(self)
            refuse(self._wire, self._number, several(self.endpoint.route.name))
            return
        head = frames.encode_head(msgspec.structs.replace(answer, id=self._number, is_in_room=False), len(body))
        with contextlib.suppress(ReplicaLost):  # then its model is told so there
            if len(body) <= SMALL_BYTES:
                self._wire.send(head + bytes(body))
            else:
                self._wire.send(head, body)

    def failed(self, error: SerinusError) -> None:
        self._gone()
        refuse(self._wire, self._number, error)

    def _gone(self) -> None:
        self._wire.calls.pop(self._number, None)


def refuse(wire: Wire, number: int, error: SerinusError) -> None:
    """Tells the model that made the call how it failed."""
    with contextlib.suppress(ReplicaLost):
        wire.send(frames.encode(Fault(number, error.code, error.message, error.retry_after_s)))


def reachable(table: Table, team: str, name: str) -> Endpoint:
    """The endpoint that a model of this team's may call by that name. Raises NotFound, in the same words whether there is
    none or it is another team's.
    """
    found = table.now.endpoints.get(name)
    if found is None or not team or found.route.team != team:
        raise NotFound(f"Request for unknown model: '{name[:128]}' is not found")
    return found


def read(message: CallModel, body: memoryview, variant: Variant, origin: Flight) -> Call:
    """The call, checked against the signature as what comes by the doors is. Raises InvalidInput, Malformed or Unsupported."""
    route, name = variant.route, message.model
    if route.settings.decoupled and not message.many:
        raise several(name)
    if variant.links and not unheld(variant, origin):
        raise Unsupported(
            f"model '{name}' is called in the course of its own request, and has no other instance that could answer"
        )
    if (
        len(message.tensors) > MAX_TENSORS
        or len(message.outputs) > MAX_TENSORS
        or len(message.parameters) > MAX_PARAMETERS
    ):
        raise InvalidInput(f"a request has at most {MAX_TENSORS} inputs and outputs, and {MAX_PARAMETERS} parameters")
    if len(message.request_id) > calls.MAX_ID_CHARS:
        raise InvalidInput(f"'id' is longer than {calls.MAX_ID_CHARS} characters")
    call, at = Call(message.request_id, [], []), 0
    for given in message.tensors:
        data = body[at : at + max(0, given.size_bytes)]
        at += len(data)
        codec.check_binary(data, given.datatype, codec.element_count(given.shape, given.name), given.name)
        call.tensors.append(TensorHeader(given.name, given.datatype, given.shape, len(data)))
        call.body.append(data)
    if at != len(body):
        raise Malformed(f"{len(body) - at} bytes belong to no input")
    outputs = [OutputBody(output) for output in message.outputs]
    calls.finish(call, InferBody([], message.request_id, _said(message), outputs), name, route.signature, binary=True)
    call.binary = None
    call.traceparent = message.traceparent or origin.call.traceparent
    call.tracestate = origin.call.tracestate
    if origin.call.priority == BACKGROUND:
        call.priority = BACKGROUND
    return call


def several(name: str) -> Unsupported:
    return Unsupported(f"model '{name}' is decoupled and gives any number of answers: call it with 'decoupled=True'")


def _said(message: CallModel) -> dict[str, str | int | float | bool]:
    """The parameters as a door would have them."""
    found = dict(message.parameters)
    if message.timeout_us:
        found["timeout"] = message.timeout_us
    if (sequence := message.sequence) is not None:
        found |= {"sequence_id": sequence.id, "sequence_start": sequence.start, "sequence_end": sequence.end}
    return found
