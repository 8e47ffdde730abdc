"""HTTP/2 without a socket: what comes in pieces means the same, faults have their codes, what costs nothing is bounded."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.gateway.http2 import frames, limits, machine
from inference.gateway.http2.frames import Code, Setting
from inference.gateway.http2.headers import MAX_BLOCK_BYTES
from tests.support.http2_peer import BEGIN, POST, App, Echo, Peer, begun, data, goaway_code, read_frames, taken

RST = frames.rst_stream(1, Code.CANCEL)


# -- pieces ------------------------------------------------------------------------------------------------------------


@st.composite
def conversations(draw):
    """What a well-behaved client says: requests in turns, and the frames that may stand between them."""
    peer, found, number = Peer(), [BEGIN], -1
    for _ in range(draw(st.integers(1, 8))):
        number += 2
        parts = draw(st.lists(st.binary(max_size=300), max_size=4))
        head = peer.head(number, [*POST, ("k", draw(st.text("abc", max_size=40))), ("te", "trailers")])
        if draw(st.booleans()):  # the same block in two frames
            cut = 9 + draw(st.integers(0, len(head) - 9))
            block = head[9:]
            first, rest = block[: cut - 9], block[cut - 9 :]
            head = frames.head(len(first), 1, 0, number) + first + frames.head(len(rest), 9, 4, number) + rest
        found.append(head)
        found += [data(number, one, padding=draw(st.integers(-1, 9))) for one in parts]
        match draw(st.integers(0, 4)):
            case 0:
                found.append(frames.rst_stream(number, Code.CANCEL))
            case 1:
                found.append(peer.head(number, [("x", "trailer")], ends=True))
            case _:
                found.append(data(number, draw(st.binary(max_size=50)), ends=True))
        found.append(
            draw(
                st.sampled_from([
                    b"", frames.ping(b"12345678", is_ack=False), frames.window_update(0, 7), frames.SETTINGS_ACK,
                    frames.head(5, frames.PRIORITY, 0, number) + bytes(5), frames.head(3, 77, 9, 5) + b"abc",
                    frames.settings({Setting.INITIAL_WINDOW_SIZE: 70_000}),
                ])
            )
        )  # fmt: skip
    return b"".join(found)


@settings(max_examples=25, deadline=None)
@given(conversations(), st.lists(st.integers(1, 40), min_size=1))
def test_pieces_of_any_size_mean_the_same(said, sizes):
    whole = machine.Machine(App(), 1.0)
    whole.receive(said, 1.0)
    pieces, at, turn = machine.Machine(App(), 1.0), 0, 0
    while at < len(said):
        size = sizes[turn % len(sizes)]
        pieces.receive(said[at : at + size], 1.0)
        at, turn = at + size, turn + 1
    assert pieces._application.log == whole._application.log
    assert taken(pieces) == taken(whole)
    assert pieces.streams.keys() == whole.streams.keys() == set()
    assert not whole.is_over


class Into(Echo):
    """Has memory for its body, which announces its size in four bytes."""

    memory, at = None, 0

    def data(self, part):
        self.body += part
        if self.memory is None and len(self.body) >= 4:
            self.memory = memoryview(bytearray(int.from_bytes(self.body[:4], "big")))
            self.put(self.body[4:])
        elif self.memory is not None:
            self.put(part)

    def put(self, part):
        self.memory[self.at : self.at + len(part)] = part
        self.at += len(part)

    def room(self):
        return self.memory[self.at :] if self.memory is not None else None

    def filled(self, size):
        self.at += size

    def ended(self):
        self.log.append(("ended", bytes(self.memory)))


@pytest.mark.parametrize("seed", range(12))
def test_a_large_payload_is_received_where_its_receiver_wants_it(seed):
    chance = random.Random(seed)
    size, frame = chance.randint(40_000, 300_000), chance.randint(33_000, 400_000)
    found, app = begun(App(Into))
    body = chance.randbytes(size)
    whole = size.to_bytes(4, "big") + body
    said = Peer().head(1)
    for at in range(0, len(whole), frame):
        said += data(1, whole[at : at + frame], ends=at + frame >= len(whole))
    direct = at = 0
    while at < len(said):
        room = found.room()
        if room is not None:
            came = min(len(room), chance.randint(1, 90_000))
            room[:came] = said[at : at + came]
            found.filled(came, 1.0)
            direct += came
        else:
            came = chance.randint(1, found.next_bytes or 65536)
            found.receive(said[at : at + came], 1.0)
        at += came
    assert app.log[-1] == ("ended", body)
    assert direct or size < limits.DIRECT_BYTES + 65536


# -- windows -----------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 70_000),
    st.lists(st.integers(0, 120_000), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 90_000), st.integers(0, 50_000)), max_size=30),
)
def test_never_more_is_sent_than_the_windows_allow(initial, sizes, steps):
    found, _ = begun()
    windows: dict[int, int] = {0: frames.DEFAULT_WINDOW}
    got: dict[int, bytes] = {}
    ended = set()

    def read():
        for frame in read_frames(taken(found, steps[0][1] if steps else 1 << 20)):
            if frame.kind == frames.DATA:
                windows[0] -= len(frame.payload)
                windows[frame.number] -= len(frame.payload)
                assert windows[0] >= 0
                assert windows[frame.number] >= 0
                assert len(frame.payload) <= 16384
                got[frame.number] = got.get(frame.number, b"") + frame.payload
            if frame.kind == frames.HEADERS and frame.flags & 1:
                ended.add(frame.number)

    found.receive(frames.settings({Setting.INITIAL_WINDOW_SIZE: initial}), 1.0)
    peer, bodies = Peer(), {}
    for index, size in enumerate(sizes):
        number = 2 * index + 1
        bodies[number] = random.Random(index).randbytes(size)
        windows[number] = initial
        found.receive(peer.request(number, bodies[number]), 1.0)
        read()
    for which, more, new in steps:
        number = min(2 * which - 1, 2 * len(sizes) - 1) if which else 0
        if number in windows and number not in ended:
            windows[number] += more
            found.receive(frames.window_update(number, more), 1.0)
        elif which == 5:
            for one in bodies:
                windows[one] += new - initial
            initial = new
            found.receive(frames.settings({Setting.INITIAL_WINDOW_SIZE: new}), 1.0)
        read()
    for number in [0, *bodies]:
        if number not in ended:
            windows[number] += 1 << 20
            found.receive(frames.window_update(number, 1 << 20), 1.0)
    for _ in range(200):
        if ended == bodies.keys():
            break
        read()
    assert {number: got.get(number, b"") for number in bodies} == bodies
    assert not found.streams


def test_a_small_answer_does_not_wait_behind_a_large_one():
    found, _ = begun()
    peer = Peer()
    found.receive(frames.window_update(0, 1 << 30) + frames.settings({Setting.INITIAL_WINDOW_SIZE: 1 << 30}), 1.0)
    found.receive(peer.head(1) + data(1, bytes(1 << 20), ends=True), 1.0)
    found.receive(peer.request(3, bytes(200_000)), 1.0)
    sent = [
        frame.number for frame in read_frames(taken(found, 1 << 20)) if frame.kind == frames.HEADERS and frame.flags & 1
    ]
    assert sent == [3, 1]


def test_a_peer_that_takes_nothing_is_known():
    found, _ = begun()
    found.receive(frames.settings({Setting.INITIAL_WINDOW_SIZE: 0}) + Peer().request(1, b"x"), 1.0)
    taken(found, now=5.0)
    assert not found.outbox.stalled(5.0)
    assert [one.number for one in found.outbox.stalled(5.1)] == [1]
    found.receive(frames.window_update(1, 1), 6.0)
    taken(found, now=6.0)
    assert not found.outbox.stalled(100.0)


def test_a_receiver_that_is_not_told_to_go_on_is_sent_no_more_than_a_window():
    found, app = begun()
    peer = Peer()
    found.receive(peer.head(1) + data(1, bytes(limits.STREAM_WINDOW // 2)) * 2, 1.0)
    assert not found.is_over
    found.receive(data(1, b"x"), 1.0)
    assert app.log[-1] == ("left", 1)
    sent = read_frames(taken(found))
    assert [int.from_bytes(one.payload, "big") for one in sent if one.kind == frames.RST_STREAM] == [
        Code.FLOW_CONTROL_ERROR
    ]


# -- faults ------------------------------------------------------------------------------------------------------------


def raw(kind, payload=b"", flags=0, number=0):
    return frames.head(len(payload), kind, flags, number) + payload


def head(*fields):
    return Peer().head(1, list(fields))


OVER = {
    "headers of an even stream": (raw(1, b"\x82", 4, 2), Code.PROTOCOL_ERROR),
    "data of no stream": (data(0, b"x"), Code.PROTOCOL_ERROR),
    "data of an idle stream": (data(1, b"x"), Code.PROTOCOL_ERROR),
    "data after the end": (Peer().request(1) + data(1, b"x"), Code.STREAM_CLOSED),
    "headers after the end": (Peer().request(1) + Peer().head(1), Code.STREAM_CLOSED),
    "padding too long": (head(*POST) + raw(0, b"\x05abcd", 8, 1), Code.PROTOCOL_ERROR),
    "padding of nothing": (head(*POST) + raw(0, b"", 8, 1), Code.PROTOCOL_ERROR),
    "padded headers too long": (raw(1, b"\x09\x82", 12, 1), Code.PROTOCOL_ERROR),
    "priority cut off": (raw(1, b"\x82", 0x24, 1), Code.PROTOCOL_ERROR),
    "a frame inside a header block": (raw(1, b"\x82", 0, 1) + raw(6, bytes(8)), Code.PROTOCOL_ERROR),
    "data inside a header block": (raw(1, b"\x82", 0, 1) + data(1, b""), Code.PROTOCOL_ERROR),
    "continuation of nothing": (raw(9, b"\x82", 4, 1), Code.PROTOCOL_ERROR),
    "continuation of another": (raw(1, b"\x82", 0, 1) + raw(9, b"\x82", 4, 3), Code.PROTOCOL_ERROR),
    "a block that cannot be read": (raw(1, b"\xff\xff\xff\xff\xff", 4, 1), Code.COMPRESSION_ERROR),
    "a table index of nothing": (raw(1, b"\x80", 4, 1), Code.COMPRESSION_ERROR),
    "reset of an idle stream": (RST, Code.PROTOCOL_ERROR),
    "reset of no stream": (frames.rst_stream(0, Code.CANCEL), Code.PROTOCOL_ERROR),
    "reset of a wrong size": (head(*POST) + raw(3, b"abc", 0, 1), Code.FRAME_SIZE_ERROR),
    "settings of a stream": (raw(4, b"", 0, 1), Code.PROTOCOL_ERROR),
    "settings of a wrong size": (raw(4, b"12345"), Code.FRAME_SIZE_ERROR),
    "an ack with settings": (raw(4, b"123456", 1), Code.FRAME_SIZE_ERROR),
    "push neither on nor off": (frames.settings({Setting.ENABLE_PUSH: 2}), Code.PROTOCOL_ERROR),
    "a window too large": (frames.settings({Setting.INITIAL_WINDOW_SIZE: 1 << 31}), Code.FLOW_CONTROL_ERROR),
    "frames too small": (frames.settings({Setting.MAX_FRAME_SIZE: 16383}), Code.PROTOCOL_ERROR),
    "frames too large": (frames.settings({Setting.MAX_FRAME_SIZE: 1 << 24}), Code.PROTOCOL_ERROR),
    "push promise": (raw(5, bytes(4), 4, 1), Code.PROTOCOL_ERROR),
    "ping of a stream": (raw(6, bytes(8), 0, 1), Code.PROTOCOL_ERROR),
    "ping of a wrong size": (raw(6, bytes(7)), Code.FRAME_SIZE_ERROR),
    "goaway of a stream": (raw(7, bytes(8), 0, 1), Code.PROTOCOL_ERROR),
    "goaway of a wrong size": (raw(7, bytes(7)), Code.FRAME_SIZE_ERROR),
    "window of a wrong size": (raw(8, bytes(3)), Code.FRAME_SIZE_ERROR),
    "window of nothing": (frames.window_update(0, 0), Code.PROTOCOL_ERROR),
    "window of an idle stream": (frames.window_update(1, 5), Code.PROTOCOL_ERROR),
    "the connection's window overflows": (frames.window_update(0, (1 << 31) - 1), Code.FLOW_CONTROL_ERROR),
    "priority of no stream": (raw(2, bytes(5)), Code.PROTOCOL_ERROR),
    "a frame too large": (head(*POST) + frames.head((1 << 20) + 1, 0, 0, 1), Code.FRAME_SIZE_ERROR),
    "a header frame too large": (frames.head(MAX_BLOCK_BYTES + 1, 1, 4, 1), Code.FRAME_SIZE_ERROR),
}  # fmt: skip


@pytest.mark.parametrize(("said", "code"), OVER.values(), ids=OVER)
def test_a_fault_of_the_connection_ends_it_with_its_code(said, code):
    found, _ = begun()
    found.receive(said, 1.0)
    assert found.is_over
    assert goaway_code(found) == code
    found.receive(Peer().request(9), 1.0)  # and nothing is heard any more
    assert not found.streams


STREAM = {
    "capitals": (head(*POST, ("X", "1")), Code.PROTOCOL_ERROR),
    "a connection's header": (head(*POST, ("connection", "close")), Code.PROTOCOL_ERROR),
    "te of something else": (head(*POST, ("te", "gzip")), Code.PROTOCOL_ERROR),
    "a pseudo header too late": (head(("a", "b"), *POST), Code.PROTOCOL_ERROR),
    "a pseudo header twice": (head(*POST, (":path", "/")), Code.PROTOCOL_ERROR),
    "an unknown pseudo header": (head(*POST, (":status", "200")), Code.PROTOCOL_ERROR),
    "no path": (head(*POST[:2]), Code.PROTOCOL_ERROR),
    "an empty path": (head(*POST[:2], (":path", "")), Code.PROTOCOL_ERROR),
    "a value with a line's end": (head(*POST, ("a", "b\r\nc")), Code.PROTOCOL_ERROR),
    "a name with a space": (head(*POST, ("a b", "c")), Code.PROTOCOL_ERROR),
    "trailers that end nothing": (head(*POST) + raw(1, b"", 4, 1), Code.PROTOCOL_ERROR),
    "trailers with a path": (head(*POST) + raw(1, b"\x84", 5, 1), Code.PROTOCOL_ERROR),
    "a window of nothing": (head(*POST) + frames.window_update(1, 0), Code.PROTOCOL_ERROR),
    "a window too large": (head(*POST) + frames.window_update(1, (1 << 31) - 1), Code.FLOW_CONTROL_ERROR),
    "priority of a wrong size": (head(*POST) + raw(2, bytes(4), 0, 1), Code.FRAME_SIZE_ERROR),
}


@pytest.mark.parametrize(("said", "code"), STREAM.values(), ids=STREAM)
def test_a_fault_of_a_stream_ends_it_alone(said, code):
    found, app = begun()
    found.receive(said, 1.0)
    assert not found.is_over
    sent = [one for one in read_frames(taken(found)) if one.kind == frames.RST_STREAM]
    assert [(one.number, int.from_bytes(one.payload, "big")) for one in sent] == [(1, code)]
    assert not found.streams
    found.receive(data(1, b"late") + frames.window_update(1, 5) + RST, 1.0)  # what was on its way
    found.receive(Peer().request(3, b"next"), 1.0)
    assert app.log[-1] == ("ended", 3, b"next")


def test_what_is_no_http2_is_told_so():
    for said in (
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        frames.PREFACE + raw(6, bytes(8)),
        frames.PREFACE + frames.SETTINGS_ACK,
    ):
        found = machine.Machine(App(), 1.0)
        found.receive(said, 1.0)
        assert goaway_code(found) == Code.PROTOCOL_ERROR


# -- abuse -------------------------------------------------------------------------------------------------------------


def repeated(say, *, most, now=1.0):
    """Says it again and again; answers the code of the end, and after how many."""
    found, app = begun(now=now)
    peer = Peer()
    for index in range(most):
        found.receive(say(peer, index), now)
        if found.is_over:
            return goaway_code(found), index, app
    return -1, most, app


FLOODS = {
    "rapid reset": lambda peer, i: peer.head(2 * i + 1) + frames.rst_stream(2 * i + 1, Code.CANCEL),
    "pings": lambda peer, i: frames.ping(bytes(8), is_ack=False),
    "settings": lambda peer, i: frames.settings({Setting.MAX_FRAME_SIZE: 20_000}),
    "acks": lambda peer, i: frames.SETTINGS_ACK,
    "empty data": lambda peer, i: (peer.head(1) if not i else b"") + data(1),
    "padding alone": lambda peer, i: (peer.head(1) if not i else b"") + data(1, padding=3),
    "priorities": lambda peer, i: raw(2, bytes(5), 0, 1),
    "frames of no known kind": lambda peer, i: raw(99),
    "malformed requests": lambda peer, i: peer.head(2 * i + 1, [("a", "b")]),
    "too many streams": lambda peer, i: peer.head(2 * i + 1),
    "empty continuations": lambda peer, i: raw(1, b"", 0, 1) if not i else raw(9, b"", 0, 1),
    "endless continuations": lambda peer, i: raw(1, b"", 0, 1) if not i else raw(9, b"\x00\x01a\x01b" * 800, 0, 1),
}


@pytest.mark.parametrize("say", FLOODS.values(), ids=FLOODS)
def test_what_costs_its_sender_nothing_is_bounded(say):
    code, after, app = repeated(say, most=5000)
    assert code == Code.ENHANCE_YOUR_CALM
    assert after <= 2100
    assert sum(1 for one in app.log if one[0] == "opened") == sum(1 for one in app.log if one[0] in {"left", "ended"})


def test_what_is_spread_in_time_is_no_flood():
    found, _ = begun()
    peer = Peer()
    for index in range(3000):
        now = 1.0 + index / 10
        number = 2 * index + 1
        found.receive(
            frames.ping(bytes(8), is_ack=False) + peer.head(number) + frames.rst_stream(number, Code.CANCEL), now
        )
    assert not found.is_over


def test_settings_said_many_times_in_a_frame_cost_once():
    found, _ = begun()
    peer = Peer()
    found.receive(b"".join(peer.head(2 * number + 1) for number in range(1000)), 1.0)
    many = struct.pack(">HL", 4, 100) * 5000 + struct.pack(">HL", 4, 200)
    for _ in range(20):
        found.receive(raw(4, many), 1.0)
    assert {stream.out_window for stream in found.streams.values()} == {200}


def test_a_header_bomb_is_not_inflated():
    peer, found = Peer(), begun()[0]
    big = ("bomb", "x" * 3900)
    found.receive(peer.head(1, [*POST, big]), 1.0)
    assert not found.is_over
    block = peer.encoder.encode([*POST, big]) + b"\xbe" * 8000  # 8,000 times the newest entry
    found.receive(frames.head(len(block), 1, 5, 3) + block, 1.0)
    assert goaway_code(found) == Code.ENHANCE_YOUR_CALM


def test_fuzzed_frames_end_in_a_goaway_or_go_on():
    """5,000 mutations: whatever comes, the machine answers by the protocol and holds no more than it may."""
    chance = random.Random(7)
    peer = Peer()
    good = [
        BEGIN, peer.request(1, b"abc"), frames.ping(bytes(8), is_ack=False), frames.settings({Setting.MAX_FRAME_SIZE: 20000}),
        frames.window_update(0, 5), peer.head(3), data(3, b"x" * 40, padding=4), frames.rst_stream(3, Code.CANCEL),
        peer.request(5, b"y" * 500), raw(2, bytes(5), 0, 7), raw(99, b"abc"), raw(1, b"\x82", 0, 7) + raw(9, b"\x87\x84", 5, 7),
    ]  # fmt: skip
    ends = {"over": 0, "on": 0}
    for _ in range(5000):
        said = bytearray(b"".join(good))
        for _ in range(chance.randint(1, 5)):
            at = chance.randrange(24 if chance.random() < 0.95 else 0, len(said))
            match chance.randrange(4):
                case 0 | 1:
                    said[at] = chance.randrange(256)
                case 2:
                    said[at:at] = chance.randbytes(chance.randint(1, 9))
                case _:
                    del said[at : at + chance.randint(1, 9)]
        found = machine.Machine(App(), 1.0)
        found.receive(bytes(said), 1.0)
        sent = read_frames(taken(found))
        assert sum(1 for one in sent if one.kind == frames.GOAWAY) == found.is_over
        assert len(found._rest) <= MAX_BLOCK_BYTES + 9
        ends["over" if found.is_over else "on"] += 1
    assert min(ends.values()) > 500


# -- the end -----------------------------------------------------------------------------------------------------------


def test_draining_answers_what_came_before_the_client_knew():
    found, app = begun()
    peer = Peer()
    found.receive(peer.head(1), 1.0)
    found.drain()
    sent = read_frames(taken(found))
    assert [one.kind for one in sent] == [frames.GOAWAY, frames.PING]
    assert int.from_bytes(sent[0].payload[:4], "big") == frames.MOST_WINDOW
    found.receive(peer.request(3, b"on its way") + frames.ping(sent[1].payload, is_ack=True), 1.0)
    sent = read_frames(taken(found))
    assert [(int.from_bytes(one.payload[:4], "big")) for one in sent if one.kind == frames.GOAWAY] == [3]
    found.receive(peer.request(5, b"too late"), 1.0)
    assert ("ended", 3, b"on its way") in app.log
    assert not any(one[1] == 5 for one in app.log)
    assert not found.is_finished
    found.receive(data(1, b"", ends=True), 1.0)
    assert found.is_finished


def test_a_lost_connection_tells_every_receiver_once():
    found, app = begun()
    peer = Peer()
    found.receive(peer.head(1) + peer.head(3) + frames.rst_stream(1, Code.CANCEL), 1.0)
    found.lost()
    found.lost()
    assert app.log[-2:] == [("left", 1), ("left", 3)]


def test_an_answer_before_the_end_of_its_request_stops_the_sender():
    class Early(Echo):
        def data(self, part):
            self.machine.answer(self.stream, b"\x88", [b"no"], b"\x88")

    found, _ = begun(App(Early))
    found.receive(Peer().head(1) + data(1, b"a"), 1.0)
    sent = read_frames(taken(found))
    assert (sent[-1].kind, int.from_bytes(sent[-1].payload, "big")) == (frames.RST_STREAM, Code.NO_ERROR)
    found.receive(data(1, b"still on its way", ends=True), 1.0)
    assert not found.is_over
