"""Rows 15 and 16 of the fault matrix, timed: good clients alone, beside slow heads, and beside slow readers.

`python tests/benchmarks/bench_slow_clients.py [--seconds 20]`. One gateway with its real times, our echo model behind it,
200 requests a second in an open loop. Slow heads: 500 connections, each of which sends a byte of a head every 5 s and comes
back when it is closed; slow readers: 50 connections with an answer of 4 MiB each, of which they take a byte a second.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "platform"), str(ROOT / "tests" / "benchmarks")]

import loadgen  # noqa: E402
import open_loop  # noqa: E402

from inference.protocol import routes  # noqa: E402
from inference.protocol.oip import Signature, TensorSpec  # noqa: E402
from inference.protocol.routes import EndpointRoute, ReplicaRoute, RoutingTable, VariantRoute  # noqa: E402
from tests.support.gateway_house import Gateway, key  # noqa: E402
from tests.support.replica_process import Replica  # noqa: E402

ECHO = Signature([TensorSpec("input", "FP32", [-1, -1])], [TensorSpec("output", "FP32", [-1, -1])], max_batch_size=32)
PER_S = 200
SETTLE_S = 6.0  # the large answers of slow readers are computed before it is measured
HEADS, READERS = 500, 50
ANSWER_BYTES = 4 << 20
HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer ser_all.s2"}


def served(folder: Path) -> tuple[Gateway, Replica]:
    (folder / "m").mkdir()
    plan = {"signature": json.loads(routes.msgspec.json.encode(ECHO))}
    (folder / "m" / "echo.json").write_text(json.dumps(plan))
    replica = Replica(folder / "r", folder / "m", "echo", {}).ready()
    variant = VariantRoute(1, "primary", 10_000, ECHO, [ReplicaRoute("r1", 1, f"unix:{replica.path}")])
    (folder / "gateway").mkdir()
    table = RoutingTable(1, [EndpointRoute("b", "m", "s", False, 60_000, 1024, [variant])], [key("all", "s2", ["*"])])
    (folder / "gateway" / "routes.json").write_bytes(routes.encode(table))
    return Gateway(folder, "").wait_live().wait_ready("b"), replica


async def slow_head(port: int, until: float, ages: list[float]) -> None:
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            began = time.monotonic()
            writer.write(b"POST /v2/models/b/infer HTTP/1.1\r\nX-Slow: ")
            closed = asyncio.ensure_future(reader.read())
            while not closed.done() and time.monotonic() < until:
                await asyncio.wait([closed], timeout=min(5.0, max(0.01, until - time.monotonic())))
                writer.write(b"x")
            if closed.done():
                ages.append(time.monotonic() - began)
            closed.cancel()
            writer.transport.abort()


async def slow_reader(port: int, until: float, ages: list[float]) -> None:
    values = bytes(ANSWER_BYTES)
    tensor = {"name": "input", "shape": [1, len(values) // 4], "datatype": "FP32"}
    text = json.dumps({
        "inputs": [tensor | {"parameters": {"binary_data_size": len(values)}}], "parameters": {"binary_data_output": True},
    }).encode()  # fmt: skip
    head = f"POST /v2/models/b/infer HTTP/1.1\r\nHost: x\r\nAuthorization: {HEADERS['Authorization']}\r\n"
    head += f"Inference-Header-Content-Length: {len(text)}\r\nContent-Length: {len(text) + len(values)}\r\n\r\n"
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
            began = time.monotonic()
            writer.write(head.encode() + text + values)
            while time.monotonic() < until and await reader.read(1):
                await asyncio.sleep(1.0)
            if time.monotonic() < until:
                ages.append(time.monotonic() - began)
            writer.transport.abort()


async def be_slow(kind: str, port: int, seconds: float) -> None:
    """Says a line when it has begun in earnest, and another one at its end."""
    ages: list[float] = []
    until = time.monotonic() + SETTLE_S + seconds
    asyncio.get_running_loop().call_later(SETTLE_S, lambda: print("there", flush=True))
    one, count = {"heads": (slow_head, HEADS), "readers": (slow_reader, READERS)}[kind]
    await asyncio.gather(*(one(port, until, ages) for _ in range(count)))
    oldest = f", the last after {max(ages):.1f} s" if ages else ""
    print(f"{len(ages)} of them were closed{oldest}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--slow", nargs=2, metavar=("KIND", "PORT"))
    given = parser.parse_args()
    if given.slow:
        asyncio.run(be_slow(given.slow[0], int(given.slow[1]), given.seconds))
        return
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        gateway, replica = served(Path(name))
        url = f"{gateway.url}/v2/models/b/infer"
        tensor = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [0.5] * 4}
        asked = [loadgen.frame(url, json.dumps({"inputs": [tensor]}).encode(), HEADERS)]
        print(f"load average before: {os.getloadavg()[0]:.2f}")
        print(f"| {PER_S} requests a second | answered | p50 ms | p99 ms | max ms | errors | the slow ones |")
        print("|" + "---|" * 7)
        open_loop.offer(url, asked, PER_S, 3)
        for what, kind in (("alone", ""), (f"beside {HEADS} slow heads", "heads"), (f"beside {READERS} slow readers", "readers")):  # fmt: skip
            other = None
            if kind:
                command = [
                    sys.executable,
                    __file__,
                    "--slow",
                    kind,
                    str(gateway.port),
                    "--seconds",
                    str(given.seconds),
                ]
                other = subprocess.Popen(command, stdout=subprocess.PIPE)
                assert other.stdout is not None
                other.stdout.readline()
            found = open_loop.offer(url, asked, PER_S, given.seconds)
            told = other.communicate(timeout=60)[0].decode().strip() if other else ""
            cells = (what, found.answered, found.p50_ms, found.p99_ms, found.max_ms, found.errors or "", told)
            print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)
        gateway.stop()
        replica.close()


if __name__ == "__main__":
    main()
