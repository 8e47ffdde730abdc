"""What a replica may say about calls, and what becomes of them: bounds, whose they are, and who ends them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from inference.errors import SerinusError
from inference.gateway import model_calls
from inference.gateway.calls import Call
from inference.gateway.connections import Link, Pool
from inference.gateway.dataplane import DataPlane
from inference.gateway.flights import Flight
from inference.gateway.replica_wire import Wire
from inference.gateway.table import Table
from inference.gateway.telemetry import Telemetry
from inference.protocol import frames, routes
from inference.protocol.messages import (
    MAX_CALLS,
    MAX_HOPS,
    Answer,
    CallModel,
    Cancel,
    Fault,
    Hello,
    Infer,
    Pause,
    Resume,
    TensorHeader,
    ToReplica,
)
from inference.protocol.oip import Signature, TensorSpec
from inference.protocol.routes import EndpointRoute, ReplicaRoute, RoutingTable, VariantRoute
from inference.protocol.settings import RuntimeSettings

SPEC = TensorSpec("x", "FP32", [-1, 2])
X = TensorHeader("x", "FP32", [1, 2], 8)


class Transport:
    """What was said, as messages."""

    def __init__(self) -> None:
        self._decoder: frames.Decoder[ToReplica] = frames.Decoder(ToReplica)
        self.said: list[Any] = []
        self.is_cut = False

    def is_closing(self) -> bool:
        return self.is_cut

    def write(self, data: bytes) -> None:
        self.said += [message for message, _ in self._decoder.feed(bytes(data))]

    def writelines(self, parts: list[bytes]) -> None:
        self.write(b"".join(parts))

    def abort(self) -> None:
        self.is_cut = True


class Asking(Flight):
    """A client's request that is under way at the calling model."""

    def __init__(self, plane: DataPlane, name: str, left_s: float = 5.0) -> None:
        super().__init__()
        self.endpoint = plane.table.now.endpoints[name]
        self.variant = self.endpoint.variants[1]
        self.call = Call("", [X], [bytes(8)], traceparent="00-t")
        self.key, self.deadline = "k", time.monotonic() + left_s

    def answered(self, answer: Answer, body: memoryview) -> None: ...

    def failed(self, error: SerinusError) -> None: ...


class Place:
    """A plane whose links are over transports of ours: `caller` may call, `called` is its team's, `graph` runs no code."""

    def __init__(self, folder: Path) -> None:
        self.pool = Pool()
        self.table = Table(self.pool, folder / "routes.json")
        self.plane = DataPlane(self.table, self.pool, Telemetry())
        python = [("caller", "home", "python", {}), ("many", "home", "python", {"decoupled": True})]
        others = [("called", "home", "onnx", {}), ("theirs", "away", "onnx", {}), ("nobodys", "", "python", {})]
        self.table.accept(routes.encode(RoutingTable(1, [_endpoint(*one) for one in python + others])))
        self.wires: dict[str, tuple[Wire, Transport]] = {}
        for name, endpoint in self.table.now.endpoints.items():
            self.wires[name] = _wired(name, endpoint.variants[1].links[0])

    def ask(self, name: str = "caller", left_s: float = 5.0) -> Asking:
        flight = Asking(self.plane, name, left_s)
        flight.variant.links[0].send(flight, 1000)
        return flight

    def says(self, name: str, message: msgspec.Struct, body: bytes = b"") -> None:
        data, wire = frames.encode(message, body), self.wires[name][0]
        wire.get_buffer(-1)[: len(data)] = data
        wire.buffer_updated(len(data))

    def call(self, parent: Flight, model: str = "called", number: int = 1, name: str = "caller", **more: Any) -> None:
        given = {"version": 0, "timeout_ms": 3000, "tensors": [X], "parents": [parent.number], **more}
        self.says(name, CallModel(number, model=model, **given), bytes(8))

    async def heard(self, name: str, kind: type[Any] | tuple[type[Any], ...]) -> list[Any]:
        await asyncio.sleep(0.001)
        return [one for one in self.wires[name][1].said if isinstance(one, kind)]

    async def refused(self) -> Fault:
        (found,) = await self.heard("caller", Fault)
        assert not self.wires["caller"][0].calls
        return cast("Fault", found)

    def close(self) -> None:
        self.plane.flights.fail_all(SerinusError())


