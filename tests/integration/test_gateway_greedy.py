"""Rows 19 and 37 of the fault matrix, pipelining, bad networks: clients that ask for more than their part of one gateway,
which has the sizes of a real one. Who else asks is answered, and nothing of theirs stays behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import re
import socket
import time
from pathlib import Path

import httpx
import pytest

from tests.integration.test_gateway_chaos import AUTH, files, metric, post_bytes, rss_bytes, settled_files, standing
from tests.support import rawhttp
from tests.support.chaosproxy import ChaosProxy
from tests.support.gateway_house import request, until
from tests.support.hurry import hurried

HEAD = b"POST /v2/models/mlp/infer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ser_all.s2\r\n"
BODY_BYTES = 64 << 20


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A house whose gateway has been asked once. A body may pause longer than in a real one: a machine that does much
    else is slow to send 512 MiB.
    """
    env = hurried(tmp_path_factory.mktemp("site"), http__BODY_IDLE_S=300.0)
    with standing() as found:
        found.replica()
        found.publish(found.table())
        assert found.gateway(**env).wait_live().wait_ready().post().status_code == 200
        yield found


def test_a_client_that_pipelines_without_end_is_served_one_by_one_and_read_no_further(plain):
    """Others are answered beside it, nothing of its flood is kept, and what it gets is in the order of its requests."""
    replica, gateway = plain.replicas["r1"], plain.gateways[0]
    memory = rss_bytes(gateway)
    flood = b"".join(post_bytes(body=request([float(number), *[0.0] * 15])) for number in range(400))
    with socket.create_connection(("127.0.0.1", gateway.port)) as peer:
        replica.holds, before = True, len(replica.seen)
        peer.setblocking(False)
        sent, end = 0, time.monotonic() + 20
        while time.monotonic() < end:  # until neither side's buffers take more
            try:
                sent += peer.send(flood[sent % len(flood) :])
            except BlockingIOError:
                time.sleep(0.2)
                try:
                    sent += peer.send(flood[sent % len(flood) :])
                except BlockingIOError:
                    break
        assert len(flood) < sent < 64 << 20, "it was read on and on"
        assert len(replica.seen) == before + 1
        assert rss_bytes(gateway) - memory < 16 << 20
        peer.settimeout(20)
        plain.loop.call_soon_threadsafe(replica.let_go)
        assert gateway.post().status_code == 200
        found = b""
        while found.count(b"HTTP/1.1 200") < 300:
            found += peer.recv(1 << 16)
        firsts = [json.loads(one)["outputs"][0]["data"][0] for one in re.findall(rb"\r\n\r\n(\{.*?\]\}\]\})", found)]
        assert firsts == [2.0 * (number % 400) for number in range(len(firsts))]
        assert len(firsts) >= 299
    assert gateway.post().status_code == 200
    until(lambda: metric(gateway, "serinus_requests_in_flight") == 0)


async def test_networks_that_delay_dribble_and_reset_break_only_their_own_connections(plain):
    gateway = plain.gateways[0]
    proxy = await ChaosProxy(gateway.port).start()
    url = f"http://127.0.0.1:{proxy.port}/v2/models/mlp/infer"
    async with httpx.AsyncClient(headers=AUTH, timeout=20) as client:
        for mode, more in (
            ("pass", {}),
            ("delay", {"delay_ms": 30, "jitter_ms": 20}),
            ("throttle", {"bytes_per_s": 3000}),
        ):
            proxy.set(mode, **more)
            answers = await asyncio.gather(*(client.post(url, json=request()) for _ in range(4)))
            assert [answer.status_code for answer in answers] == [200] * 4, mode
        for mode, more in (("cut_after", {"bytes_left": 100}), ("reset", {})):
            proxy.set(mode, **more)
            with pytest.raises(httpx.HTTPError):
                await client.post(url, json=request())
        proxy.set("pass")
        assert (await client.post(url, json=request())).status_code == 200
    await proxy.stop()
    await asyncio.to_thread(until, lambda: metric(gateway, "serinus_requests_in_flight") == 0)


def peak_bytes(gateway):
    """The most that it has held since `forget_peak`."""
    line = next(
        line for line in Path(f"/proc/{gateway.process.pid}/status").read_text().splitlines() if "VmHWM" in line
    )
    return int(line.split()[1]) << 10


def forget_peak(gateway):
    Path(f"/proc/{gateway.process.pid}/clear_refs").write_text("5")
    return rss_bytes(gateway)


def announced():
    yield HEAD + b"Content-Length: 1073741824\r\n\r\n"
    yield from [bytes(1 << 20)] * 4


