"""Rows 15, 16, 17, 18, 22, 29, 36, 37 and 39 of the fault matrix: a real gateway process under bad clients, bad networks
and replicas that die. Numbers are modest here; `make soak` and `make bench` have the full ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import resource
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import websockets

from inference.protocol.messages import Fault
from inference.protocol.routes import EndpointRoute, VariantRoute
from tests.support.chaosproxy import ChaosProxy
from tests.support.gateway_house import MLP, TEXT, House, request, until
from tests.support.hurry import hurried

AUTH = {"Authorization": "Bearer ser_all.s2"}
KEY = ["serinus.v1", "serinus.key.ser_all.s2"]


@pytest.fixture
def house():
    found = House()
    yield found
    for gateway in found.gateways:
        assert "Traceback" not in gateway.log.read_text()
    found.close()


def begun(house, tmp_path, *, variants=None, max_files=0, table=None, **constants):
    """A gateway with an endpoint `mlp`, with some of its times shortened."""
    if not house.replicas:
        house.replica()
    house.publish(house.table(variants, **(table or {})))
    env = hurried(tmp_path / "site", max_files=max_files, **constants)
    return house.gateway(**env).wait_live().wait_ready()


def metric(gateway, name):
    lines = [line for line in gateway.get("/metrics").text.splitlines() if line.startswith(name)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def files(gateway):
    return len(list(Path(f"/proc/{gateway.process.pid}/fd").iterdir()))


def settled_files(gateway):
    """The descriptors of a gateway that nobody asks: those of calls that are over may be there for a moment."""
    found = [files(gateway)]
    while len(found) < 20:
        time.sleep(0.02)
        found.append(files(gateway))
    return min(found)


def rss_bytes(gateway):
    return int(Path(f"/proc/{gateway.process.pid}/statm").read_text().split()[1]) * resource.getpagesize()


def post_bytes(path="/v2/models/mlp/infer", body=None):
    data = json.dumps(body or request()).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ser_all.s2\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def magic(value):
    return request([value, *[0.0] * 15])


async def open_stream(port, name="mlp"):
    url = f"ws://127.0.0.1:{port}/v2/models/{name}/stream"
    return await websockets.connect(url, subprotocols=KEY, compression=None, ping_interval=None)


def test_row_15_a_reader_of_one_byte_a_second_is_cut_and_others_notice_nothing(house, tmp_path):
    many = house.replica("many")
    many.answers, many.pace_s = 100_000, 0.001
    endpoint = EndpointRoute("many", "m", "s", False, 60_000, 64, [VariantRoute(1, "primary", 10_000, TEXT, [house.route("many")])])  # fmt: skip
    house.replica()
    gateway = begun(house, tmp_path, table={"endpoints": [endpoint]}, http__STALL_S=2.0).wait_ready("many")
    memory = rss_bytes(gateway)
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", gateway.port))
        slow.sendall(post_bytes("/v2/models/many/generate_stream", {"text": "a" * 16_000}))
        assert slow.recv(1)
        until(lambda: many.pauses, 10)
        began, answered = time.monotonic(), 0
        while not many.cancelled and time.monotonic() - began < 20:
            slow.recv(1)
            assert gateway.post().status_code == 200
            answered += 1
            time.sleep(0.2)
        assert many.cancelled, "the stream was not cut"
    assert answered >= 3
    assert rss_bytes(gateway) - memory < 64 << 20
    until(lambda: metric(gateway, "serinus_requests_in_flight") == 0)


def test_row_16_five_hundred_slow_heads_are_closed_and_good_clients_are_served(house, tmp_path):
    gateway = begun(house, tmp_path, http__HEAD_S=2.0)
    base = settled_files(gateway)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port))) for _ in range(500)]
        until(lambda: files(gateway) >= base + 500)
        for peer in peers:
            peer.sendall(b"POST /v2/models/mlp/infer HTTP/1.1\r\nHos")
            peer.settimeout(15)
        good = 0
        end = time.monotonic() + 15
        while files(gateway) > base + 5:
            assert time.monotonic() < end, "slow heads are still open"
            assert gateway.post().status_code == 200
            good += 1
        assert good >= 5
        for peer in peers[::50]:
            assert peer.recv(4096).startswith(b"HTTP/1.1 400")
    assert gateway.post().status_code == 200


def test_a_client_that_pipelines_without_end_is_served_one_by_one_and_read_no_further(house, tmp_path):
    """Others are answered beside it, nothing of its flood is kept, and what it gets is in the order of its requests."""
    replica = house.replica()
    gateway = begun(house, tmp_path)
    assert gateway.post().status_code == 200
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
        house.loop.call_soon_threadsafe(replica.let_go)
        assert gateway.post().status_code == 200
        found = b""
        while found.count(b"HTTP/1.1 200") < 300:
            found += peer.recv(1 << 16)
        firsts = [json.loads(one)["outputs"][0]["data"][0] for one in re.findall(rb"\r\n\r\n(\{.*?\]\}\]\})", found)]
        assert firsts == [2.0 * (number % 400) for number in range(len(firsts))]
        assert len(firsts) >= 299
    assert gateway.post().status_code == 200
    until(lambda: metric(gateway, "serinus_requests_in_flight") == 0)


async def test_row_17_a_half_open_websocket_is_found_out_by_its_pings(house, tmp_path):
    replica = house.replica()
    gateway = await asyncio.to_thread(begun, house, tmp_path, stream__PING_S=0.5, table={"timeout_ms": 60_000})
    proxy = await ChaosProxy(gateway.port).start()
    stream = await open_stream(proxy.port)
    await stream.send(json.dumps(request(identity="1")))
    assert "outputs" in json.loads(await asyncio.wait_for(stream.recv(), 10))
    replica.latency_s = 60.0
    await stream.send(json.dumps(request(identity="2")))
    await asyncio.to_thread(until, lambda: len(replica.seen) == 2)
    proxy.set("stall")
    await asyncio.to_thread(until, lambda: replica.cancelled, 15)
    await asyncio.to_thread(until, lambda: metric(gateway, "serinus_websocket_connections") == 0, 10)
    await asyncio.to_thread(until, lambda: metric(gateway, "serinus_requests_in_flight") == 0, 10)
    stream.transport.abort()
    await proxy.stop()


async def test_networks_that_delay_dribble_and_reset_break_only_their_own_connections(house, tmp_path):
    gateway = await asyncio.to_thread(begun, house, tmp_path)
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


def test_row_18_half_of_the_clients_leave_and_their_work_is_cancelled(house, tmp_path):
    replica = house.replica(latency_s=0.5)
    gateway = begun(house, tmp_path, table={"queue_limit": 200})
    with ThreadPoolExecutor(20) as pool, contextlib.ExitStack() as stack:
        staying = [pool.submit(gateway.post) for _ in range(20)]
        until(lambda: len(replica.seen) == 20)
        for _ in range(20):
            peer = stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port)))
            peer.sendall(post_bytes())
        until(lambda: len(replica.seen) == 40)
        stack.close()
        assert [one.result().status_code for one in staying] == [200] * 20
    until(lambda: len(replica.cancelled) == 20)
    until(lambda: metric(gateway, "serinus_requests_in_flight") == 0)


@pytest.mark.parametrize("count", [1, 2], ids=["one_replica", "two_replicas"])
def test_row_22_an_input_that_kills_is_refused_after_two_crashes_and_its_neighbours_are_answered(
    house, tmp_path, count
):
    names = ["a", "b"][:count]
    replicas = [house.replica(name, latency_s=0.1) for name in names]
    for replica in replicas:
        replica.kills_at = 777.0
    variants = [VariantRoute(1, "primary", 10_000, MLP, [house.route(name) for name in names])]
    gateway = begun(house, tmp_path, variants=variants, table={"timeout_ms": 20_000})
    until(lambda: metric(gateway, "serinus_replicas_ready") == count)
    bodies = [magic(float(number)) for number in range(7)] + [magic(777.0)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda body: gateway.post(json=body), bodies))
    assert [one.status_code for one in found] == [200] * 7 + [422], [one.text for one in found]
    assert [one.json()["outputs"][0]["data"][0] for one in found[:7]] == [2.0 * number for number in range(7)]
    assert found[7].headers["x-error-code"] == "poison_input"
    assert sum(replica.deaths for replica in replicas) == 2
    seen = sum(len(replica.seen) for replica in replicas)
    again = [gateway.post(json=magic(777.0)) for _ in range(5)]
    assert [one.status_code for one in again] == [422] * 5
    assert sum(len(replica.seen) for replica in replicas) == seen, "it was sent all the same"
    until(lambda: metric(gateway, "serinus_replicas_ready") == count)
    assert [gateway.post(json=body).status_code for body in bodies] == [200] * 7 + [422]
    assert sum(replica.deaths for replica in replicas) == 2


def test_crashes_without_a_killer_bar_nobody(house, tmp_path):
    """The same input is under way each time that a replica is lost for another reason, and answered in between."""
    replica = house.replica(latency_s=0.05)
    gateway = begun(house, tmp_path, table={"timeout_ms": 20_000})
    for _ in range(4):
        before = len(replica.seen)
        with ThreadPoolExecutor(4) as pool:
            found = [pool.submit(gateway.post) for _ in range(4)]
            until(lambda before=before: len(replica.seen) >= before + 4)
            house.loop.call_soon_threadsafe(replica.die)
            assert [one.result().status_code for one in found] == [200] * 4
        assert gateway.post().status_code == 200


@pytest.mark.parametrize("when", ["at_start", "while_it_runs"])
def test_row_29_without_descriptors_accepting_pauses_and_nobody_is_dropped(house, tmp_path, when):
    gateway = begun(house, tmp_path, max_files=256 if when == "at_start" else 0, table={"queue_limit": 1000})
    if when == "while_it_runs":  # as when others took them: the gateway counts on more than there are
        resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE, (256, 256))
    asked = post_bytes()
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port))) for _ in range(400)]
        for peer in waiting:
            peer.settimeout(20)
            peer.sendall(asked)
        first = waiting[0]
        assert first.recv(65536).startswith(b"HTTP/1.1 200")
        for _ in range(20):  # a call that has its connection goes on as ever
            first.sendall(asked)
            assert first.recv(65536).startswith(b"HTTP/1.1 200")
        assert files(gateway) <= 256
        answered = 1
        first.close()
        for peer in waiting[1:]:
            assert peer.recv(65536).startswith(b"HTTP/1.1 200")
            answered += 1
            peer.close()
    assert answered == 400
    assert gateway.post().status_code == 200


async def test_row_36_idle_websockets_cost_little_and_a_sweep_of_pings_disturbs_nobody(house, tmp_path):
    gateway = await asyncio.to_thread(begun, house, tmp_path, stream__PING_S=1.0)
    busy = await open_stream(gateway.port)
    before = rss_bytes(gateway)
    idle = []
    for _ in range(20):
        idle += await asyncio.gather(*(open_stream(gateway.port) for _ in range(25)))
    assert (rss_bytes(gateway) - before) / len(idle) < 30 << 10

    async def pong(stream):
        assert json.loads(await asyncio.wait_for(stream.recv(), 20)) == {"type": "ping"}
        await stream.send('{"type":"pong"}')

    async def talk():
        answers = 0
        while True:
            await busy.send(json.dumps(request(identity="b")))
            answer = json.loads(await asyncio.wait_for(busy.recv(), 10))
            answers += "outputs" in answer
            if swept.is_set():
                return answers

    swept = asyncio.Event()
    talking = asyncio.ensure_future(talk())
    await asyncio.gather(*(pong(stream) for stream in idle))
    swept.set()
    assert await talking >= 3
    assert await asyncio.to_thread(metric, gateway, "serinus_websocket_connections") == 501
    await asyncio.gather(*(stream.close() for stream in (*idle, busy)))
    await asyncio.to_thread(until, lambda: metric(gateway, "serinus_websocket_connections") == 0)


async def test_row_37_connections_that_come_and_go_leave_nothing(house, tmp_path):
    gateway = await asyncio.to_thread(begun, house, tmp_path)
    gateway.post()
    base, memory = files(gateway), rss_bytes(gateway)
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


def test_row_39_a_storm_of_faults_is_not_multiplied_by_retries(house, tmp_path):
    replica = house.replica()
    replica.fault, replica.faulty_share = Fault(0, "draining", ""), 0.5
    gateway = begun(house, tmp_path)

    def naive(_):
        with httpx.Client(headers=AUTH, timeout=20) as client:
            return [client.post(f"{gateway.url}/v2/models/mlp/infer", json=request()).status_code for _ in range(60)]

    with ThreadPoolExecutor(8) as pool:
        statuses = [status for found in pool.map(naive, range(8)) for status in found]
    assert len(statuses) == 480
    assert set(statuses) == {200, 503}
    assert len(replica.seen) <= 480 * 1.1 + 32 + 1
    replica.fault = None
    assert [gateway.post().status_code for _ in range(50)] == [200] * 50
