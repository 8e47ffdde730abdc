"""Rows 2, 15, 16, 17, 18, 22, 29, 36 and 39 of the fault matrix: a real gateway process under bad clients, bad networks
and replicas that die. Numbers are modest here; `make soak` and `make bench` have the full ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
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
from tests.support.fuzz_frames import frame, frames_of
from tests.support.gateway_house import MLP, TEXT, House, request, until
from tests.support.hurry import hurried

AUTH = {"Authorization": "Bearer ser_all.s2"}
KEY = ["serinus.v1", "serinus.key.ser_all.s2"]


@contextlib.contextmanager
def standing():
    found = House()
    yield found
    for gateway in found.gateways:
        assert "Traceback" not in gateway.log.read_text()
    found.close()


@pytest.fixture
def house():
    with standing() as found:
        yield found


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


def test_row_2_a_replica_lost_with_requests_under_way_costs_one_retry_each_and_no_answer(house, tmp_path):
    """Two replicas, eight requests that neither has answered yet; then one of the two is gone for good."""
    dying, other = house.replica("a"), house.replica("b")
    variants = [VariantRoute(1, "primary", 10_000, MLP, [house.route("a"), house.route("b")])]
    gateway = begun(house, tmp_path, variants=variants, table={"timeout_ms": 60_000})
    until(lambda: metric(gateway, "serinus_replicas_ready") == 2)
    dying.holds = other.holds = True
    before = metric(gateway, "serinus_request_retries_total")
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(gateway.post, json=magic(float(number))) for number in range(8)]
        until(lambda: len(dying.held) + len(other.held) == 8)
        lost = len(dying.held)
        assert lost >= 1
        other.holds = False
        house.run(dying.stop())
        until(lambda: metric(gateway, "serinus_request_retries_total") == before + lost)
        house.loop.call_soon_threadsafe(other.let_go)
        found = [one.result(30) for one in asked]
    assert [one.status_code for one in found] == [200] * 8
    assert [one.json()["outputs"][0]["data"][0] for one in found] == [2.0 * number for number in range(8)]
    assert metric(gateway, "serinus_request_retries_total") == before + lost


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


def test_row_16_good_clients_are_answered_beside_five_hundred_slow_heads_which_are_closed_in_time(house, tmp_path):
    """p99 beside them: `tests/benchmarks/bench_neighbours.py`."""
    gateway = begun(house, tmp_path, http__HEAD_S=3.0)
    base, asked = settled_files(gateway), post_bytes()
    with contextlib.ExitStack() as stack:
        good = stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port)))
        peers = [stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port))) for _ in range(500)]
        for peer in peers:
            peer.sendall(b"POST /v2/models/mlp/infer HTTP/1.1\r\nHos")
            peer.settimeout(15)
        until(lambda: files(gateway) >= base + 501)
        answered = beside = 0
        end = time.monotonic() + 20
        while files(gateway) > base + 5:
            assert time.monotonic() < end, "slow heads are still open"
            good.sendall(asked)
            assert good.recv(65536).startswith(b"HTTP/1.1 200")
            answered += 1
            if files(gateway) >= base + 501:
                beside = answered  # so many while each of the slow ones was there
        assert beside >= 20
        for peer in peers[::50]:
            assert peer.recv(4096).startswith(b"HTTP/1.1 400")
    assert gateway.post().status_code == 200


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


class Idle(asyncio.Protocol):
    """A WebSocket client that asks for nothing and answers pings; cheap, so that 500 of them are always in time."""

    def __init__(self):
        self.opened = asyncio.get_running_loop().create_future()
        self.pings, self.last_opcode, self.data = 0, 0, b""

    def connection_made(self, transport):
        self.transport = transport
        transport.write(
            b"GET /v2/models/mlp/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ser_all.s2\r\n"
            b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )

    def data_received(self, data):
        self.data += data
        if not self.opened.done():
            head, mark, self.data = self.data.partition(b"\r\n\r\n")
            assert mark
            self.opened.set_result(head.startswith(b"HTTP/1.1 101"))
        for opcode, payload in frames_of(self.data):
            self.last_opcode = opcode
            if opcode == 9:
                self.pings += 1
                self.transport.write(frame(payload, 10, bytes(4)))
        self.data = b""


async def test_row_36_idle_websockets_cost_little_and_a_sweep_of_pings_disturbs_nobody(house, tmp_path):
    """Every idle connection answers its pings from the moment it is open, however long it takes to open the others."""
    gateway = await asyncio.to_thread(begun, house, tmp_path, stream__PING_S=2.0)
    busy = await open_stream(gateway.port)
    before, idle = rss_bytes(gateway), []
    connect = asyncio.get_running_loop().create_connection
    for _ in range(20):
        opened = await asyncio.gather(*(connect(Idle, "127.0.0.1", gateway.port) for _ in range(25)))
        assert all(await asyncio.gather(*(one.opened for _, one in opened)))
        idle += [one for _, one in opened]
    assert (rss_bytes(gateway) - before) / len(idle) < 30 << 10
    sweep = [one.pings for one in idle]
    answers, end = 0, time.monotonic() + 40
    while answers < 3 or any(one.pings == past for one, past in zip(idle, sweep, strict=True)):
        assert time.monotonic() < end, "they were not pinged"
        await busy.send(json.dumps(request(identity=f"b{answers}")))
        while "outputs" not in (answer := json.loads(await asyncio.wait_for(busy.recv(), 20))):
            assert answer == {"type": "ping"}
        assert answer["id"] == f"b{answers}"
        answers += 1
    assert await asyncio.to_thread(metric, gateway, "serinus_websocket_connections") == 501
    assert {one.last_opcode for one in idle} == {9}
    for one in idle:
        one.transport.abort()
    await busy.close()
    await asyncio.to_thread(until, lambda: metric(gateway, "serinus_websocket_connections") == 0)


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
