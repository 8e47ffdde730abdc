"""`python tests/benchmarks/bench_sockets.py`: what many WebSockets cost one gateway process.

10,000 idle connections and 200 busy ones; the gateway and a fake replica are processes of their own, the clients are
in this one. Prints resident memory per idle connection, the time to accept them, how late the server's pings come, how
long a ping to every connection takes, and what the busy connections feel of all that. Ends within 90 s.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import uvloop

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from inference.gateway import rfc6455  # noqa: E402
from inference.protocol import routes  # noqa: E402
from inference.protocol.oip import Signature, TensorSpec  # noqa: E402
from inference.protocol.routes import EndpointRoute, ReplicaRoute, RoutingTable, VariantRoute  # noqa: E402
from tests.support.gateway_house import free_port  # noqa: E402

MLP = Signature([TensorSpec("x", "FP32", [-1, 16])], [TensorSpec("y", "FP32", [-1, 4])], max_batch_size=64)
ROW = ",".join(["0.5"] * 16)
ASK = '{"id":"%d","inputs":[{"name":"x","shape":[1,16],"datatype":"FP32","data":[' + ROW + "]}]}"
HANDSHAKE = (
    b"GET /v2/models/mlp/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
AT_ONCE = 200
MASKED_PONG = bytes([0x8A, 0x80, 0, 0, 0, 0])
MASKED_PING = bytes([0x89, 0x80, 0, 0, 0, 0])


def masked_text(text: str) -> bytes:
    """A client's text frame; its mask is zero, so that making it costs the client nothing."""
    data = text.encode()
    head = rfc6455.frame_head(rfc6455.TEXT, len(data))
    return bytes([head[0], head[1] | 0x80]) + head[2:] + bytes(4) + data


class Client(asyncio.Protocol):
    """One connection. With `depth` it is busy: that many requests are always under way."""

    __slots__ = (
        "_data",
        "_sent",
        "depth",
        "latencies",
        "opened",
        "pinged_at",
        "pong_after",
        "quiet_since",
        "transport",
    )

    def __init__(self, opened: asyncio.Future[None], depth: int = 0) -> None:
        self.opened: asyncio.Future[None] | None = opened
        self.depth = depth
        self.latencies: list[float] = []
        self.quiet_since = self.pinged_at = self.pong_after = 0.0
        self._data = b""
        self._sent: dict[int, float] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(HANDSHAKE)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.opened is not None and not self.opened.done():
            self.opened.set_exception(exc or ConnectionError("refused"))

    def data_received(self, data: bytes) -> None:
        data = self._data + data
        if self.opened is not None:
            end = data.find(b"\r\n\r\n") + 4
            if end < 4:
                self._data = data
                return
            assert data.startswith(b"HTTP/1.1 101"), data[:80]
            self.opened.set_result(None)
            self.opened = None
            self.quiet_since = time.perf_counter()
            data = data[end:]
        at = 0
        while len(data) - at >= 2:
            size, start = data[at + 1], at + 2
            if size == 126:
                size, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
            if len(data) < start + size:
                break
            self._frame(data[at] & 15, data[start : start + size])
            at = start + size
        self._data = data[at:]

    def _frame(self, opcode: int, payload: bytes) -> None:
        now = time.perf_counter()
        if opcode == rfc6455.PING:
            self.pinged_at = self.pinged_at or now
            self.transport.write(MASKED_PONG)
        elif opcode == rfc6455.PONG:
            self.pong_after = now - self.quiet_since
        elif opcode == rfc6455.TEXT:
            at = payload.index(b'"id":"') + 6
            number = int(payload[at : payload.index(b'"', at)])
            assert b'"outputs"' in payload, payload
            self.latencies.append(now - self._sent.pop(number))
            if self.depth:
                self.ask(number)

    def ask(self, number: int) -> None:
        self._sent[number] = time.perf_counter()
        self.transport.write(masked_text(ASK % number))

    def ping(self) -> None:
        self.quiet_since = time.perf_counter()
        self.transport.write(MASKED_PING)


