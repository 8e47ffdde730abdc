"""The gRPC door's cost: a tiny ModelInfer (16 floats raw, 4 out) through a gateway to a replica that answers at once,
beside a bare grpc.aio echo of the same bytes. `python tests/benchmarks/bench_grpc.py [--calls 4000] [--rounds 3]
[--concurrency 1,32,128] [--client raw|grpc] [--beside FOLDER]` prints calls a second and the server's processor time a
call; the servers take turns. raw: a lean client, so that the server is what is measured. --beside: the gateway of another
checkout too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc
import uvloop

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from inference.gateway.grpc import wire  # noqa: E402
from inference.protocol import routes  # noqa: E402
from inference.protocol.routes import EndpointRoute, ReplicaRoute, RoutingTable, VariantRoute  # noqa: E402
from tests.benchmarks import raw_grpc  # noqa: E402
from tests.support import gateway_house  # noqa: E402
from tests.support.gateway_house import MLP, Gateway, free_port, key  # noqa: E402

METHOD = "/inference.GRPCInferenceService/ModelInfer"
ECHO = """
import asyncio, sys, grpc, uvloop
async def echo(data, context):
    return data
async def main():
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handler = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(sys.argv[1], {"ModelInfer": handler}),))
    server.add_insecure_port("127.0.0.1:" + sys.argv[2])
    await server.start()
    await asyncio.Event().wait()
uvloop.run(main())
"""


def payload(rows: int = 1) -> bytes:
    request = wire.INFER_REQUEST(model_name="mlp")
    request.inputs.add(name="x", datatype="FP32", shape=[rows, 16])
    request.raw_input_contents.append(struct.pack(f"<{16 * rows}f", *range(16 * rows)))
    data: bytes = request.SerializeToString()
    return data


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(address: str, calls: int, concurrency: int) -> float:
    """Calls a second."""
    left = calls
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(METHOD)
        data, metadata = payload(), (("authorization", "Bearer ser_all.s2"),)

        async def work() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await call(data, metadata=metadata, timeout=30)

        begun = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(concurrency)))
        return calls / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", default="1,32,128")
    parser.add_argument("--client", choices=["raw", "grpc"], default="raw")
    parser.add_argument("--beside", type=Path)
    parser.add_argument("--no-echo", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as running:
        folder = Path(place)
        served(folder, running)
        servers: dict[str, tuple[int, int]] = {}
        if not chosen.no_echo:
            port = free_port()
            echo = subprocess.Popen([sys.executable, "-c", ECHO, METHOD.split("/")[1], str(port)])
            running.callback(lambda: (echo.kill(), echo.wait()))
            servers["bare echo"] = port, echo.pid
        for name, root in {"beside": chosen.beside, "gateway": ROOT}.items():
            if root is not None:
                port = free_port()
                gateway = started(root, folder, port)
                running.callback(gateway.stop)
                servers[name] = port, gateway.process.pid
        for concurrency in map(int, chosen.concurrency.split(",")):
            compare(servers, chosen, concurrency)


def served(folder: Path, running: contextlib.ExitStack) -> None:
    """A replica that answers at once, and the table that names it."""
    socket = folder / "r1.sock"
    variant = VariantRoute(1, "primary", 10_000, MLP, [ReplicaRoute("r1", 1, f"unix:{socket}")])
    endpoint = EndpointRoute("mlp", "m", "salt", False, 5000, 1024, [variant])
    table = RoutingTable(generation=1, endpoints=[endpoint], keys=[key("all", "s2", ["*"])])
    (folder / "gateway").mkdir()
    (folder / "gateway" / "routes.json").write_bytes(routes.encode(table))
    replica = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/support/fake_replica.py"), str(socket), "r1", "1", "1", "0"],
        env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    running.callback(lambda: (replica.kill(), replica.wait()))


def started(root: Path, folder: Path, port: int) -> Gateway:
    gateway_house.ROOT = root.resolve()
    return Gateway(folder, "", SERINUS_GRPC_PORT=str(port)).wait_live().wait_ready()


def rate_of(chosen: argparse.Namespace, port: int, concurrency: int) -> float:
    if chosen.client == "grpc":
        return uvloop.run(load(f"127.0.0.1:{port}", chosen.calls, concurrency))
    raw = raw_grpc.load(port, METHOD, payload(), key="ser_all.s2", calls=chosen.calls, concurrency=concurrency)
    return uvloop.run(raw)


def compare(servers: dict[str, tuple[int, int]], chosen: argparse.Namespace, concurrency: int) -> None:
    rates: dict[str, list[float]] = {name: [] for name in servers}
    costs: dict[str, list[float]] = {name: [] for name in servers}
    for turn in range(chosen.rounds + 1):
        for name, (port, pid) in servers.items():
            before = cpu_s(pid)
            rate = rate_of(chosen, port, concurrency)
            if turn:  # the first round warms up
                rates[name].append(rate)
                costs[name].append((cpu_s(pid) - before) / chosen.calls * 1e6)
    for name in servers:
        print(
            f"{concurrency:4} at once, {name:10} {statistics.median(rates[name]):8.0f} calls/s "
            f"{statistics.median(costs[name]):6.0f} us of processor time a call",
            flush=True,
        )


if __name__ == "__main__":
    main()
