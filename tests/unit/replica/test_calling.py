"""The replica's end of a model's calls: what is said on the connection, and that each call ends once."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from inference.errors import DeadlineExceeded, NotFound, Overloaded, ReplicaLost, TooLarge
from inference.models.calling import Question
from inference.protocol.frames import Decoder
from inference.protocol.messages import (
    MAX_CALLS,
    Answer,
    CallModel,
    Cancel,
    Fault,
    FromReplica,
    Pause,
    Resume,
    TensorHeader,
)
from inference.replica import calling
from inference.replica.calling import AHEAD_HIGH, AHEAD_LOW, Calling

ASKED = Question("other", [("x", "FP32", np.ones(2, np.float32)), ("s", "BYTES", np.array([b"ab"], dtype=object))])


class Said:
    """A connection's end: the messages that were written."""

    def __init__(self) -> None:
        self._decoder: Decoder[FromReplica] = Decoder(FromReplica)
        self.messages: list[Any] = []
        self.bodies: list[bytes] = []
        self.calling = Calling(self.write)

    def write(self, *parts: bytes) -> None:
        for message, body in self._decoder.feed(b"".join(parts)):
            self.messages.append(message)
            self.bodies.append(bytes(body))


@pytest.fixture
async def said() -> Said:
    return Said()


async def turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def part(number: int, value: float = 0.0, *, final: bool = False) -> tuple[Answer, memoryview]:
    data = np.array([value], "<f4").tobytes()
    return Answer(number, [TensorHeader("y", "FP32", [1], 4)], 1, 0, 0, final), memoryview(data)


async def test_a_call_goes_out_whole_and_its_answer_comes_back(said: Said) -> None:
    told: list[Any] = []
    worker = threading.Thread(target=said.calling.call, args=(ASKED, [4, 5], 2.0, told.append))
    worker.start()
    worker.join()
    await turn()
    (message,) = said.messages
    assert isinstance(message, CallModel)
    assert (message.model, message.parents, message.timeout_ms) == ("other", [4, 5], 2000)
    assert [one.size_bytes for one in message.tensors] == [8, 6]
    assert said.bodies == [np.ones(2, "<f4").tobytes() + b"\x02\x00\x00\x00ab"]
    said.calling.received(*part(message.id, 3.0, final=True))
    assert [(name, kind, values.tolist()) for name, kind, values in told[0].outputs()] == [("y", "FP32", [3.0])]
    said.calling.received(*part(message.id, 4.0, final=True))
    assert len(told) == 1


async def test_a_fault_and_the_connections_end_are_errors(said: Said) -> None:
    told: list[Any] = []
    for _ in range(2):
        said.calling.call(ASKED, [1], 2.0, told.append)
    await turn()
    said.calling.received(Fault(said.messages[0].id, "not_found", "no such model"), memoryview(b""))
    said.calling.close()
    assert isinstance(told[0], NotFound)
    assert told[0].message == "no such model"
    assert isinstance(told[1], ReplicaLost)
    assert len(told) == 2
    with pytest.raises(ReplicaLost):
        said.calling.call(ASKED, [1], 2.0, told.append)


async def test_a_silent_gateway_costs_the_calls_time_and_no_more(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "GRACE_S", 0.02)
    told: list[Any] = []
    said.calling.call(ASKED, [1], 0.03, told.append)
    await asyncio.sleep(0.3)
    assert isinstance(told[0], DeadlineExceeded)
    assert said.messages[1:] == [Cancel(said.messages[0].id)]
    said.calling.received(*part(said.messages[0].id, final=True))
    assert len(told) == 1
    with pytest.raises(DeadlineExceeded):
        said.calling.call(ASKED, [1], 0.0, told.append)


async def test_who_leaves_is_told_nothing_more_and_the_gateway_is(said: Said) -> None:
    told: list[Any] = []
    line = said.calling.call(ASKED, [1], 2.0, told.append)
    await turn()
    line.leave()
    line.leave()
    await turn()
    assert said.messages[1:] == [Cancel(said.messages[0].id)]
    said.calling.received(*part(said.messages[0].id, final=True))
    assert told == []
    said.calling.call(ASKED, [1], 2.0, told.append).leave()  # before it went out
    await turn()
    assert len(said.messages) == 2


async def test_a_slow_reader_pauses_the_other_model(said: Said) -> None:
    told: list[Any] = []
    line = said.calling.call(ASKED, [1], 2.0, told.append)
    await turn()
    number = said.messages[0].id
    for _ in range(AHEAD_HIGH + 1):
        said.calling.received(*part(number))
    assert said.messages[1:] == [Pause(number)]
    for _ in range(AHEAD_HIGH + 1 - AHEAD_LOW):
        line.took()
    await turn()
    assert said.messages[2:] == [Resume(number)]
    assert len(told) == AHEAD_HIGH + 1


async def test_calls_are_bounded_in_number_and_bytes(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    for _ in range(MAX_CALLS):
        said.calling.call(ASKED, [1], 2.0, told.append)
    with pytest.raises(Overloaded):
        said.calling.call(ASKED, [1], 2.0, told.append)
    await turn()
    said.calling.received(*part(said.messages[0].id, final=True))
    said.calling.call(ASKED, [1], 2.0, told.append)
    monkeypatch.setattr(calling, "MAX_CALL_BYTES", 100)
    said.calling.received(*part(said.messages[1].id, final=True))
    with pytest.raises(Overloaded):
        said.calling.call(ASKED, [1], 2.0, told.append)
    monkeypatch.setattr(calling, "MAX_BODY_BYTES", 10)
    with pytest.raises(TooLarge):
        said.calling.call(ASKED, [1], 2.0, told.append)
