"""Large binary tensors there and back: gateway and a real replica (an identity model in torch), no console.

`python tests/benchmarks/bench_tensors.py [--times 15] [--door websocket] [--beside FOLDER]` prints one row a size and
door (beside: of another checkout's gateway in turns with this one's), with the processor time of gateway
and replica, beside the floor: the same bytes to a bare TCP echo that receives them into memory which is there, and sends
them back. `split` is REST at an endpoint of two versions: which one answers is known after the body.
"""

from __future__ import annotations

import argparse
import json
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
import tritonclient.grpc as triton  # noqa: E402
from websockets.frames import apply_mask  # noqa: E402

from inference.protocol import routes  # noqa: E402
from inference.protocol.oip import Signature, TensorSpec  # noqa: E402
from inference.protocol.routes import EndpointRoute, ReplicaRoute, RoutingTable, VariantRoute  # noqa: E402
from tests.support import gateway_house  # noqa: E402
from tests.support.gateway_house import Gateway, free_port, key  # noqa: E402
from tests.support.replica_process import Replica  # noqa: E402

SAME = Signature([TensorSpec("x", "FP32", [-1, -1])], [TensorSpec("output_0", "FP32", [-1, -1])], max_batch_size=8)
FLOOR_HEAD_BYTES = 8
HEAD_BYTES = 1024
HANDSHAKE = (
    b"GET /v2/models/same/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Authorization: Bearer ser_all.s2\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


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


def served(folder: Path, roots: list[Path]) -> tuple[list[Gateway], Replica]:
    """A gateway of each checkout and the replica that they route `same` to, all ready."""
    bench_predict.identity(folder / "same")
    replica = Replica(folder / "r", folder / "same", "torch_export", {}).ready()
    link = ReplicaRoute("r1", 1, f"unix:{replica.path}")
    one = VariantRoute(1, "primary", 10_000, SAME, [link])
    two = [VariantRoute(number, "primary", 5_000, SAME, [link]) for number in (1, 2)]
    endpoints = [
        EndpointRoute(name, "m", "salt", False, 30_000, 64, variants)
        for name, variants in (("same", [one]), ("split", two))
    ]
    (folder / "gateway").mkdir()
    table = RoutingTable(1, endpoints, [key("all", "s2", ["*"])])
    (folder / "gateway" / "routes.json").write_bytes(routes.encode(table))
    gateways = []
    for root in roots:
        gateway_house.ROOT = root.resolve()
        gateways.append(Gateway(folder, "", SERINUS_GRPC_PORT=str(free_port())).wait_live().wait_ready("same"))
    return gateways, replica


def grpc_s(gateway: Gateway, size: int, times: int) -> float:
    """Seconds (median) of one ModelInfer with `size` bytes in and as many out."""
    given, taken = triton.InferInput("x", [1, size // 4], "FP32"), []
    given._raw_content = bytes(size)  # what set_data_from_numpy keeps, without the array
    with triton.InferenceServerClient(gateway.grpc_address) as client:
        for _ in range(times):
            began = time.perf_counter()
            client.infer("same", [given], headers={"authorization": "Bearer ser_all.s2"})
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def websocket_s(gateway: Gateway, size: int, times: int) -> float:
    """Seconds (median) of one binary frame with `size` bytes in and as many out; it is masked before the clock runs."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, size // 4], "parameters": {"binary_data_size": size}}
    head = json.dumps({"id": "1", "inputs": [tensor]}).encode()
    payload, mask, taken = len(head).to_bytes(4, "little") + head + bytes(size), os.urandom(4), []
    frame = bytes([0x82, 0xFF]) + len(payload).to_bytes(8, "big") + mask + apply_mask(payload, mask)
    answer = memoryview(bytearray(size + HEAD_BYTES))
    with socket.create_connection(("127.0.0.1", gateway.port)) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.sendall(HANDSHAKE)
        assert peer.recv(4096).startswith(b"HTTP/1.1 101")
        for _ in range(times):
            began = time.perf_counter()
            peer.sendall(frame)
            fill(peer, answer[:10])
            assert bytes(answer[:2]) == bytes([0x82, 127]), bytes(answer[:200])
            length = int.from_bytes(answer[2:10], "big")
            assert length > size
            fill(peer, answer[:length])
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def doors(gateway: Gateway) -> dict[str, Callable[[int, int], float]]:
    """By name, what measures so many requests of a size."""

    def rest(name: str) -> Callable[[int, int], float]:
        url = f"{gateway.url}/v2/models/{name}/infer"
        return lambda size, times: bench_predict.tensor_s(url, "ser_all.s2", "x", size, times)

    return {
        "REST": rest("same"),
        "split": rest("split"),
        "gRPC": lambda size, times: grpc_s(gateway, size, times),
        "WebSocket": lambda size, times: websocket_s(gateway, size, times),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=15)
    parser.add_argument("--door", choices=["rest", "split", "grpc", "websocket"], help="only this one")
    parser.add_argument("--beside", type=Path)
    given = parser.parse_args()
    bare = floor()
    print("| door | size | ms | MB/s (both ways) | gateway CPU ms | replica CPU ms | bare TCP echo ms | times it "
          "| times two memcpys |\n" + "|---" * 9 + "|")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        gateways, replica = served(Path(name), [ROOT, *([given.beside] if given.beside else [])])
        for door in doors(gateways[0]):
            if given.door not in {None, door.lower()}:
                continue
            for megabytes in bench_predict.SIZES_MB:
                for gateway, of in zip(gateways, ("", " (beside)"), strict=False):
                    row(gateway, replica, door, of, megabytes, given.times, bare)
        for gateway in gateways:
            gateway.stop()
        replica.close()


def row(
    gateway: Gateway, replica: Replica, door: str, of: str, megabytes: int, times: int, bare: Callable[[int], float]
) -> None:
    pids = [gateway.process.pid, replica.process.pid]
    measure = doors(gateway)[door]
    size = (megabytes << 20) - HEAD_BYTES  # a frame of a WebSocket has 16 MiB at most
    measure(size, 3)
    before = [cpu_ms(pid) for pid in pids]
    took = measure(size, times)
    cpu = [(cpu_ms(pid) - was) / times for pid, was in zip(pids, before, strict=True)]
    least, copy = bare(size), bench_predict.memcpy_s(size)
    print(f"| {door}{of} | {megabytes} MiB | {took * 1e3:.2f} | {2 * size / took / 1e6:.0f} | {cpu[0]:.1f} | "
          f"{cpu[1]:.1f} | {least * 1e3:.2f} | {took / least:.1f} | {took / (2 * copy):.1f} |",
          flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
