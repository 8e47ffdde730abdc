"""The heart of a WebSocket connection: pings, idleness, half-open peers, stalled readers; and its frames' envelopes."""

import asyncio
import socket

import msgspec
import pytest

from inference.errors import InvalidInput, Malformed
from inference.gateway import envelopes, placing, rfc6455, stream
from inference.gateway.asking import Asking
from inference.gateway.bodies import Bodies
from inference.gateway.lending import Budget, Lender, lender_of


class Plane:
    """Only what a connection asks of it before a request is whole."""

    draining = False

    def __init__(self):
        self.lender = Lender(Budget(), lambda block: None, lambda number: None)
        self.lender.is_open = True
        self.asked = []
        self.counted = []

    def refused(self, name, error):
        self.counted.append((name, error.code))

    def memory(self, name, version, size, offset):
        self.asked.append((name, version, size))
        return self.lender.take(size, offset)

    def abandon(self, flight):
        """The replica would be told."""


class Peer:
    """One connection over a real pair of sockets; what the client would read is `read`."""

    async def open(self, *, pings=True):
        self.own, theirs = socket.socketpair()
        self.own.setblocking(False)
        loop = asyncio.get_running_loop()
        self.transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, theirs)
        self.lost = []
        self.plane, self.bodies = Plane(), Bodies(16 << 20)
        self.stream = stream.Stream(
            self.plane, self.transport, self.bodies, name="e", number=None, verb=None, on_lost=self.lost.append
        )
        self.stream.pings = pings
        return self

    async def read(self):
        await asyncio.sleep(0.02)
        try:
            return self.own.recv(1 << 16)
        except BlockingIOError:
            return None

    async def send(self, data):
        await asyncio.get_running_loop().sock_sendall(self.own, data)
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
    peer.stream.beat(start + 20.1)
    assert await peer.read() == b"\x89\x00" + JSON_PING
    peer.stream.beat(start + 21)
    assert await peer.read() is None, "one ping an interval"
    peer.stream.beat(start + 40.1)
    assert await peer.read() == rfc6455.close_frame(1001, "no pong")
    assert await peer.read() == b"", "who is not there is not waited for"
    assert peer.lost == [peer.stream]


async def test_any_pong_is_a_sign_of_life(peer):
    start = peer.stream.socket.heard
    peer.stream.beat(start + 20.1)
    await peer.read()
    await peer.send(PONG)
    assert peer.stream.socket.heard > start
    peer.stream.beat(peer.stream.socket.heard + 19)
    assert await peer.read() is None
    assert peer.stream.asked_at == start, "a pong is no request: the connection idles"


async def test_a_client_of_plain_websocket_is_pinged_by_the_protocol_alone():
    peer = await Peer().open(pings=False)
    peer.stream.beat(peer.stream.socket.heard + 20.1)
    assert await peer.read() == b"\x89\x00"
    peer.close()


async def test_a_connection_that_asks_nothing_is_closed_after_ten_minutes(peer):
    start = peer.stream.asked_at
    peer.stream.socket.heard = start + 590
    peer.stream.beat(start + 599.9)
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


@pytest.mark.parametrize(("deadline_s", "starved_s"), [(1000, 60), (5, 5)], ids=["limit", "deadline"])
async def test_who_grants_no_credit_loses_the_request(peer, deadline_s, starved_s):
    asking = Asking(peer.stream, envelopes.FrameBody(id="1", credit=0), memoryview(b""), None, is_text=True)
    since = asking.starving_since = peer.stream.socket.heard
    asking.deadline = since + deadline_s
    peer.stream.fell_behind(asking, 0)
    peer.stream.socket.heard = since + starved_s
    peer.stream.beat(since + starved_s - 0.1)
    assert await peer.read() is None
    peer.stream.beat(since + starved_s + 0.1)
    assert b"no credit was granted in time" in await peer.read()


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


