"""Sequences behind two replicas, through all three doors of a real gateway: they stay together, and are lost with a word."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from websockets.sync.client import connect

from inference.protocol.routes import VariantRoute
from inference.protocol.settings import RuntimeSettings, SequenceSettings
from tests.support.gateway_house import MLP, Gateway, House, free_port, key, request, until

LOST = "The replica that held this sequence is gone: start the sequence anew."
NAMES = ("a", "b")
Ask = Callable[..., str]


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    found = House()
    for name in NAMES:
        found.replica(name).restart_s = 1.0  # long enough for the gateway's loss of it to be seen
    settings = RuntimeSettings(sequence=SequenceSettings())
    variant = VariantRoute(1, "primary", 10_000, MLP, [found.route(name) for name in NAMES], settings)
    gateway = found.gateway(SERINUS_GRPC_PORT=str(free_port()))
    found.publish(found.table([variant], keys=[key("all", "s2", ["*"]), key("other", "s3", ["*"])]))
    gateway.wait_live().wait_ready()
    until_ready(gateway, 2)
    yield found
    found.close()


def until_ready(gateway: Gateway, count: int) -> None:
    until(lambda: f"serinus_replicas_ready {count}.0" in gateway.get("/metrics").text, 10)


def by_rest(gateway: Gateway, parameters: dict[str, Any], secret: str = "all.s2") -> str:
    answer = gateway.post(key=f"ser_{secret}", json=request() | {"parameters": parameters})
    if answer.status_code == 200:
        return ""
    assert answer.status_code in {400, 503}
    return f"{answer.headers['x-error-code']}: {answer.json()['error']}"


def by_grpc(gateway: Gateway, parameters: dict[str, Any], secret: str = "all.s2") -> str:
    given = triton.InferInput("x", [1, 16], "FP32")
    given.set_data_from_numpy(np.zeros((1, 16), np.float32))
    headers = {"authorization": f"Bearer ser_{secret}"}
    with triton.InferenceServerClient(gateway.grpc_address) as client:
        try:
            client.infer("mlp", [given], headers=headers, **parameters)
        except triton.InferenceServerException as error:
            unavailable = error.status() == str(grpc.StatusCode.UNAVAILABLE)
            return f"{'sequence_lost' if unavailable else error.status()}: {error.message()}"
    return ""


def by_websocket(gateway: Gateway, parameters: dict[str, Any], secret: str = "all.s2") -> str:
    url = f"ws://127.0.0.1:{gateway.port}/v2/models/mlp/stream"
    with connect(url, subprotocols=["serinus.v1", f"serinus.key.ser_{secret}"]) as stream:  # type: ignore[list-item]
        stream.send(json.dumps(request(identity="1") | {"parameters": parameters}))
        answer = json.loads(stream.recv(10))
    return "" if "outputs" in answer else f"{answer['code']}: {answer['error']}"


DOORS = {"rest": by_rest, "grpc": by_grpc, "websocket": by_websocket}


def holder(house: House, number: int) -> str:
    """The replica that got the newest request of a sequence, which must have got all of it since its start."""
    got = {name: [one for one in replica.seen if one.sequence and one.sequence.id == number] for name, replica in house.replicas.items()}  # fmt: skip
    having = [name for name, seen in got.items() if seen]
    assert len(having) == 1
    return having[0]


def forget(house: House) -> None:
    for replica in house.replicas.values():
        replica.seen.clear()


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("letter", ["a", "ä", "漢", "🦀"])
def test_a_name_has_up_to_128_bytes(house: House, door: str, letter: str) -> None:
    """Of UTF-8, as Triton counts them; one more is refused at every door."""
    ask, gateway = DOORS[door], house.gateways[0]
    name = letter * (128 // len(letter.encode()))
    name += "." * (128 - len(name.encode()))
    assert ask(gateway, {"sequence_id": name, "sequence_start": True, "sequence_end": True}) == ""
    assert "'sequence_id' is longer than 128 bytes" in ask(gateway, {"sequence_id": f"{name}.", "sequence_start": True})
    assert {one.sequence.id for replica in house.replicas.values() for one in replica.seen[-1:] if one.sequence} >= {
        name
    }
    forget(house)


@pytest.mark.parametrize("door", DOORS)
def test_a_sequence_stays_with_its_replica_and_sequences_spread(house: House, door: str) -> None:
    ask, gateway = DOORS[door], house.gateways[0]
    forget(house)
    numbers = range(1, 13)
    for step in range(3):
        for number in numbers:
            parameters = {"sequence_id": number, "sequence_start": step == 0, "sequence_end": step == 2}
            assert ask(gateway, parameters) == ""
    assert {holder(house, number) for number in numbers} == set(NAMES)


def test_all_doors_and_connections_lead_to_the_same_replica(house: House) -> None:
    gateway = house.gateways[0]
    for number in range(100, 108):
        forget(house)
        assert by_rest(gateway, {"sequence_id": number, "sequence_start": True}) == ""
        for ask in DOORS.values():
            assert ask(gateway, {"sequence_id": number}) == ""
        holder(house, number)


@pytest.mark.parametrize("door", DOORS)
def test_a_lost_replica_ends_its_sequences_with_a_typed_error_until_they_start_anew(house: House, door: str) -> None:
    ask, gateway = DOORS[door], house.gateways[0]
    forget(house)
    numbers = range(200, 212)
    for number in numbers:
        assert ask(gateway, {"sequence_id": number, "sequence_start": True}) == ""
    held = {number: holder(house, number) for number in numbers}
    assert set(held.values()) == set(NAMES)
    house.loop.call_soon_threadsafe(house.replicas["a"].die)
    until_ready(gateway, 1)
    until_ready(gateway, 2)  # it is back, without the state
    told = {number: ask(gateway, {"sequence_id": number}) for number in numbers}
    assert told == {number: f"sequence_lost: {LOST}" if held[number] == "a" else "" for number in numbers}
    for number in numbers:
        assert ask(gateway, {"sequence_id": number, "sequence_start": True}) == ""
        assert ask(gateway, {"sequence_id": number, "sequence_end": True}) == ""


def test_one_keys_sequence_is_not_anothers(house: House) -> None:
    """They bear one id, but each has its own home: what one key starts, another one's request does not go on with."""
    gateway = house.gateways[0]
    homes = set()
    for number in range(300, 312):
        found = []
        for secret in ("all.s2", "other.s3"):
            forget(house)
            assert by_rest(gateway, {"sequence_id": number, "sequence_start": True}, secret) == ""
            found.append(holder(house, number))
        homes.add(tuple(found))
    assert {one != other for one, other in homes} == {True, False}
