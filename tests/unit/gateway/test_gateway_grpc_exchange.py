"""One call's messages out of DATA frames and into them; what it holds, waits for and gives back."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.errors import NotFound
from inference.gateway.bodies import HELD_BODIES, Bodies
from inference.gateway.grpc import wire
from inference.gateway.grpc.exchange import MESSAGE_IDLE_S, Exchange
from inference.gateway.grpc.large import LEAST_BYTES
from inference.gateway.grpc.spoken import Spoken
from inference.gateway.grpc.tasks import MAX_WAITING, StreamExchange, TaskExchange
from inference.gateway.http2 import frames
from inference.gateway.http2.frames import Setting
from inference.gateway.http2.limits import STREAM_WINDOW
from tests.support.http2_peer import GRPC, POST, Peer, begun, data, read_frames, taken

LIMIT = 4 << 20


class Collecting(Exchange):
    """Keeps the messages that come."""

    is_tensors = True

    def __init__(self, *given):
        super().__init__(*given)
        self.messages, self.helds, self.dropped = [], [], 0

    def message(self, data, held):
        self.messages.append(data if isinstance(data, bytes) else data.read())
        self.helds.append(held)

    def drop(self):
        self.dropped += 1
        for held in self.helds:
            if held is not None:
                held.release()


class Desk:
    """What the calls of these tests have for a door."""

    def __init__(self, make=Collecting, encoding=b"identity", timeout_s=None):
        self.max_message_bytes, self.bodies, self.running, self.calls, self.told = LIMIT, Bodies(LIMIT), 0, [], []
        self.spoken = Spoken(None)
        self.spoken.encoding, self.spoken.timeout_s = encoding, timeout_s
        self.make = make
        self.memory = lambda _spoken, _head, size: memoryview(bytearray(size))

    def refused(self, error):
        self.told.append(error.code)

    def opened(self, machine, stream):
        self.running += 1
        self.calls.append(self.make(self, machine, stream, self.spoken))
        return self.calls[-1]


def called(desk, now=1.0):
    machine, _ = begun(desk, now=now)
    peer = Peer()
    machine.receive(peer.head(1, [*POST, *GRPC]), now)
    return machine, desk.calls[0], peer


def lead(size, flag=0):
    return bytes([flag]) + size.to_bytes(4, "big")


def status(machine):
    """The grpc-status that was said last; None for none."""
    peer = Peer()
    found = [peer.fields(one) for one in read_frames(taken(machine)) if one.kind == frames.HEADERS]
    return found[-1].get("grpc-status") if found else None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.binary(max_size=90), max_size=6),
    st.lists(st.integers(0, 40), min_size=1, max_size=30),
    st.integers(-1, 5),
)
def test_messages_lie_across_frames_as_they_like(messages, sizes, padding):
    machine, call, _ = called(Desk())
    said, at, turn = b"".join(lead(len(one)) + one for one in messages), 0, 0
    while at < len(said):
        size = sizes[turn % len(sizes)] or 1
        machine.receive(data(1, said[at : at + size], padding=padding), 1.0)
        at, turn = at + size, turn + 1
    assert call.messages == messages
    assert not call.is_done


def tensors(size):
    request = wire.INFER_REQUEST(model_name="m")
    request.inputs.add(name="x", datatype="UINT8", shape=[size])
    request.raw_input_contents.append(bytes(range(256)) * (size // 256))
    return request.SerializeToString()


def test_a_large_message_is_granted_its_length_and_counted_until_it_is_over():
    desk = Desk()
    machine, call, _ = called(desk)
    body = tensors(3 << 20)
    machine.receive(data(1, lead(len(body)) + body[:1000]), 1.0)
    granted = [one for one in read_frames(taken(machine)) if one.kind == frames.WINDOW_UPDATE]
    assert [one.number for one in granted] == [1]
    assert machine.streams[1].in_window >= len(body) - 1000
    for at in range(1000, len(body), 1 << 19):
        machine.receive(data(1, body[at : at + (1 << 19)]), 1.0)
    request, raw = call.messages[0]
    assert (request.model_name, bytes(raw[0])) == ("m", bytes(range(256)) * (3 << 12))
    assert desk.bodies.held_bytes == len(body)
    machine.receive(frames.rst_stream(1, frames.Code.CANCEL), 9.0)
    assert (call.dropped, desk.bodies.held_bytes, desk.running) == (1, 0, 0)


def test_what_has_come_of_a_message_is_given_back_however_its_call_ends():
    for end in (frames.rst_stream(1, frames.Code.CANCEL), data(1, ends=True), b"lost"):
        desk = Desk()
        machine, call, _ = called(desk)
        machine.receive(data(1, lead(LEAST_BYTES) + bytes(200_000)), 1.0)
        machine.receive(end, 1.0) if end != b"lost" else machine.lost()
        assert (call.is_done, desk.bodies.held_bytes, desk.running) == (True, 0, 0)


def test_messages_of_all_calls_share_what_is_set_aside():
    desk = Desk()
    machine, _, peer = called(desk)
    desk.bodies.held_bytes = LIMIT * HELD_BODIES - 100_000
    machine.receive(data(1, lead(LEAST_BYTES) + bytes(200_000)), 1.0)
    assert status(machine) == "14"
    desk.bodies.held_bytes = 0
    machine.receive(peer.head(3, [*POST, *GRPC]) + data(3, lead(70_000)) + data(3, bytes(70_000)), 1.0)
    assert len(desk.calls[1].messages) == 1


def test_a_call_lets_go_of_its_memory_without_the_collector():
    desk, kept = Desk(), []

    class Room(bytearray):
        pass

    def place(_spoken, _head, size):
        room = Room(size)
        kept.append(weakref.ref(room))
        return memoryview(room)

    desk.memory = place
    machine, call, _ = called(desk)
    body = tensors(1 << 19)
    gc.disable()
    try:
        machine.receive(data(1, lead(len(body)) + body[:300_000]), 1.0)
        machine.receive(data(1, body[300_000:]), 1.0)
        call.messages.clear()
        assert kept
        assert kept[0]() is None
    finally:
        gc.enable()


def test_a_message_that_stays_away_ends_its_call_and_a_deadline_does():
    machine, call, _ = called(Desk())
    machine.receive(data(1, lead(50) + b"some"), 5.0)
    call.beat(5.0 + MESSAGE_IDLE_S - 1)
    assert not call.is_done
    call.beat(5.0 + MESSAGE_IDLE_S + 1)
    assert status(machine) == "4"
    machine, call, _ = called(Desk(timeout_s=2.0))
    call.beat(2.5)
    assert not call.is_done
    call.beat(3.5)
    assert status(machine) == "4"


def test_what_is_answered_early_takes_no_more():
    machine, call, _ = called(Desk())
    machine.receive(data(1, lead(LIMIT + 1)), 1.0)
    sent = read_frames(taken(machine))
    assert [one.kind for one in sent][-2:] == [frames.HEADERS, frames.RST_STREAM]
    machine.receive(data(1, bytes(100)), 1.0)
    assert (call.messages, machine.is_over) == ([], False)


# -- streams -----------------------------------------------------------------------------------------------------------


def streaming(handler):
    return Desk(lambda *given: StreamExchange(*given, handler))


async def turns(times=3):
    for _ in range(times):
        await asyncio.sleep(0)


async def test_what_is_not_read_is_not_asked_for():
    goes = asyncio.Event()

    async def reading(call):
        await goes.wait()
        while (found := await call.read()) is not None:
            found.release()

    desk = streaming(reading)
    machine, _call, _ = called(desk)
    for _ in range(16):
        machine.receive(data(1, lead(65_531 - 5) + bytes(65_531 - 5)), 1.0)
    await turns()
    assert not [one for one in read_frames(taken(machine)) if one.kind == frames.WINDOW_UPDATE]
    goes.set()
    await turns()
    granted = [one for one in read_frames(taken(machine)) if one.kind == frames.WINDOW_UPDATE and one.number == 1]
    assert granted
    assert machine.streams[1].in_window > STREAM_WINDOW // 2
    machine.receive(data(1, ends=True), 1.0)
    await turns()
    assert (status(machine), desk.running) == ("0", 0)


async def test_empty_messages_that_nobody_reads_are_bounded():
    async def reading(_call):
        await asyncio.Event().wait()

    desk = streaming(reading)
    machine, call, _ = called(desk)
    await turns()
    for _ in range(MAX_WAITING // 1000 + 1):
        machine.receive(data(1, lead(0) * 1000), 1.0)
    await turns()
    assert (status(machine), call.is_done, desk.running) == ("14", True, 0)


async def test_a_writer_waits_for_its_reader():
    written = []

    async def writing(call):
        for number in range(20):
            await call.write([bytes(40_000)])
            written.append(number)

    machine, _, _ = called(streaming(writing))
    machine.receive(frames.settings({Setting.INITIAL_WINDOW_SIZE: 0}), 1.0)
    for _ in range(30):
        taken(machine)
        await turns()
    assert len(written) == 1
    machine.receive(frames.window_update(0, 1 << 30) + frames.window_update(1, 1 << 30), 1.0)
    body = b""
    for _ in range(60):
        body += b"".join(one.payload for one in read_frames(taken(machine)) if one.kind == frames.DATA)
        await turns()
    assert (len(written), len(body)) == (20, 20 * 40_005)


@pytest.mark.parametrize("wait_s", [0.0, 5.0])
async def test_a_handler_ends_with_its_call(wait_s):
    ended = asyncio.Event()

    async def handler(call):
        try:
            await call.read()
            await asyncio.sleep(wait_s)
            raise NotFound("gone")
        finally:
            ended.set()

    desk = streaming(handler)
    machine, call, _ = called(desk)
    await turns()
    machine.receive(data(1, lead(0)), 1.0)
    await turns()
    if wait_s:
        machine.receive(frames.rst_stream(1, frames.Code.CANCEL), 9.0)
    await asyncio.wait_for(ended.wait(), 5)
    await turns()
    assert (call.is_done, desk.running) == (True, 0)
    assert isinstance(call, TaskExchange)
    assert status(machine) == (None if wait_s else "5")