@dataclass
class Found:
    """What was seen. Memory in KiB per idle connection, times in ms, rates per second."""

    idle: int = 0
    busy: int = 0
    accept_s: float = 0.0
    kib_each: float = 0.0
    frames_per_s: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    alone_frames_per_s: float = 0.0
    alone_p50_ms: float = 0.0
    alone_p99_ms: float = 0.0
    ping_late_p99_ms: float = 0.0
    sweep_p99_ms: float = 0.0
    cpu_us_per_frame: float = 0.0
    one_frames_per_s: float = 0.0
    one_cpu_us_per_frame: float = 0.0


@contextmanager
def gateway(grpc_port: int = 0) -> Iterator[tuple[int, int]]:
    """A gateway with a fake replica and a public endpoint: (port, pid). grpc_port: 0 for no gRPC."""
    with tempfile.TemporaryDirectory(prefix="sockets-") as folder:
        path = Path(folder) / "r1.sock"
        replica = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/support/fake_replica.py"), str(path), "r1", "1", "1", "0"],
            env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        variant = VariantRoute(1, "primary", 10_000, MLP, [ReplicaRoute("r1", 1, f"unix:{path}")])
        table = RoutingTable(1, [EndpointRoute("mlp", "m", "s", True, 30_000, 100_000, [variant])], [])
        (Path(folder) / "gateway").mkdir()
        (Path(folder) / "gateway" / "routes.json").write_bytes(routes.encode(table))
        port = free_port()
        own = {
            "SERINUS_DATA_DIR": folder,
            "SERINUS_HTTP_PORT": str(port),
            "SERINUS_GRPC_PORT": str(grpc_port),
            "REDIS_URL": "",
            "PYTHONPATH": str(ROOT),
        }
        child = subprocess.Popen([sys.executable, "-m", "inference", "gateway"], env=os.environ | own, cwd=ROOT)
        try:
            yield port, child.pid
        finally:
            for process in (child, replica):
                process.kill()
                process.wait()


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def quantile(values: list[float], share: float) -> float:
    """In milliseconds."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e3, 2) if ordered else 0.0


async def connect(port: int, count: int, depth: int = 0) -> list[Client]:
    loop = asyncio.get_running_loop()
    found: list[Client] = []
    while len(found) < count:
        clients = [Client(loop.create_future(), depth) for _ in range(min(AT_ONCE, count - len(found)))]
        waiting = [client.opened for client in clients if client.opened is not None]
        await asyncio.gather(*(loop.create_connection(lambda c=client: c, "127.0.0.1", port) for client in clients))
        await asyncio.wait_for(asyncio.gather(*waiting), 20)
        found += clients
    return found


async def until_ready(port: int) -> None:
    end = time.monotonic() + 15
    while time.monotonic() < end:
        try:
            for client in await connect(port, 1):
                client.ask(0)
                await asyncio.sleep(0.3)
                client.transport.abort()
                if client.latencies:
                    return
        except (OSError, AssertionError):
            await asyncio.sleep(0.1)
    raise TimeoutError("the gateway was not ready in time")


async def busy_for(clients: list[Client], seconds: float) -> tuple[float, list[float]]:
    """Frames a second, and each one's seconds."""
    for client in clients:
        client.latencies.clear()
    began = time.perf_counter()
    await asyncio.sleep(seconds)
    took = time.perf_counter() - began
    latencies = [one for client in clients for one in client.latencies]
    return len(latencies) / took, latencies


