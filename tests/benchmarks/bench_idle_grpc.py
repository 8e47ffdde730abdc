"""`python tests/benchmarks/bench_idle_grpc.py`: what an idle gRPC connection costs the gateway process.

Connections are opened, first without a call and then with one that was answered, and left alone. The gateway is a
process of its own, the clients are in this one. Prints its resident memory per connection.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from sys import path
from typing import cast

import uvloop

ROOT = Path(__file__).resolve().parents[2]
path[:0] = [str(ROOT), str(Path(__file__).parent)]

from bench_sockets import gateway, rss_bytes, until_ready  # noqa: E402

from inference.gateway.http2 import frames  # noqa: E402
from tests.support.gateway_house import free_port  # noqa: E402
from tests.support.http2_peer import BEGIN, GRPC, Peer, data  # noqa: E402

LIVE = "/inference.GRPCInferenceService/ServerLive"
METHOD = [(":method", "POST"), (":scheme", "http"), (":path", LIVE), (":authority", "here")]
CALL = Peer().head(1, METHOD + GRPC) + data(1, bytes(5), ends=True)
AT_ONCE = 200
SETTLES_S = 2.0


class Client(asyncio.Protocol):
    """One connection. answered: the first stream has ended, or without a call the settings were acknowledged."""

    __slots__ = ("_call", "_data", "answered", "transport")

    def __init__(self, answered: asyncio.Future[None], call: bytes) -> None:
        self.answered = answered
        self._call = call
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(BEGIN + frames.SETTINGS_ACK + self._call)

    def data_received(self, data: bytes) -> None:
        self._data += data
        at = 0
        while len(self._data) - at >= frames.HEAD_BYTES:
            high, low, kind, flags, _ = frames.read_head(self._data, at)
            at += frames.HEAD_BYTES + (high << 8 | low)
            wanted = kind == frames.HEADERS if self._call else kind == frames.SETTINGS
            if wanted and flags & 1 and len(self._data) >= at and not self.answered.done():
                self.answered.set_result(None)
                self._data = b""
                return

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answered.done():
            self.answered.set_exception(exc or ConnectionError("refused"))


@dataclass
class Found:
    """Memory in KiB per idle connection."""

    idle: int
    quiet_kib: float = 0.0
    called_kib: float = 0.0
    accept_s: float = 0.0


async def connect(port: int, count: int, call: bytes) -> list[Client]:
    loop = asyncio.get_running_loop()
    found: list[Client] = []
    while len(found) < count:
        clients = [Client(loop.create_future(), call) for _ in range(min(AT_ONCE, count - len(found)))]
        await asyncio.gather(*(loop.create_connection(lambda c=client: c, "127.0.0.1", port) for client in clients))
        await asyncio.wait_for(asyncio.gather(*(client.answered for client in clients)), 30)
        found += clients
    return found


async def measure(http_port: int, grpc_port: int, pid: int, idle: int) -> Found:
    """The second thousands of connections use what the first have left, so each kind is measured on new ones."""
    found, half = Found(idle), idle // 2
    await until_ready(http_port)
    held = await connect(grpc_port, 200, CALL)  # what is made once is made now
    for name, call in (("quiet_kib", b""), ("called_kib", CALL)):
        before, began = rss_bytes(pid), time.perf_counter()
        held += await connect(grpc_port, half, call)
        found.accept_s += time.perf_counter() - began
        await asyncio.sleep(SETTLES_S)
        setattr(found, name, round((rss_bytes(pid) - before) / max(1, half) / 1024, 2))
    for client in held:
        client.transport.abort()
    return found


def run(*, idle: int = 10_000) -> Found:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    idle, grpc_port = min(idle, hard - 500), free_port()
    with gateway(grpc_port) as (port, pid):
        return uvloop.run(asyncio.wait_for(measure(port, grpc_port, pid, idle), 120))


def lines(found: Found) -> list[str]:
    """The rows of the report's table."""
    rows = [
        ("resident memory per idle gRPC connection that has made no call", f"{found.quiet_kib} KiB"),
        ("the same after a call", f"{found.called_kib} KiB"),
        (f"{found.idle:,} gRPC connections accepted in", f"{found.accept_s:.2f} s"),
    ]
    return [f"| {what} | {seen} |" for what, seen in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--idle", type=int, default=10_000)
    print("\n".join(["| what | seen |", "|---|---|", *lines(run(idle=parser.parse_args().idle))]))


if __name__ == "__main__":
    main()
