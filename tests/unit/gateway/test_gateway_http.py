"""Connections of the gateway: one request at a time whatever way its bytes come, and bounds on everything."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import Malformed, Overloaded, TooLarge
from inference.gateway import heads, http
from inference.gateway.bodies import Bodies
from inference.gateway.heads import Heads

LIMIT = 1 << 20


class Transport:
    """What a connection sees of its socket."""

    def __init__(self):
        self.sent = bytearray()
        self.paused = self.closed = self.aborted = False

    def write(self, data):
        self.sent += data

    def writelines(self, parts):
        self.sent += b"".join(bytes(part) for part in parts)

    def pause_reading(self):
        self.paused = True

    def resume_reading(self):
        self.paused = False

    def can_write_eof(self):
        return False

    def close(self):
        self.closed = True

    def abort(self):
        self.aborted = True


class App:
    """Notes what comes; answers at once with the body it was sent, unless told to wait."""

    def __init__(self):
        self.seen, self.refused, self.waiting = [], [], []
        self.draining = self.holds = False
        self.preflight_error = None

    def passes_on(self, head):
        return False

    def memory(self, head):
        return None

    def preflight(self, head):
        if self.preflight_error:
            raise self.preflight_error

    def handle(self, connection, head, body):
        self.seen.append((head.method, head.path, bytes(body)))
        if self.holds:
            self.waiting.append(connection)
        else:
            connection.respond(200, [], bytes(body).hex().encode())

    def refuse(self, connection, head, error):
        self.refused.append(error)
        connection.respond(400, [(b"connection", b"close")], b"")

    def upgrade(self, connection, head, rest):
        self.seen.append(("upgrade", head.path, rest))


@pytest.fixture
async def made():
    yield make()
    await asyncio.sleep(0)


def make(limit=LIMIT):
    app, transport = App(), Transport()
    connection = http.Connection(app, Heads(), Bodies(limit), set())
    connection.connection_made(transport)
    return app, transport, connection


def give(connection, transport, data):
    """Receives `data` as the event loop does, and no more than is read."""
    at = 0
    while at < len(data) and not transport.paused:
        into = connection.get_buffer(-1)
        size = min(len(into), len(data) - at)
        into[:size] = data[at : at + size]
        connection.buffer_updated(size)
        at += size
    return data[at:]


def post(body=b"", path="/p", more=b""):
    return b"POST %b HTTP/1.1\r\nHost: h\r\n%bContent-Length: %d\r\n\r\n%b" % (path.encode(), more, len(body), body)


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=5), st.lists(st.integers(1, 90), min_size=1))
def test_requests_survive_any_cutting_and_are_answered_in_order(bodies, cuts):
    async def run():
        app, transport, connection = make()
        data, turn = b"".join(post(body) for body in bodies), 0
        while data or transport.paused:
            step = cuts[turn % len(cuts)]
            left = give(connection, transport, data[:step])
            data = left + data[step:]
            turn += 1
            await asyncio.sleep(0)
        return app, transport

    app, transport = asyncio.run(run())
    assert [body for _, _, body in app.seen] == bodies
    assert transport.sent.count(b"HTTP/1.1 200 OK") == len(bodies)


async def test_a_large_body_is_received_in_place(made):
    app, transport, connection = made
    body = bytes(range(256)) * 4000
    give(connection, transport, post(body))
    assert app.seen == [("POST", "/p", body)]


async def test_what_is_pipelined_waits_and_is_not_read_further(made):
    app, transport, connection = made
    app.holds = True
    give(connection, transport, post(b"1") + post(b"2") + post(b"3"))
    assert [body for _, _, body in app.seen] == [b"1"]
    assert transport.paused
    for number in (2, 3):
        app.waiting.pop().respond(200, [], b"")
        await asyncio.sleep(0)
        assert len(app.seen) == number
    app.waiting.pop().respond(200, [], b"")
    await asyncio.sleep(0)
    assert not transport.paused


@pytest.mark.parametrize(
    "head",
    [
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1e3\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost : h\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\n folded: x\r\n\r\n",
        b"POST / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/2.0\r\nHost: h\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nAuthorization: a\r\nAuthorization: b\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\nHost: h\r\n\r\n",
        b"\x16\x03\x01\x02\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n",
    ],
    ids=range(15),
)
async def test_a_head_that_two_readers_could_read_differently_is_refused(made, head):
    app, transport, connection = made
    give(connection, transport, head + b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n")
    assert not app.seen
    assert isinstance(app.refused[0], Malformed)
    assert b"connection: close" in transport.sent


@given(st.binary(max_size=300), st.lists(st.integers(1, 40), min_size=1))
def test_noise_gets_one_answer_at_most_and_ends(noise, cuts):
    async def run():
        app, transport, connection = make()
        data, turn = noise + b"\r\n\r\n", 0
        while data and not connection._closing:
            step = cuts[turn % len(cuts)]
            data = give(connection, transport, data[:step]) + data[step:]
            turn += 1
            await asyncio.sleep(0)
        return app

    assert len(asyncio.run(run()).refused) <= 1


async def test_heads_are_bounded(made):
    app, transport, connection = made
    give(connection, transport, b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"a" * heads.MAX_HEAD_BYTES)
    assert isinstance(app.refused[0], TooLarge)


async def test_a_body_that_is_too_large_is_refused_before_it_comes(made):
    app, transport, connection = made
    give(connection, transport, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (LIMIT + 1))
    assert isinstance(app.refused[0], TooLarge)
    app, transport, connection = make()
    app.preflight_error = Overloaded()
    give(connection, transport, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n")
    assert app.refused == [app.preflight_error]
    assert b"100 Continue" not in transport.sent


async def test_who_expects_a_word_before_the_body_gets_it(made):
    app, transport, connection = made
    give(connection, transport, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert transport.sent == b"HTTP/1.1 100 Continue\r\n\r\n"
    give(connection, transport, b"ab")
    assert app.seen[0][2] == b"ab"


async def test_slow_heads_stuck_bodies_and_idle_connections_end(made):
    app, transport, connection = made
    start = connection._since
    connection.beat(start + http.IDLE_S - 1)
    assert not transport.closed
    give(connection, transport, b"POST / HT")
    connection.beat(connection._since + http.HEAD_S + 1)
    assert "head" in app.refused[0].message
    app, transport, connection = make()
    give(connection, transport, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nab")
    connection.beat(connection._since + http.BODY_IDLE_S - 1)
    assert not app.refused
    connection.beat(connection._since + http.BODY_IDLE_S + 1)
    assert "body" in app.refused[0].message
    app, transport, connection = make()
    connection.beat(connection._since + http.IDLE_S + 1)
    assert transport.closed
    app, transport, connection = make()
    connection.pause_writing()
    connection.beat(connection._stalled_since + http.STALL_S + 1)
    assert transport.aborted


async def test_a_request_under_way_is_not_timed_by_the_connection(made):
    app, transport, connection = made
    app.holds = True
    give(connection, transport, post(b"1"))
    connection.beat(1e12)
    assert not transport.closed
    assert not app.refused


async def test_who_works_on_a_request_is_told_when_its_client_leaves(made):
    app, transport, connection = made
    app.holds, told = True, []
    give(connection, transport, post(b"1"))
    connection.owner = type("Owner", (), {"left": lambda self: told.append(1)})()
    connection.connection_lost(None)
    connection.respond(200, [], b"late")
    assert told == [1]
    assert not transport.sent


async def test_http_1_0_and_close_are_honoured(made):
    app, transport, connection = made
    give(connection, transport, b"GET / HTTP/1.0\r\n\r\n")
    assert b"connection: close" in transport.sent
    app, transport, connection = make()
    give(connection, transport, b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert b"connection: keep-alive" in transport.sent
    app, transport, connection = make()
    app.draining = True
    give(connection, transport, post(b"1"))
    assert b"connection: close" in transport.sent


async def test_a_head_request_has_no_body_in_its_answer(made):
    app, transport, connection = made
    app.holds = True
    give(connection, transport, b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n")
    app.waiting.pop().respond(200, [], b"abc")
    assert transport.sent.endswith(b"content-length: 3\r\n\r\n")


def test_heads_are_kept_by_their_bytes_and_bounded():
    kept = Heads()
    data = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
    assert kept.get(data) is kept.get(data)
    changing = b"GET / HTTP/1.1\r\nHost: h\r\nX-Request-Id: 1\r\n\r\n"
    assert kept.get(changing) is not kept.get(changing)
    for number in range(heads.MAX_KEPT + 10):
        kept.get(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % number)
    assert len(kept._kept) <= heads.MAX_KEPT
