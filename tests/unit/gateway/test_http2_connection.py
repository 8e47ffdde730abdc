"""A connection's patience, and its writes, over a real socket; the clock is handed to its beat."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import time
import weakref

import pytest

from inference.gateway.http2 import connection, frames
from inference.gateway.http2.connection import Connection
from inference.gateway.http2.frames import Code, Setting
from tests.support.http2_peer import BEGIN, App, Echo, Peer, data, read_frames


@contextlib.asynccontextmanager
async def joined(app=None, said=BEGIN):
    """(the connection, its application, a client that reads and writes)"""
    app = app or App()
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    _, found = await loop.connect_accepted_socket(lambda: Connection(app, set()), ours)
    reader, writer = await asyncio.open_connection(sock=theirs)
    writer.write(said)
    if said.startswith(frames.PREFACE + frames.settings({})):
        await heard(reader, frames.SETTINGS)
        await heard(reader, frames.SETTINGS)  # the ack of ours
    yield found, app, reader, writer
    writer.close()
    found.abort()


async def heard(reader, kind):
    """The next frame of this kind."""
    while True:
        head = await asyncio.wait_for(reader.readexactly(9), 10)
        payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
        if head[3] == kind:
            return read_frames(head + payload)[0]


async def until(true):
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


async def over(reader):
    """The code of the GOAWAY with which the connection ended."""
    code = int.from_bytes((await heard(reader, frames.GOAWAY)).payload[4:8], "big")
    assert await asyncio.wait_for(reader.read(), 10) == b""
    return code


@pytest.mark.parametrize("said", [b"", frames.PREFACE[:9], frames.PREFACE], ids=["nothing", "half", "no settings"])
async def test_a_preface_must_come_in_time(said):
    async with joined(said=said) as (found, _, reader, _writer):
        await heard(reader, frames.WINDOW_UPDATE)
        found.beat(time.monotonic() + connection.HEAD_S - 1)
        assert not found.machine.is_over
        found.beat(time.monotonic() + connection.HEAD_S + 1)
        assert await over(reader) == Code.ENHANCE_YOUR_CALM


async def test_a_header_block_must_come_in_time():
    async with joined() as (found, _app, reader, writer):
        writer.write(frames.head(1, frames.HEADERS, 0, 1) + b"\x82" + frames.ping(bytes(8), is_ack=False)[:4])
        await until(lambda: bool(found.machine.block_since))
        found.beat(time.monotonic() + connection.HEAD_S + 1)
        assert await over(reader) == Code.ENHANCE_YOUR_CALM


async def test_a_silent_client_is_asked_and_then_cut():
    async with joined() as (found, _app, reader, writer):
        now = time.monotonic()
        found.beat(now + connection.QUIET_S + 1)
        asked = await heard(reader, frames.PING)
        writer.write(frames.ping(asked.payload, is_ack=True))
        before = found._heard
        await until(lambda: found._heard != before)
        found.beat(found._heard + connection.QUIET_S + connection.PONG_S - 1)
        assert not found._is_closing
        found.beat(found._heard + connection.QUIET_S + connection.PONG_S + 1)
        assert await asyncio.wait_for(reader.read(), 10) is not None
        assert found._is_closing


async def test_a_stream_whose_window_stays_shut_is_reset_and_others_go_on():
    async with joined() as (found, app, reader, writer):
        peer = Peer()
        writer.write(frames.settings({Setting.INITIAL_WINDOW_SIZE: 0}) + peer.request(1, b"held"))
        await heard(reader, frames.HEADERS)
        now = time.monotonic()
        found.beat(now + connection.STALL_S - 1)
        assert 1 in found.machine.streams
        found.beat(now + connection.STALL_S + 2)
        reset = await heard(reader, frames.RST_STREAM)
        assert (reset.number, int.from_bytes(reset.payload, "big")) == (1, Code.CANCEL)
        writer.write(peer.request(3, b"goes") + frames.window_update(3, 9))
        assert (await heard(reader, frames.DATA)).payload == b"goes"
        assert app.log[-1] == ("ended", 3, b"goes")


@pytest.mark.parametrize("number", [0, 1], ids=["connection", "stream"])
async def test_a_window_that_opens_lets_go_at_once(number):
    """Nothing else comes or is due: neither a frame that is answered nor a beat."""
    sizes = {0: 70_000, 1: 9}
    async with joined() as (_found, _app, reader, writer):
        peer, body = Peer(), bytes(sizes[number])
        window = 1 << 20 if number == 0 else 4
        writer.write(frames.settings({Setting.INITIAL_WINDOW_SIZE: window}))
        await heard(reader, frames.SETTINGS)
        writer.write(peer.head(1) + b"".join(data(1, body[at : at + 16_000]) for at in range(0, len(body), 16_000)))
        writer.write(data(1, ends=True))
        got = 0
        while got < (65_535 if number == 0 else 4):
            got += len((await heard(reader, frames.DATA)).payload)
        writer.write(frames.window_update(number, 1 << 20))
        while got < len(body):
            got += len((await heard(reader, frames.DATA)).payload)


async def test_a_client_that_reads_nothing_is_cut_and_holds_a_bounded_amount():
    async with joined() as (found, _app, _reader, writer):
        writer.transport.pause_reading()
        wide = frames.settings({Setting.INITIAL_WINDOW_SIZE: frames.MOST_WINDOW}) + frames.window_update(0, 1 << 30)
        peer = Peer()
        writer.write(wide)
        for number in range(1, 17, 2):
            writer.write(peer.head(number) + data(number, bytes(1 << 20), ends=True))
            await writer.drain()
        await until(lambda: bool(found._is_paused))
        assert found.transport.get_write_buffer_size() <= 2 * connection.AT_ONCE_BYTES
        found.beat(time.monotonic() + connection.STALL_S + 1)
        assert found._is_closing


async def test_a_client_that_asks_and_takes_nothing_is_read_no_further():
    async with joined() as (found, app, reader, writer):
        wide = frames.settings({Setting.INITIAL_WINDOW_SIZE: frames.MOST_WINDOW}) + frames.window_update(0, 1 << 30)
        peer, count = Peer(), 1500
        writer.transport.pause_reading()
        writer.write(wide + b"".join(peer.request(2 * number + 1, bytes(16_000)) for number in range(count)))
        await until(lambda: found._is_held)
        last = found.machine.last
        assert last < 2 * count - 1
        assert found.transport.get_write_buffer_size() < 2 * connection.MAX_OWED_BYTES
        writer.transport.resume_reading()
        size = 0
        while size < count * 16_000:
            size += len((await heard(reader, frames.DATA)).payload)
        assert app.log[-1][:2] == ("ended", 2 * count - 1)


async def test_large_answers_leave_in_turns_and_whole():
    async with joined() as (_found, app, reader, writer):
        wide = frames.settings({Setting.INITIAL_WINDOW_SIZE: frames.MOST_WINDOW}) + frames.window_update(0, 1 << 30)
        peer, body = Peer(), bytes(range(256)) * 4000
        writer.write(wide + peer.head(1) + data(1, body, ends=True) + peer.request(3, b"small"))
        got = {1: b"", 3: b""}
        while got != {1: body, 3: b"small"}:
            frame = await heard(reader, frames.DATA)
            got[frame.number] += frame.payload
        assert app.log[-1][0] != "left"


async def test_draining_ends_a_connection_when_nothing_is_under_way():
    class Held(Echo):
        def ended(self):
            self.log.append(("ended", self.stream.number, self.body))

    async with joined(App(Held)) as (found, app, reader, writer):
        writer.write(Peer().request(1, b"x"))
        await until(lambda: not (not app.log or app.log[-1][0] != "ended"))
        found.drain()
        assert (await heard(reader, frames.GOAWAY)).payload[:4] == frames.MOST_WINDOW.to_bytes(4, "big")
        found.beat(time.monotonic() + connection.DRAIN_S + 1)  # it does not answer the ping
        assert (await heard(reader, frames.GOAWAY)).payload[:4] == (1).to_bytes(4, "big")
        held = app.receivers[0]
        held.machine.answer(held.stream, b"\x88", [b"last"], b"\x88")
        assert (await heard(reader, frames.DATA)).payload == b"last"
        await heard(reader, frames.HEADERS)
        assert await asyncio.wait_for(reader.read(), 10) == b""


async def test_a_client_that_leaves_is_told_to_its_receivers():
    async with joined() as (_found, app, _reader, writer):
        writer.write(Peer().head(1))
        await until(lambda: bool(app.receivers))
        writer.transport.abort()
        await until(lambda: app.log[-1] == ("left", 1))


async def test_a_connection_that_is_gone_leaves_nothing_to_the_collector():
    async with joined() as (found, app, _reader, writer):
        writer.write(Peer().head(1))
        await until(lambda: app.receivers)
        gone = weakref.ref(found.machine)
        gc.disable()
        try:
            writer.transport.abort()
            await until(lambda: app.log[-1] == ("left", 1))
            app.receivers.clear()
            await asyncio.sleep(0)
            found.machine = None
            assert gone() is None
        finally:
            gc.enable()