async def test_who_was_not_read_was_not_silent(peer):
    socket = peer.stream.socket
    socket.hold()
    await peer.send(bytes([0x81, 0x82, 0, 0, 0, 0]))  # the beginning of a message, read no further
    socket.heard -= 100
    socket.partial_since -= 200
    socket.release()
    peer.stream.beat(socket.heard + 1)
    assert await peer.read() is None
    assert not peer.transport.is_closing()


def large(json, tensors=b"t" * (300 << 10), *, last=True):
    """Its mask is zero."""
    payload = len(json).to_bytes(4, "little") + json + tensors
    head = rfc6455.frame_head(rfc6455.BINARY, len(payload))
    return bytes([head[0] if last else head[0] & 0x7F, head[1] | 0x80]) + head[2:] + bytes(4) + payload


async def test_a_large_message_counts_from_its_first_bytes_and_no_longer_than_it_is_of_use(peer):
    data = large(b'{"type":"nothing","id":"1"}')
    await peer.send(data[:100_000])
    assert 64 << 10 < peer.bodies.held_bytes < 101_000
    await peer.send(data[100_000:])
    assert b"unsupported" in await peer.read()
    assert peer.bodies.held_bytes == 0
    await peer.send(data[:-1])
    assert peer.bodies.held_bytes > 200_000
    peer.own.close()
    await asyncio.sleep(0.02)
    assert peer.bodies.held_bytes == 0


async def test_a_message_that_is_too_much_beside_the_others_closes_with_try_again(peer):
    peer.bodies.held_bytes = (16 << 20) * 8 - 100_000
    await peer.send(large(b"{}")[:200_000])
    found = await peer.read()
    assert found[2:4] == (1013).to_bytes(2, "big")
    assert peer.bodies.held_bytes == (16 << 20) * 8 - 100_000


INFER = b'{"id":"1","model":"m","version":"3","inputs":[{"name":"x","shape":[1],"datatype":"FP32","parameters":{"binary_data_size":%d}}]}'


def placed(plane, first, size, *, is_whole=True, **more):
    given = {"name": "", "number": None, "allowed": ["m"], "most_bytes": 16 << 20} | more
    return placing.placed(plane, first, size, is_whole=is_whole, **given)


def test_a_large_frame_is_received_in_a_block_of_who_will_read_it():
    plane, json = Plane(), INFER % (1 << 20)
    first = len(json).to_bytes(4, "little") + json
    assert placed(plane, first[:50], 1 << 20) is None, "nobody knows yet whose it is"
    view = placed(plane, first, 2 << 20)
    assert lender_of([view]) is plane.lender
    assert plane.lender.place([view[len(first) :]]) == (0, 0), "not mapped yet"
    plane.lender.mapped.add(1)
    assert plane.lender.place([view[len(first) :]])[1] % 64 == 0, "tensors are aligned"
    assert plane.asked == [("m", 3, 2 << 20)]
    whole = placed(plane, first, 300_000, is_whole=False, name="e", number=7)
    assert len(whole) == len(first) + (1 << 20), "its JSON says how long it will be"
    assert plane.asked[-1] == ("e", 7, len(whole))


@pytest.mark.parametrize(
    "json", [b"{", b"[]", INFER % -1, INFER.replace(b'"3"', b'"three"') % 5, b"{" + b" " * 20_000, INFER % (1 << 40)]
)
def test_a_large_frame_whose_json_says_nothing_lies_elsewhere_or_is_bounded(json):
    first = (len(json).to_bytes(4, "little") + json)[: rfc6455.FIRST_BYTES]
    view = placed(Plane(), first, 1 << 20, is_whole=False)
    assert 1 << 20 <= len(view) <= 16 << 20


def test_a_frame_for_who_may_not_be_asked_lies_elsewhere():
    plane, json = Plane(), INFER % 5
    view = placed(plane, len(json).to_bytes(4, "little") + json, 1 << 20, allowed=())
    assert (plane.asked, lender_of([view])) == ([], None)


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
