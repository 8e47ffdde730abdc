"""What a replica may say about lent blocks, and what ends its connection."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import msgspec
import pytest

from inference.errors import SerinusError
from inference.gateway.calls import Call
from inference.gateway.connections import Link, Pool
from inference.gateway.flights import Flight
from inference.gateway.replica_wire import Wire
from inference.protocol import frames
from inference.protocol.messages import Answer, Fault, Hand, Hello, Mapped, TensorHeader
from inference.protocol.routes import ReplicaRoute

MIB = 1 << 20


class Transport:
    """Keeps what was written; `is_cut` once it was aborted."""

    def __init__(self) -> None:
        self.written = b""
        self.is_cut = False

    def is_closing(self) -> bool:
        return self.is_cut

    def write(self, data: bytes) -> None:
        self.written += data

    def writelines(self, parts: list[bytes]) -> None:
        self.written += b"".join(parts)

    def abort(self) -> None:
        self.is_cut = True


class Asking(Flight):
    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.call = Call("", [TensorHeader("x", "UINT8", [size], size)], [bytes([7]) * size])
        self.seen: list[memoryview] = []

    def answered(self, answer: Answer, body: memoryview) -> None:
        self.seen.append(body)

    def failed(self, error: SerinusError) -> None:
        raise AssertionError(error)


class Wired:
    """A link over a transport of ours, greeted by a replica that takes blocks."""

    def __init__(self) -> None:
        self.link = Link(ReplicaRoute("r1", 1, "unix:/nowhere"), Pool())
        cast("Any", self.link._task).cancel()  # it would connect
        self.wire = Wire(self.link)
        self.transport = Transport()
        self.wire.connection_made(cast("asyncio.BaseTransport", self.transport))
        self.link._wire = self.wire
        self.says(Hello("r1", 1, "m", 1, 64, takes_blocks=True))

    def says(self, message: msgspec.Struct, body: bytes = b"") -> None:
        data = frames.encode(message, body)
        self.wire.get_buffer(-1)[: len(data)] = data
        self.wire.buffer_updated(len(data))


@pytest.fixture
async def wired() -> Wired:
    return Wired()


async def test_a_descriptor_that_was_not_offered_is_not_handed_over(wired: Wired) -> None:
    wired.says(Hand(1))
    assert wired.transport.is_cut


async def test_an_answer_in_a_room_that_was_not_given_ends_the_connection_and_not_the_request(wired: Wired) -> None:
    flight = Asking()
    wired.link.send(flight, 1000)
    wired.says(Answer(flight.number, [TensorHeader("y", "FP32", [1], 4)], 1, 0, 0, is_in_room=True))
    assert wired.transport.is_cut
    assert wired.wire.pending == {flight.number: flight}  # the loss of the connection ends it
    assert not flight.has_ended


async def test_what_is_said_after_an_offer_waits_for_the_descriptor(wired: Wired) -> None:
    assert wired.link.memory(1 << 20, 0) is not None
    await asyncio.sleep(0)
    offered = len(wired.transport.written)
    assert offered > 0
    wired.link.send(Asking(), 1000)
    await asyncio.sleep(0)
    assert len(wired.transport.written) == offered
    wired.says(Mapped(77))  # of no block: it is recalled, and that waits too
    await asyncio.sleep(0)
    assert len(wired.transport.written) == offered
    assert wired.link.lender.mapped == set()


async def test_a_connection_that_is_closing_is_offered_nothing_and_harms_no_body(wired: Wired) -> None:
    wired.transport.abort()
    body = wired.link.memory(1 << 20, 0)
    assert body is not None
    assert wired.link.lender.place([body]) == (0, 0)


async def test_a_lost_connection_gives_up_its_blocks(wired: Wired) -> None:
    assert wired.link.memory(1 << 20, 0) is not None
    wired.says(Mapped(1))
    assert wired.link.lender.mapped == {1}
    wired.wire.connection_lost(None)
    assert wired.link.lender.mapped == set()
    assert wired.link.memory(1 << 20, 0) is None


def numbers_of(wired: Wired) -> list[int]:
    return [block.number for block in wired.link.lender._blocks]


async def large_after_another(wired: Wired) -> Asking:
    """A large request under way whose bytes were copied into a block; the one before it had to use the socket."""
    first = Asking(MIB)
    wired.link.send(first, 1000)
    assert first.lent is None
    await asyncio.sleep(0)
    assert len(wired.transport.written) > MIB
    assert numbers_of(wired) == [1]
    wired.says(Answer(first.number, [TensorHeader("y", "UINT8", [1], 1)], 1, 0, 0), b"1")
    wired.link.lender.mapped.add(1)
    wired.wire._offered = None  # its descriptor was handed over
    flight = Asking(MIB)
    before = len(wired.transport.written)
    wired.link.send(flight, 1000)
    await asyncio.sleep(0)
    assert len(wired.transport.written) - before < 200
    assert flight.lent == flight.call.body[0]
    return flight


async def test_a_large_body_from_elsewhere_is_copied_into_a_block_once_there_is_one(wired: Wired) -> None:
    flight = await large_after_another(wired)
    wired.says(Answer(flight.number, [TensorHeader("y", "UINT8", [1], 1)], 1, 0, 0), b"1")
    assert flight.lent is None
    again = Asking(MIB)
    wired.link.send(again, 1000)
    assert again.lent is not None
    assert numbers_of(wired) == [1]


async def test_a_copy_that_may_still_be_read_costs_its_block(wired: Wired) -> None:
    flight = await large_after_another(wired)
    wired.link.forget(flight)
    assert flight.lent is None
    assert numbers_of(wired) == []


async def test_a_fault_costs_the_block_of_a_copy(wired: Wired) -> None:
    flight = await large_after_another(wired)
    failed: list[SerinusError] = []
    wired.link._pool.on_failed = lambda _flight, error: failed.append(error)
    wired.says(Fault(flight.number, "model_failed", "it broke"))
    assert [error.code for error in failed] == ["model_failed"]
    assert numbers_of(wired) == []


async def test_a_copy_under_way_is_not_written_over_by_the_next(wired: Wired) -> None:
    flight = await large_after_another(wired)
    other = Asking(MIB)
    other.call.body[0] = bytes(MIB)
    wired.link.send(other, 1000)
    assert other.lent is None  # no other block is mapped yet
    assert flight.lent == flight.call.body[0]
    assert numbers_of(wired) == [1, 2]
