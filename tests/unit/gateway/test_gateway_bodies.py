"""The memory of request bodies: what counts, what is refused, what is given back; and bodies that come in chunks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import Malformed, Overloaded, TooLarge
from inference.gateway.bodies import HELD_BODIES, SMALL_BYTES, Bodies, Held
from inference.gateway.chunks import MAX_CHUNKS, MAX_LINE_BYTES, MAX_TRAILER_BYTES, Chunked

LIMIT = 1 << 20


def test_small_bodies_do_not_count_and_large_ones_are_given_back():
    bodies = Bodies(LIMIT)
    one = Held(bodies)
    one.grow(SMALL_BYTES)
    assert bodies.held_bytes == 0
    one.grow(SMALL_BYTES + 1)
    one.grow(LIMIT)
    assert bodies.held_bytes == LIMIT
    one.release()
    one.release()
    assert bodies.held_bytes == 0


def test_the_limit_itself_is_fine_and_one_more_is_not():
    held = Held(Bodies(LIMIT))
    held.grow(LIMIT)
    with pytest.raises(TooLarge):
        held.grow(LIMIT + 1)


def test_all_bodies_together_are_bounded_while_they_come():
    bodies = Bodies(LIMIT)
    many = [Held(bodies) for _ in range(HELD_BODIES)]
    for one in many:
        one.grow(LIMIT)
    with pytest.raises(Overloaded):
        Held(bodies).grow(SMALL_BYTES + 1)
    many[0].release()
    Held(bodies).grow(SMALL_BYTES + 1)


def chunked(pieces, trailer=b""):
    return b"".join(b"%x;a=b\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n" + trailer + b"\r\n"


def read(data, cuts, limit=LIMIT):
    machine, at, turn = Chunked(Bodies(limit)), 0, 0
    while at < len(data):
        step = cuts[turn % len(cuts)]
        body = machine.feed(data[at : at + step])
        at, turn = at + step, turn + 1
        if body is not None:
            return body, machine.rest + data[at:]
    return None, b""


@given(st.lists(st.binary(min_size=1, max_size=40)), st.lists(st.integers(1, 30), min_size=1), st.binary(max_size=20))
def test_chunks_survive_any_cutting(pieces, cuts, after):
    data = chunked(pieces, b"x-trailer: y\r\n") + after
    assert read(data, cuts) == (b"".join(pieces), after)


@given(st.binary(max_size=60), st.lists(st.integers(1, 30), min_size=1))
def test_noise_is_refused_or_waits(noise, cuts):
    try:
        read(noise, cuts)
    except (Malformed, TooLarge):
        return


@pytest.mark.parametrize(
    "data", [b"z\r\n", b"-1\r\n", b"0x1\r\n", b"1\r\nab\r\n", b"1\r\na\n\r\n", b"123456789\r\n", b" 1\r\n"]
)
def test_broken_chunks_are_refused(data):
    with pytest.raises(Malformed):
        read(data, [1000])


def test_chunks_are_bounded_in_size_number_and_lines():
    with pytest.raises(TooLarge):
        read(b"%x\r\n" % (LIMIT + 1), [100])
    with pytest.raises(TooLarge, match="chunks"):
        read(b"1\r\na\r\n" * (MAX_CHUNKS + 1), [1 << 16])
    with pytest.raises(TooLarge, match="line"):
        read(b"1;" + b"a" * MAX_LINE_BYTES, [1 << 16])
    with pytest.raises(TooLarge, match="line"):
        read(b"0\r\nx: " + b"a" * MAX_TRAILER_BYTES, [1 << 16])
