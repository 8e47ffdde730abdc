"""The heart of a WebSocket connection: pings, idleness, half-open peers, stalled readers; and its frames' envelopes."""

import asyncio
import socket

import pytest

from inference.errors import InvalidInput, Malformed
from inference.gateway import asking, envelopes, mappings, rfc6455, stream
from inference.protocol.messages import SequenceControl, TensorHeader
from inference.protocol.oip import Signature, TensorSpec


class Plane:
    draining = False


class Peer:
    """One connection over a real pair of sockets; what the client would read is `read`."""

    async def open(self, *, pings=True):
        self.own, theirs = socket.socketpair()
        self.own.setblocking(False)
        loop = asyncio.get_running_loop()
        self.transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, theirs)
        self.lost = []
        self.stream = stream.Stream(Plane(), self.transport, name="e", number=None, verb=None, on_lost=self.lost.append)
        self.stream.pings = pings
        return self

    async def read(self):
        await asyncio.sleep(0.02)
        try:
            return self.own.recv(1 << 16)
        except BlockingIOError:
            return None

    async def send(self, data):
        self.own.sendall(data)
        await asyncio.sleep(0.02)

    def close(self):
        self.transport.abort()
        self.own.close()


@pytest.fixture
async def peer():
    found = await Peer().open()
    yield found
    found.close()
    await asyncio.sleep(0.02)


PONG = bytes([0x8A, 0x80, 0, 0, 0, 0])
JSON_PING = b"\x81\x0f" + b'{"type":"ping"}'


async def test_a_silent_client_is_pinged_and_then_left(peer):
    start = peer.stream.socket.heard
    peer.stream.beat(start + 19)
    assert await peer.read() is None
    peer.stream.beat(start + 20)
    assert await peer.read() == b"\x89\x00" + JSON_PING
    peer.stream.beat(start + 21)
    assert await peer.read() is None, "one ping an interval"
    peer.stream.beat(start + 40)
    assert await peer.read() == rfc6455.close_frame(1001, "no pong")
    assert await peer.read() == b"", "who is not there is not waited for"
    assert peer.lost == [peer.stream]


async def test_any_pong_is_a_sign_of_life(peer):
    start = peer.stream.socket.heard
    peer.stream.beat(start + 20)
    await peer.read()
    await peer.send(PONG)
    assert peer.stream.socket.heard > start
    peer.stream.beat(peer.stream.socket.heard + 19)
    assert await peer.read() is None
    assert peer.stream.asked_at == start, "a pong is no request: the connection idles"


async def test_a_client_of_plain_websocket_is_pinged_by_the_protocol_alone():
    peer = await Peer().open(pings=False)
    peer.stream.beat(peer.stream.socket.heard + 20)
    assert await peer.read() == b"\x89\x00"
    peer.close()


async def test_a_connection_that_asks_nothing_is_closed_after_ten_minutes(peer):
    start = peer.stream.asked_at
    peer.stream.socket.heard = start + 590
    peer.stream.beat(start + 600)
    assert await peer.read() is None
    peer.stream.socket.heard = start + 600
    peer.stream.beat(start + 601)
    assert await peer.read() == rfc6455.close_frame(1000, "idle")
    peer.stream.beat(peer.stream.socket.closing_since + 4)
    assert not peer.lost, "the client may answer the goodbye"
    peer.stream.beat(peer.stream.socket.closing_since + 6)
    assert await peer.read() == b""
    assert peer.lost


async def test_a_reader_that_takes_nothing_is_cut(peer):
    peer.stream.socket.send([b"x" * (4 << 20)], is_text=False)
    await asyncio.sleep(0.05)
    stalled = peer.stream.socket.stalled_since
    assert stalled
    peer.stream.beat(stalled + 29)
    assert not peer.transport.is_closing()
    peer.stream.beat(stalled + 31)
    assert peer.transport.is_closing()


