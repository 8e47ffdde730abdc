"""Frames of RFC 6455: cutting changes nothing, what breaks the rules has its close code, nothing grows without bound."""

import itertools
import random
import struct
import sys
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.gateway import payload, rfc6455
from inference.gateway.rfc6455 import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Parser, Violation

LIMITS = {"max_text": 1 << 20, "max_binary": 16 << 20}
MASK = b"\x11\x22\x33\x44"


def masked(opcode, payload=b"", *, last=True, mask=MASK):
    head = rfc6455.frame_head(opcode, len(payload))
    head = bytes([head[0] & 0x7F if not last else head[0], head[1] | 0x80]) + head[2:]
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


def read(data, cuts=(), **limits):
    parser = Parser(**LIMITS | limits)
    found = []
    marks = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for begin, end in itertools.pairwise(marks):
        if end > begin:
            parser.feed(data[begin:end])
        while (message := parser.next()) is not None:
            found.append(message)
    assert parser.is_between
    return found


messages = st.lists(
    st.one_of(
        st.tuples(st.just(TEXT), st.text(max_size=300).map(str.encode), st.integers(1, 4)),
        st.tuples(st.just(BINARY), st.binary(max_size=70_000), st.integers(1, 4)),
        st.tuples(st.sampled_from([PING, PONG]), st.binary(max_size=125), st.just(1)),
    ),
    max_size=8,
)


