"""Header blocks: what is remembered of them is what a decoder without memory says."""

import pytest
from hpack import Decoder, Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.gateway.http2 import headers
from inference.gateway.http2.frames import Code, ConnectionFault, StreamFault
from inference.gateway.http2.headers import HeadReader, field, status
from tests.support.http2_peer import POST

NAMES = st.sampled_from(["authorization", "grpc-timeout", "user-agent", "k", "x-bin"])
VALUES = st.sampled_from(["", "a", "30S", "x" * 300, "y" * 1500, "Bearer ser_all.s2"])
FIELDS = st.lists(st.tuples(NAMES, VALUES, st.booleans()), max_size=4)
# a table size of the encoder's choice, or None for the one there is
SIZES = st.sampled_from([None, None, None, 0, 64, 400, 4096])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(FIELDS, SIZES, st.booleans()), min_size=1, max_size=25))
def test_a_remembered_block_means_what_a_decoder_without_memory_says(blocks):
    """Encoders that index and do not, that change the table's size, and that say a block's very bytes again, when they
    mean the same and when they do not.
    """
    encoder, plain, reader = Encoder(), Decoder(), HeadReader()
    for fields, size, again in blocks:
        if size is not None:
            encoder.header_table_size = size
        block = encoder.encode([*POST, *[(name, value, is_secret) for name, value, is_secret in fields]])
        for said in [block, block, block] if again else [block]:
            wanted = expected(plain, said)
            if wanted is None:
                with pytest.raises(ConnectionFault):
                    reader.head(said)
                return  # the connection is over
            try:
                found = reader.head(said)
            except StreamFault:  # said again it may be no request, but the tables go on together
                continue
            assert [(b":method", found.method), (b":path", found.path), *found.fields] == wanted


def expected(plain, block):
    try:
        found = [(bytes(name), bytes(value)) for name, value in plain.decode(block, raw=True)]
    except Exception:  # whatever the library says: it cannot be read
        return None
    order = {b":method": 0, b":path": 1}
    pseudo = sorted((one for one in found if one[0] in order), key=lambda one: order[one[0]])
    return [*pseudo, *[one for one in found if not one[0].startswith(b":")]]


def test_a_block_that_changes_nothing_is_read_once():
    reader, encoder = HeadReader(), Encoder()
    first = encoder.encode(POST)
    reader.head(first)
    second = encoder.encode(POST)
    assert second != first
    assert reader.head(second) is reader.head(second)
    third = encoder.encode([*POST, ("new", "entry")])
    kept = reader.head(second)
    reader.head(third)  # what an index names is another entry now
    assert reader.head(encoder.encode(POST)) is not kept


def test_an_entry_of_the_same_words_is_another_state_of_the_table():
    """The table looks the same after a block that adds what it throws out, but indexes may not be read from memory."""
    reader, plain = HeadReader(), Decoder()
    for decoder in (reader._decoder, plain):
        decoder.header_table.maxsize = 2 * (32 + 2)
    add = b"\x82\x87\x84" + b"".join(
        b"\x40\x01" + name + b"\x01" + value for name, value in ((b"a", b"1"), (b"b", b"2"))
    )
    use = b"\x82\x87\x84\xbe\xbf"
    for block in (add, use, add, use, b"\x82\x87\x84\x40\x01c\x013", use):
        wanted = [one for one in plain.decode(block, raw=True) if not one[0].startswith(b":")]
        assert reader.head(block).fields == [(bytes(name), bytes(value)) for name, value in wanted]


def test_what_is_remembered_is_bounded():
    reader = HeadReader()
    for number in range(500):
        reader.head(b"\x82\x87\x84" + field(b"k", b"%d" % number))
        assert len(reader._kept) <= headers.MAX_KEPT
    reader.head(b"\x82\x87\x84" + field(b"k", b"x" * 3000))
    assert max(map(len, reader._kept)) <= headers.KEPT_BYTES


@pytest.mark.parametrize(
    "block",
    [
        b"\xff" * 20, b"\x40\x05ab", b"\x00\x03abc", b"\x82\x3f\xe1\x7f", b"\x3f\xff\xff\xff\x7f", b"\x00\x81\xff\x01a",
        b"\x40", b"\xff\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
    ],
)  # fmt: skip
def test_a_block_that_cannot_be_read_ends_the_connection(block):
    with pytest.raises(ConnectionFault) as caught:
        HeadReader().head(block)
    assert caught.value.code is Code.COMPRESSION_ERROR


def test_spaces_around_a_value_are_none_of_it():
    assert headers.checked(
        [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/"), (b"a", b" b\t")]
    ).fields == [(b"a", b"b")]
    with pytest.raises(StreamFault):
        headers.checked([(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/\n")])


@given(st.binary(min_size=1, max_size=20), st.binary(max_size=400), st.integers(200, 599))
def test_what_is_written_is_read(name, value, number):
    block = status(number) + field(name, value)
    assert Decoder().decode(block, raw=True) == [(b":status", b"%d" % number), (name, value)]