async def measure(port: int, pid: int, *, idle: int, busy: int, seconds: float) -> Found:
    found = Found(idle, busy)
    await until_ready(port)
    await one_alone(port, pid, found)
    busy_ones = await connect(port, busy, depth=1)
    for number, client in enumerate(busy_ones):
        client.ask(number)
    await busy_for(busy_ones, 1.0)
    before = cpu_s(pid)
    found.alone_frames_per_s, alone = await busy_for(busy_ones, seconds)
    found.cpu_us_per_frame = round((cpu_s(pid) - before) / max(1, len(alone)) * 1e6, 1)
    found.alone_p50_ms, found.alone_p99_ms = quantile(alone, 0.5), quantile(alone, 0.99)
    rss, began = rss_bytes(pid), time.perf_counter()
    idle_ones = await connect(port, idle)
    found.accept_s = round(time.perf_counter() - began, 2)
    await asyncio.sleep(3)
    found.kib_each = round((rss_bytes(pid) - rss) / max(1, idle) / 1024, 2)
    found.frames_per_s, beside = await busy_for(busy_ones, max(seconds, 23.0))
    found.p50_ms, found.p99_ms = quantile(beside, 0.5), quantile(beside, 0.99)
    late = [client.pinged_at - client.quiet_since - 20 for client in idle_ones if client.pinged_at]
    assert len(late) == idle, f"{idle - len(late)} idle connections were not pinged"
    found.ping_late_p99_ms = quantile(late, 0.99)
    await sweep(idle_ones)
    found.sweep_p99_ms = quantile([client.pong_after for client in idle_ones], 0.99)
    for client in idle_ones + busy_ones:
        client.depth = 0
        client.transport.abort()
    return found


async def one_alone(port: int, pid: int, found: Found) -> None:
    """One connection with 32 requests under way."""
    only = await connect(port, 1, depth=32)
    for number in range(32):
        only[0].ask(number)
    await busy_for(only, 0.5)
    before = cpu_s(pid)
    found.one_frames_per_s, seen = await busy_for(only, 3.0)
    found.one_cpu_us_per_frame = round((cpu_s(pid) - before) / max(1, len(seen)) * 1e6, 1)
    only[0].depth = 0
    await asyncio.sleep(0.2)
    only[0].transport.abort()


async def sweep(clients: list[Client]) -> None:
    """Pings every connection within a second."""
    for begin in range(0, len(clients), 100):
        for client in clients[begin : begin + 100]:
            client.ping()
        await asyncio.sleep(0.01)
    await asyncio.sleep(2)
    assert all(client.pong_after for client in clients)


def run(*, idle: int = 10_000, busy: int = 200, seconds: float = 5.0) -> Found:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    idle = min(idle, hard - busy - 200)
    with gateway() as (port, pid):
        return uvloop.run(asyncio.wait_for(measure(port, pid, idle=idle, busy=busy, seconds=seconds), 85))


def lines(found: Found) -> list[str]:
    """The rows of the report's table."""
    rows = [
        ("resident memory per idle connection", f"{found.kib_each} KiB"),
        (f"{found.idle:,} connections accepted in", f"{found.accept_s} s"),
        ("frames a second on one connection with 32 under way", f"{found.one_frames_per_s:,.0f}"),
        ("the gateway's CPU time per frame there", f"{found.one_cpu_us_per_frame} us"),
        (f"frames a second on {found.busy} busy connections, alone", f"{found.alone_frames_per_s:,.0f}"),
        ("p50 / p99 of a frame, alone", f"{found.alone_p50_ms} / {found.alone_p99_ms} ms"),
        ("the gateway's CPU time per frame there", f"{found.cpu_us_per_frame} us"),
        ("frames a second beside the idle ones", f"{found.frames_per_s:,.0f}"),
        ("p50 / p99 beside the idle ones, the server's pings among them", f"{found.p50_ms} / {found.p99_ms} ms"),
        ("the server's pings come late by, p99 (it looks once a second)", f"{found.ping_late_p99_ms} ms"),
        ("a ping to every idle connection within a second: answered after, p99", f"{found.sweep_p99_ms} ms"),
    ]
    return ["| what | seen |", "|---|---|", *(f"| {what} | {seen} |" for what, seen in rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--idle", type=int, default=10_000)
    parser.add_argument("--busy", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args()
    print("\n".join(lines(run(idle=given.idle, busy=given.busy, seconds=given.seconds))))


if __name__ == "__main__":
    main()
