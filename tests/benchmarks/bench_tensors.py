"""Large binary tensors there and back: gateway and a real replica (an identity model in torch), no console.

`python tests/benchmarks/bench_tensors.py [--times 15]` prints one row a size, with the processor time of gateway and
replica, beside the floor: the same bytes to a bare TCP echo that receives them into memory which is there, and sends
them back.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "benchmarks")]

import bench_predict  # noqa: E402

from inference.protocol import routes  # noqa: E402
from inference.protocol.oip import Signature, TensorSpec  # noqa: E402
from inference.protocol.routes import EndpointRoute, ReplicaRoute, RoutingTable, VariantRoute  # noqa: E402
from tests.support.gateway_house import Gateway, key  # noqa: E402
from tests.support.replica_process import Replica  # noqa: E402

SAME = Signature([TensorSpec("x", "FP32", [-1, -1])], [TensorSpec("output_0", "FP32", [-1, -1])], max_batch_size=8)
FLOOR_HEAD_BYTES = 8


def serve_floor(listener: socket.socket) -> None:
    """Echoes frames of a u64 length and so many bytes, for ever, from one buffer."""
    memory = memoryview(bytearray(max(bench_predict.SIZES_MB) << 20))
    peer, _ = listener.accept()
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while head := peer.recv(FLOOR_HEAD_BYTES, socket.MSG_WAITALL):
        view = memory[: int.from_bytes(head, "little")]
        fill(peer, view)
        peer.sendall(view)
    os._exit(0)


def fill(peer: socket.socket, view: memoryview) -> None:
    while len(view):
        view = view[peer.recv_into(view) :]


def floor() -> Callable[[int], float]:
    """Seconds (median) that the bare echo takes for `size` bytes."""
    listener = socket.create_server(("127.0.0.1", 0))
    if not os.fork():
        serve_floor(listener)
    peer = socket.create_connection(listener.getsockname())
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def measure(size: int) -> float:
        data, answer, taken = bytes(size), memoryview(bytearray(size)), []
        for _ in range(15):
            began = time.perf_counter()
            peer.sendall(size.to_bytes(FLOOR_HEAD_BYTES, "little"))
            peer.sendall(data)
            fill(peer, answer)
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    return measure


def cpu_ms(pid: int) -> float:
    """Processor time of a process's living threads."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e6


def served(folder: Path) -> tuple[Gateway, Replica]:
    """A gateway and the replica that it routes `same` to, both ready."""
    bench_predict.identity(folder / "same")
    replica = Replica(folder / "r", folder / "same", "torch_export", {}).ready()
    variant = VariantRoute(1, "primary", 10_000, SAME, [ReplicaRoute("r1", 1, f"unix:{replica.path}")])
    endpoint = EndpointRoute("same", "m", "salt", False, 30_000, 64, [variant])
    (folder / "gateway").mkdir()
    table = RoutingTable(1, [endpoint], [key("all", "s2", ["*"])])
    (folder / "gateway" / "routes.json").write_bytes(routes.encode(table))
    return Gateway(folder, "").wait_live().wait_ready("same"), replica


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=15)
    given = parser.parse_args()
    bare = floor()
    print(
        "| size | ms | MB/s (both ways) | gateway CPU ms | replica CPU ms | bare TCP echo ms | times it | times two memcpys |"
    )
    print("|" + "---|" * 8)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        gateway, replica = served(Path(name))
        pids = [gateway.process.pid, replica.process.pid]
        url = f"{gateway.url}/v2/models/same/infer"
        for megabytes in bench_predict.SIZES_MB:
            size = megabytes << 20
            bench_predict.tensor_s(url, "ser_all.s2", "x", size, 3)
            before = [cpu_ms(pid) for pid in pids]
            took = bench_predict.tensor_s(url, "ser_all.s2", "x", size, given.times)
            cpu = [(cpu_ms(pid) - was) / given.times for pid, was in zip(pids, before, strict=True)]
            least, copy = bare(size), bench_predict.memcpy_s(size)
            print(f"| {megabytes} MiB | {took * 1e3:.2f} | {2 * size / took / 1e6:.0f} | {cpu[0]:.1f} | {cpu[1]:.1f} "
                  f"| {least * 1e3:.2f} | {took / least:.1f} | {took / (2 * copy):.1f} |", flush=True)  # fmt: skip
        gateway.stop()
        replica.close()


if __name__ == "__main__":
    main()