def endless():
    yield HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    while True:
        yield b"100000\r\n" + bytes(1 << 20) + b"\r\n"


def many_chunks():
    yield HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 65_537


def bomb():
    packed = gzip.compress(bytes(BODY_BYTES * 3), compresslevel=1)
    yield HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed) + packed


@pytest.mark.parametrize("parts", [announced, endless, many_chunks, bomb])
def test_row_19_a_body_that_is_too_large_is_413_and_costs_less_than_two_that_fit(plain, parts):
    gateway = plain.gateways[0]
    before = forget_peak(gateway)
    answer = rawhttp.exchange(gateway.port, parts(), timeout_s=100)
    # who goes on sending may find its connection reset before it has read what was said
    assert answer.status_code == 413 or (parts is endless and answer.status_code == 0), answer.text[:200]
    if answer.status_code and parts is not bomb:
        assert answer.headers["connection"] == "close"
    assert peak_bytes(gateway) - before < 2 * BODY_BYTES
    assert gateway.post().status_code == 200


def test_eight_bodies_of_64_mib_on_their_way_hold_that_much_memory_and_no_more(plain):
    gateway = plain.gateways[0]
    before = forget_peak(gateway)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port))) for _ in range(8)]
        for peer in peers:
            peer.settimeout(100)
            peer.sendall(HEAD + b"Inference-Header-Content-Length: 99999999\r\nContent-Length: %d\r\n\r\n" % BODY_BYTES)
        for size in [1 << 20] * 63 + [(1 << 20) - 1]:  # in turn, so that none of them pauses
            for peer in peers:
                peer.sendall(b" " * size)

        def ninth():
            answer = rawhttp.exchange(gateway.port, [HEAD + b"Content-Length: 1048576\r\n\r\n" + b" " * (1 << 20)])
            return answer.status_code, answer.headers["x-error-code"]

        until(lambda: ninth() == (503, "overloaded"), 30)  # once all that was sent is there
        print(f"\n8 bodies of 64 MiB on their way: {(rss_bytes(gateway) - before) / 2**20:.0f} MiB in the gateway")
        assert gateway.post().status_code == 200, "small ones pass beside them"
        for peer in peers:  # whole now, and shorter than they said that their JSON was
            peer.sendall(b" ")
        for peer in peers:
            assert peer.recv(65536).startswith(b"HTTP/1.1 400")
        assert peak_bytes(gateway) - before < 8 * BODY_BYTES + (48 << 20)
    until(lambda: rss_bytes(gateway) - before < BODY_BYTES, 20)
    assert metric(gateway, "serinus_requests_in_flight") == 0


REFUSED = {
    "json": ("infer", b""),
    "length": ("infer", b"Inference-Header-Content-Length: 99999999\r\n"),
    "raw": ("infer", b"Inference-Header-Content-Length: 0\r\n"),
    "gzip": ("infer", b"Content-Encoding: gzip\r\n"),
    "generate": ("generate", b""),
    "stream": ("generate_stream", b""),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_large_body_that_is_refused_is_given_back_at_once(plain, what):
    """Not when the garbage collector happens to come by, which a gateway lets do so seldom."""
    gateway, (verb, more) = plain.gateways[0], REFUSED[what]
    before = rss_bytes(gateway)
    head = HEAD.replace(b"/infer", b"/" + verb.encode()) + more + b"Content-Length: %d\r\n\r\n" % (BODY_BYTES // 2)
    for _ in range(3):
        answer = rawhttp.exchange(gateway.port, [head + b" " * (BODY_BYTES // 2)], timeout_s=100)
        assert answer.status_code == 400, answer.text[:200]
    until(lambda: rss_bytes(gateway) - before < BODY_BYTES // 4)


async def test_row_37_connections_that_come_and_go_leave_nothing(plain):
    gateway = plain.gateways[0]
    base, memory = await asyncio.to_thread(lambda: (settled_files(gateway), rss_bytes(gateway)))
    asked = post_bytes()

    async def one(number):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        if number % 4 == 1:
            writer.write(asked)
        elif number % 4 == 2:
            writer.write(asked)
            assert (await reader.read(65536)).startswith(b"HTTP/1.1 200")
        elif number % 4 == 3:
            writer.write(asked[:50])
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    for wave in range(40):
        await asyncio.gather(*(one(wave * 50 + number) for number in range(50)))
    await asyncio.to_thread(until, lambda: files(gateway) <= base + 2, 15)
    await asyncio.to_thread(until, lambda: metric(gateway, "serinus_requests_in_flight") == 0)
    assert rss_bytes(gateway) - memory < 32 << 20