def _endpoint(name: str, team: str, platform: str, settings: dict[str, Any]) -> EndpointRoute:
    signature = Signature([SPEC], [TensorSpec("y", "FP32", [-1, 2])], 4, platform=platform)
    replica = ReplicaRoute(name, 1, f"unix:/nowhere/{name}")
    variant = VariantRoute(1, "primary", 10_000, signature, [replica], RuntimeSettings(**settings))
    return EndpointRoute(name, name, "s", False, 4000, 1024, [variant], team=team)


def _wired(name: str, link: Link) -> tuple[Wire, Transport]:
    cast("Any", link._task).cancel()  # it would connect
    wire, transport = Wire(link), Transport()
    wire.connection_made(cast("asyncio.BaseTransport", transport))
    link._wire = wire
    data = frames.encode(Hello(name, 1, name, 1, 64))
    wire.get_buffer(-1)[: len(data)] = data
    link._task = cast("Any", SimpleNamespace(cancel=lambda: None))
    wire.buffer_updated(len(data))
    return wire, transport


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    found = Place(tmp_path)
    yield found
    found.close()


async def test_a_call_is_a_request_of_its_own_with_its_callers_time_key_and_trace(place: Place) -> None:
    parent = place.ask(left_s=2.0)
    place.call(parent, request_id="r", parameters={"p": 1})
    (infer,) = await place.heard("called", Infer)
    assert (infer.key, infer.traceparent, infer.request_id, infer.parameters) == ("k", "00-t", "r", {"p": 1})
    assert infer.hops == MAX_HOPS - 1
    assert 1500 < infer.timeout_ms <= 2000
    place.says("called", Answer(infer.id, [TensorHeader("y", "FP32", [1, 2], 8)], 1, 0, 0), bytes(8))
    (answer,) = await place.heard("caller", Answer)
    assert (answer.id, answer.final, answer.tensors[0].name) == (1, True, "y")
    assert not place.wires["caller"][0].calls
    assert len(place.plane.flights) == 0


@pytest.mark.parametrize("model", ["theirs", "nobodys", "unknown"])
async def test_only_endpoints_of_the_same_team_are_there(place: Place, model: str) -> None:
    place.call(place.ask(), model)
    found = await place.refused()
    assert (found.code, found.message) == ("not_found", f"Request for unknown model: '{model}' is not found")


async def test_an_endpoint_that_says_no_team_calls_nobody(place: Place) -> None:
    place.call(place.ask("nobodys"), "nobodys", name="nobodys")
    (found,) = await place.heard("nobodys", Fault)
    assert found.code == "not_found"


async def test_a_model_that_runs_no_code_ends_its_connection_by_calling(place: Place) -> None:
    place.call(place.ask("called"), "caller", name="called")
    assert place.wires["called"][1].is_cut
    assert await place.heard("caller", Infer) == []


async def test_a_call_without_a_request_under_way_goes_nowhere(place: Place) -> None:
    parent = place.ask()
    place.says("caller", Answer(parent.number, [], 1, 0, 0))
    place.call(parent)
    assert (await place.refused()).code == "cancelled"
    assert await place.heard("called", Infer) == []


async def test_a_number_that_is_used_twice_ends_the_connection(place: Place) -> None:
    parent = place.ask()
    place.call(parent)
    place.call(parent)
    assert place.wires["caller"][1].is_cut


async def test_calls_in_flight_are_bounded_in_number_and_bytes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = place.ask()
    for number in range(MAX_CALLS):
        place.call(parent, number=number)
    place.call(parent, number=MAX_CALLS)
    assert [one.code for one in await place.heard("caller", Fault)] == ["overloaded"]
    place.says("caller", Cancel(0))
    monkeypatch.setattr(model_calls, "MAX_CALL_BYTES", 8 * (MAX_CALLS - 1))
    place.call(parent, number=MAX_CALLS)
    assert [one.code for one in await place.heard("caller", Fault)] == ["overloaded"] * 2
    assert len(await place.heard("called", Cancel)) == 1