def frames_of(opcode, payload, count):
    size = max(1, -(-len(payload) // count))
    pieces = [payload[at : at + size] for at in range(0, len(payload), size)] or [b""]
    for number, piece in enumerate(pieces):
        yield masked(CONTINUATION if number else opcode, piece, last=number == len(pieces) - 1)


@given(messages, st.lists(st.integers(0, 200_000), max_size=30))
def test_cutting_the_bytes_anywhere_never_changes_the_messages(wanted, cuts):
    data = b"".join(b"".join(frames_of(*one)) for one in wanted)
    assert read(data, cuts) == [(opcode, payload) for opcode, payload, _ in wanted]


def receive(data, cuts, place):
    """As `read`, by way of the memory that the parser offers, as a connection does."""
    parser, found, at = Parser(**LIMITS, place=place), [], 0
    for end in [*sorted({min(cut, len(data)) for cut in cuts}), len(data)]:
        while at < end:
            room = parser.room
            if room is None:
                parser.feed(data[at:end])
                at = end
            else:
                size = min(len(room), end - at)
                room[:size] = data[at : at + size]
                at += size
                parser.came(size)
            while (message := parser.next()) is not None:
                found.append((message[0], bytes(message[1])))
            assert parser.kept_bytes <= len(data)
    assert parser.is_between
    assert parser.kept_bytes == 0
    return found


class Ground:
    """Memory for messages, `start` bytes into a field whose other bytes nobody may touch; shorter than asked by `short`.
    It wants to see `wanted` bytes first.
    """

    def __init__(self, start, wanted, short):
        self.start, self.wanted, self.short = start, wanted, short
        self.fields = []

    def __call__(self, first, size, is_whole):
        if len(first) < min(self.wanted, rfc6455.FIRST_BYTES):
            return None
        size = max(1, size - self.short)
        field = bytearray(b"\xa5" * (self.start + size + 9))
        self.fields.append((field, size))
        return memoryview(field)[self.start : self.start + size]

    def is_untouched(self):
        return all(set(field[: self.start] + field[self.start + size :]) <= {0xA5} for field, size in self.fields)


large = st.lists(
    st.one_of(
        st.tuples(st.just(BINARY), st.binary(max_size=6000), st.lists(st.integers(0, 6000), max_size=4)),
        st.tuples(st.just(TEXT), st.text(max_size=300).map(str.encode), st.just([])),
    ),
    max_size=4,
)


@given(large, st.lists(st.integers(0, 25_000), max_size=12), st.lists(st.binary(min_size=4, max_size=4), min_size=1, max_size=5),
       st.builds(Ground, st.integers(0, 9), st.integers(0, 99), st.integers(0, 3000)))  # fmt: skip
def test_large_messages_are_the_same_wherever_they_lie_and_however_they_are_cut_and_masked(wanted, cuts, masks, ground):
    data, mask = b"", itertools.cycle(masks)
    for opcode, message, borders in wanted:
        marks = [0, *sorted(min(border, len(message)) for border in borders), len(message)]
        for number, (begin, end) in enumerate(itertools.pairwise(marks)):
            kind, last = (CONTINUATION if number else opcode), number == len(marks) - 2
            data += masked(kind, message[begin:end], last=last, mask=next(mask))
            data += masked(PING, b"between", mask=next(mask))
    pings = [len(borders) + 1 for _, _, borders in wanted]
    with mock.patch.multiple(rfc6455, LARGE_BYTES=500, FIRST_BYTES=64), mock.patch.object(payload, "SLICE_BYTES", 101):
        found = receive(data, cuts, ground)
    assert [one for one in found if one[0] != PING] == [(opcode, message) for opcode, message, _ in wanted]
    assert len(found) == len(wanted) + sum(pings)
    assert ground.is_untouched()


def test_a_large_message_is_received_in_the_memory_it_is_given():
    field = bytearray(1 << 20)
    parser = Parser(**LIMITS, place=lambda *_: memoryview(field))
    message = random.Random(1).randbytes(700_001)
    data = masked(BINARY, message)
    parser.feed(data[:20_000])
    assert parser.next() is None
    for at in range(20_000, len(data), 65_537):
        piece = data[at : at + 65_537]
        parser.room[: len(piece)] = piece
        parser.came(len(piece))
    opcode, found = parser.next()
    assert opcode == BINARY
    assert found.obj is field
    assert found == message


def test_every_single_cut_of_a_mixed_stream():
    data = masked(TEXT, "grüße".encode()) + masked(BINARY, b"a" * 130, last=False) + masked(PING, b"x")
    data += masked(CONTINUATION, b"b" * 10) + masked(CLOSE, b"\x03\xe8bye")
    whole = read(data)
    assert [opcode for opcode, _ in whole] == [TEXT, PING, BINARY, CLOSE]
    for cut in range(len(data)):
        assert read(data, [cut]) == whole
    assert read(data, range(len(data))) == whole


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("unmasked", rfc6455.frame_head(TEXT, 1) + b"a", 1002),
        ("rsv1", bytes([0xC1, 0x80]) + MASK, 1002),
        ("rsv3", bytes([0x91, 0x80]) + MASK, 1002),
        ("opcode 3", masked(3), 1002),
        ("opcode 11", masked(11), 1002),
        ("long ping", masked(PING, b"a" * 126), 1002),
        ("ping in fragments", masked(PING, last=False), 1002),
        ("stray continuation", masked(CONTINUATION, b"a"), 1002),
        ("text in a text", masked(TEXT, b"a", last=False) + masked(TEXT, b"b"), 1002),
        ("long form of 125", bytes([0x82, 0xFE, 0, 125]) + MASK + bytes(125), 1002),
        ("longer form of 126", bytes([0x82, 0xFF]) + struct.pack("!Q", 126) + MASK + bytes(126), 1002),
        ("not utf-8", masked(TEXT, b"\xff"), 1007),
        ("not utf-8 in fragments", masked(TEXT, b"\xc3", last=False) + masked(CONTINUATION, b"("), 1007),
        ("surrogate", masked(TEXT, b"\xed\xa0\x80"), 1007),
        ("huge", bytes([0x82, 0xFF]) + struct.pack("!Q", 1 << 63) + MASK, 1009),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_what_breaks_the_protocol_has_its_close_code(name, data, code):
    with pytest.raises(Violation) as caught:
        read(data)
    assert caught.value.code == code, name


@pytest.mark.parametrize(("opcode", "limit"), [(TEXT, 1000), (BINARY, 5000)], ids=["text", "binary"])
def test_a_message_at_its_limit_passes_and_one_byte_more_does_not(opcode, limit):
    limits = {"max_text": 1000, "max_binary": 5000}
    assert read(masked(opcode, b"a" * limit), **limits) == [(opcode, b"a" * limit)]
    pieces = masked(opcode, b"a" * (limit - 1), last=False)
    assert read(pieces + masked(CONTINUATION, b"a"), **limits) == [(opcode, b"a" * limit)]
    # told by the announced length: not one byte of the payload has come
    for data in (masked(opcode, b"a" * (limit + 1))[:8], pieces + masked(CONTINUATION, b"aa")[:2]):
        parser = Parser(**limits)
        parser.feed(data)
        with pytest.raises(Violation) as caught:
            parser.next()
        assert caught.value.code == 1009


def test_a_large_message_in_fragments_has_its_limit_too():
    limits = {"max_text": 1000, "max_binary": 2000}
    with mock.patch.object(rfc6455, "LARGE_BYTES", 500):
        begun = masked(BINARY, b"a" * 600, last=False) + masked(CONTINUATION, b"b" * 1399, last=False)
        assert read(begun + masked(CONTINUATION, b"c"), **limits) == [(BINARY, b"a" * 600 + b"b" * 1399 + b"c")]
        parser = Parser(**limits)
        parser.feed(begun + masked(CONTINUATION, b"cc")[:2])
        with pytest.raises(Violation) as caught:
            parser.next()
    assert caught.value.code == 1009


def test_many_tiny_fragments_take_no_more_memory_than_their_bytes():
    parser = Parser(**LIMITS)
    parser.feed(masked(BINARY, b"a", last=False))
    for _ in range(20_000):
        parser.feed(masked(CONTINUATION, b"", last=False) + masked(CONTINUATION, b"b", last=False))
        assert parser.next() is None
    assert sum(sys.getsizeof(getattr(parser, name)) for name in ("_data", "_message")) < 30_000


@pytest.mark.parametrize("payload", [b"\x03", b"\x03\xec", b"\x03\xed", b"\x03\xe7", b"\x00\x00", b"\x13\x88\xff"])
def test_close_frames_that_may_not_be_sent_are_refused(payload):
    with pytest.raises(Violation):
        rfc6455.close_code(payload)


def test_close_frames_are_written_and_read():
    assert rfc6455.close_code(b"") == 1005
    for code, reason in ((1000, ""), (1012, "the server is restarting"), (4999, "ü" * 100)):
        frame = rfc6455.close_frame(code, reason)
        assert frame[1] == len(frame) - 2 <= 125
        assert rfc6455.close_code(frame[2:]) == code


@pytest.mark.parametrize("large", [256 << 10, 60], ids=["small", "large"])
def test_broken_streams_end_in_messages_or_a_close_code(large):
    """2,500 mutations each."""
    rng = random.Random(6455)
    ends = set()
    for _ in range(2500):
        data = bytearray(b"".join(masked(rng.choice((0, 1, 2, 8, 9, 10)), rng.randbytes(rng.choice((0, 1, 40, 130, 400))),
                                         last=rng.random() < 0.7) for _ in range(rng.randint(1, 4))))  # fmt: skip
        for _ in range(rng.randint(0, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        with mock.patch.multiple(rfc6455, LARGE_BYTES=large, FIRST_BYTES=20):
            ends.add(end_of(bytes(data), rng))
    assert ends == {0, 1002, 1007, 1009}


def end_of(data, rng):
    """The close code that these bytes lead to, cut anywhere; 0: none."""
    parser, at = Parser(max_text=200, max_binary=500, place=Ground(3, 10, 0)), 0
    try:
        while at < len(data):
            piece = data[at : at + rng.randint(1, len(data))]
            room = parser.room
            if room is None:
                parser.feed(piece)
            else:
                piece = piece[: len(room)]
                room[: len(piece)] = piece
                parser.came(len(piece))
            at += len(piece)
            while parser.next() is not None:
                pass
    except Violation as error:
        return error.code
    return 0
