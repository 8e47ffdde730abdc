"""The heart of a WebSocket connection: pings, idleness, half-open peers, stalled readers; and its frames' envelopes."""

import asyncio
import socket

import msgspec
import pytest

from inference.errors import InvalidInput, Malformed
from inference.gateway import envelopes, rfc6455, stream


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


def test_a_generate_request_is_what_no_frame_has():
    text = b'{"type":"generate","id":"1","model":"m","credit":3,"text":"x","top":3,"parameters":{"more":true}}'
    found = msgspec.json.decode(envelopes.generate_body(text, envelopes.parse(text)))
    assert found == {"id": "1", "parameters": {"more": True}, "text": "x", "top": 3}


@pytest.mark.parametrize(("given", "number"), [(None, None), ("", None), (3, 3), ("12", 12)])
def test_versions_are_numbers_or_their_digits(given, number):
    assert envelopes.version_of(envelopes.FrameBody(version=given)) == number


@pytest.mark.parametrize("given", [-1, 1 << 31, "one", "-1", "1" * 10])
def test_other_versions_are_refused(given):
    with pytest.raises(InvalidInput):
        envelopes.version_of(envelopes.FrameBody(version=given))
