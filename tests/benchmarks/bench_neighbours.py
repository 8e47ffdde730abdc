"""Row 38 of the fault matrix, timed: a model at 5 requests a second, alone and beside one that is saturated.

`python tests/benchmarks/bench_neighbours.py [--seconds 40]`. One gateway; A is a tiny MLP, flooded by 64 connections in a
closed loop from a process of their own; B is our own echo model. Each has its own replica, so with two cores B shares
them with A, the gateway and the load.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
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

A = Signature([TensorSpec("input", "FP32", [-1, 16])], [TensorSpec("output_0", "FP32", [-1, 4])], max_batch_size=64)
B = Signature([TensorSpec("input", "FP32", [-1, 4])], [TensorSpec("output", "FP32", [-1, 4])], max_batch_size=32)
PER_S = 5
CONNECTIONS = 64


def mlp(folder: Path) -> None:
    """16-16-4 in torch."""
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).eval()
    dims = ({0: torch.export.Dim("batch", min=1, max=64)},)
    folder.mkdir()
    torch.export.save(torch.export.export(model, (torch.zeros(2, 16),), dynamic_shapes=dims), folder / "model.pt2")


def served(folder: Path) -> tuple[Gateway, list[Replica]]:
    """A gateway with `a` and `b`, each behind a replica of its own."""
    mlp(folder / "a")
    (folder / "b").mkdir()
    (folder / "b" / "echo.json").write_text("{}")
    replicas = [
        Replica(folder / "ra", folder / "a", "torch_export", {}, name="a").ready(),
        Replica(folder / "rb", folder / "b", "echo", {}, name="b").ready(),
    ]
    endpoints = []
    for name, signature, replica in zip("ab", (A, B), replicas, strict=True):
        variant = VariantRoute(1, "primary", 10_000, signature, [ReplicaRoute(name, 1, f"unix:{replica.path}")])
        endpoints.append(EndpointRoute(name, name, "salt", False, 5000, 1024, [variant]))
    (folder / "gateway").mkdir()
    table = RoutingTable(1, endpoints, [key("all", "s2", ["*"])])
    (folder / "gateway" / "routes.json").write_bytes(routes.encode(table))
    return Gateway(folder, "").wait_live().wait_ready("a").wait_ready("b"), replicas


def body(name: str, size: int) -> bytes:
    tensor = {"name": name, "shape": [1, size], "datatype": "FP32", "data": [0.5] * size}
    return json.dumps({"inputs": [tensor]}).encode()


def flood(url: str, folder: Path, seconds: float) -> subprocess.Popen[bytes]:
    """Begins to saturate A."""
    (folder / "body").write_bytes(body("input", 16))
    command = [
        sys.executable, str(ROOT / "tests" / "benchmarks" / "loadgen.py"), url, "--connections", str(CONNECTIONS),
        "--seconds", str(seconds), "--key", "ser_all.s2", "--body", str(folder / "body"),
    ]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=40)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        gateway, replicas = served(folder)
        url = f"{gateway.url}/v2/models/b/infer"
        headers = {"Content-Type": "application/json", "Authorization": "Bearer ser_all.s2"}
        asked = [loadgen.frame(url, body("input", 4), headers)]
        print(f"load average before: {os.getloadavg()[0]:.2f}")
        print("| B at 5 requests a second | answered | p50 ms | p99 ms | max ms | errors |")
        print("|" + "---|" * 6)
        open_loop.offer(url, asked, PER_S, 4)
        p99 = []
        for what in ("alone", "beside A"):
            other = None
            if what != "alone":
                other = flood(f"{gateway.url}/v2/models/a/infer", folder, given.seconds + 2)
            found = open_loop.offer(url, asked, PER_S, given.seconds)
            p99.append(found.p99_ms)
            print(
                f"| {what} | {found.answered} | {found.p50_ms} | {found.p99_ms} | {found.max_ms} | {found.errors or ''} |"
            )
        print(f"p99 beside / alone: {p99[1] / p99[0]:.2f} (goal: below 2)")
        assert other is not None
        print("A:", other.communicate(timeout=60)[0].decode())
        gateway.stop()
        for replica in replicas:
            replica.close()


if __name__ == "__main__":
    main()