async def test_no_deeper_than_the_hops_allow(place: Place) -> None:
    parent = place.ask()
    message, wire = CallModel(1, [], "m", 0, 1, []), place.wires["caller"][0]
    came_from: Flight = Asking(place.plane, "many")
    for _ in range(MAX_HOPS):
        came_from = model_calls.ModelCall(place.plane, wire, message, [came_from])
    parent.origin = came_from
    assert parent.hops == 0
    place.call(parent)
    assert (await place.refused()).code == "unsupported"


async def test_a_request_that_holds_the_only_instance_does_not_wait_for_it(place: Place) -> None:
    place.call(place.ask(), "caller")
    assert (await place.refused()).code == "unsupported"
    place.call(place.ask("many"), "many", name="many", many=True)  # it may take several at once
    assert len(await place.heard("many", Infer)) == 2


async def test_who_wants_one_answer_is_not_given_many(place: Place) -> None:
    place.call(place.ask(), "many")
    assert (await place.refused()).code == "unsupported"


async def test_answers_of_a_decoupled_model_are_passed_on_and_held_back(place: Place) -> None:
    place.call(place.ask(), "many", many=True)
    (infer,) = await place.heard("many", Infer)
    part = Answer(infer.id, [TensorHeader("y", "FP32", [1, 2], 8)], 1, 0, 0, final=False)
    for _ in range(2):
        place.says("many", part, bytes(8))
    place.says("caller", Pause(1))
    place.says("caller", Resume(1))
    assert [type(one) for one in await place.heard("many", (Pause, Resume))] == [Pause, Resume]
    place.says("many", Answer(infer.id, [], 1, 0, 0))
    assert [one.final for one in await place.heard("caller", Answer)] == [False, False, True]


async def test_a_call_ends_when_all_its_callers_have_left(place: Place) -> None:
    one, two = place.ask(), place.ask()
    place.call(one, parents=[one.number, two.number])
    one.variant.links[0].forget(one)
    assert await place.heard("called", Cancel) == []
    two.variant.links[0].forget(two)
    assert len(await place.heard("called", Cancel)) == 1
    assert (await place.refused()).code == "cancelled"


async def test_calls_end_with_the_callers_connection(place: Place) -> None:
    place.call(place.ask())
    place.wires["caller"][0].connection_lost(None)
    assert len(await place.heard("called", Cancel)) == 1
    assert not place.wires["caller"][0].calls
    assert len(place.plane.flights) == 0


async def test_a_called_replica_that_fails_is_told_to_the_model(place: Place) -> None:
    place.call(place.ask())
    (infer,) = await place.heard("called", Infer)
    place.says("called", Fault(infer.id, "model_failed", "secret path /srv/x"))
    found = await place.refused()
    assert (found.code, found.message) == ("model_failed", "The model raised an error.")


async def test_a_deadline_that_has_passed_starts_nothing(place: Place) -> None:
    place.call(place.ask(left_s=-1))
    assert (await place.refused()).code == "deadline_exceeded"
    assert await place.heard("called", Infer) == []


@pytest.mark.parametrize(
    "more",
    [{"tensors": [TensorHeader("x", "FP32", [1, 2], -8)]}, {"tensors": [TensorHeader("x", "FP32", [-1, 2], 8)]},
     {"tensors": [TensorHeader("x", "WHAT", [1, 2], 8)]}, {"tensors": [X, X]}, {"tensors": []}, {"outputs": ["z"]},
     {"parameters": {"triton_x": 1}}, {"request_id": "r" * 300}, {"outputs": ["y"] * 5000}, {"version": 9}],
    ids=str,
)  # fmt: skip
async def test_what_does_not_fit_is_refused_as_at_any_door(place: Place, more: dict[str, Any]) -> None:
    place.call(place.ask(), **more)
    assert (await place.refused()).code in {"invalid_input", "malformed", "not_found"}
    assert not place.wires["caller"][1].is_cut
    assert await place.heard("called", Infer) == []