async def test_a_message_that_never_ends_is_closed(peer):
    await peer.send(bytes([0x82, 0xFE, 1, 0]) + bytes(4) + b"a")
    begun = peer.stream.socket.partial_since
    assert begun
    peer.stream.socket.heard = begun + 119
    peer.stream.beat(begun + 121)
    assert await peer.read() == rfc6455.close_frame(1008, "the message did not come in time")


async def test_the_closing_handshake_is_answered_with_its_code(peer):
    await peer.send(bytes([0x88, 0x82, 0, 0, 0, 0]) + b"\x03\xe9")
    assert await peer.read() == rfc6455.close_frame(1001)
    assert peer.lost


async def test_an_idle_connection_is_a_few_small_objects(peer):
    for one in (peer.stream, peer.stream.socket, peer.stream.socket._parser):
        assert not hasattr(one, "__dict__"), type(one)


def test_binary_frames_are_split():
    head, rest = envelopes.split(b"\2\0\0\0{}abc")
    assert (bytes(head), bytes(rest)) == (b"{}", b"abc")
    for data in (b"", b"\1", b"\3\0\0\0{}", b"\xff\xff\xff\xff"):
        with pytest.raises(Malformed):
            envelopes.split(data)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, None),
        ({"sequence_id": 0}, None),
        ({"sequence_id": ""}, None),
        ({"sequence_id": 5, "sequence_start": True}, SequenceControl(5, True)),
        ({"sequence_id": "s", "sequence_end": True, "other": 1}, SequenceControl("s", False, True)),
    ],
    ids=["none", "zero", "empty", "start", "end"],
)
def test_sequences_are_told_by_parameters(given, wanted):
    assert asking.sequence_of(given) == wanted
    assert not {"sequence_id", "sequence_start", "sequence_end"} & given.keys()


@pytest.mark.parametrize(
    "given",
    [{"sequence_start": True}, {"sequence_id": -1}, {"sequence_id": 1.5}, {"sequence_id": True},
     {"sequence_id": 1, "sequence_end": 1}, {"sequence_id": "x" * 257}],
    ids=["no-id", "negative", "float", "bool", "end-is-a-number", "long"],
)  # fmt: skip
def test_strange_sequences_are_refused(given):
    with pytest.raises(InvalidInput):
        asking.sequence_of(given)


MIXED = Signature(inputs=[TensorSpec("a", "FP32", [-1, 3]), TensorSpec("b", "BYTES", [1])], outputs=[])


def mapped(text):
    return mappings.read(envelopes.foreign_keys(text), envelopes.parse(text), "m", MIXED)


def test_values_take_the_shape_of_their_input():
    call = mapped(b'{"type":"generate","id":"1","a":[1,2,3,4,5,6],"b":"x","top":3,"parameters":{"more":true}}')
    assert [(t.name, t.shape) for t in call.tensors] == [("a", [2, 3]), ("b", [1])]
    assert (call.body[1], call.parameters) == (b"\1\0\0\0x", {"top": 3, "more": True})
    assert mapped(b'{"a":[[1,2,3]],"b":["x"]}').tensors[0].shape == [1, 3]


@pytest.mark.parametrize(
    "text",
    [b'{"a":[1,2],"b":"x"}', b'{"a":[[1,2,3],[4]],"b":"x"}', b'{"a":{"x":1},"b":"x"}',
     b'{"a":[1,2,3]}', b'{"a":[1,2,3],"b":"x","more":[1]}', b'{"a":"text","b":"x"}', b'{"a":null,"b":"x"}'],
)  # fmt: skip
def test_values_that_do_not_fit_are_refused(text):
    with pytest.raises((InvalidInput, Malformed)):
        mapped(text)


def test_outputs_are_written_as_values():
    tensors = [TensorHeader("y", "INT32", [1], 4), TensorHeader("z", "FP32", [1, 2], 8)]
    assert mappings.write(tensors, memoryview(b"\5\0\0\0" + bytes(8))) == {"y": 5, "z": [0.0, 0.0]}
