"""The gateway's own cost: a tiny request (16 floats in JSON, 4 out) through it to a replica that answers at once,
beside a bare ASGI echo on the same server. `python tests/benchmarks/bench_gateway.py [--seconds 3]` prints a table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "benchmarks")]

import loadgen  # noqa: E402

from inference.protocol import routes  # noqa: E402
from inference.protocol.routes import EndpointRoute, ReplicaRoute, RoutingTable, VariantRoute  # noqa: E402
from tests.support.gateway_house import MLP, Gateway, free_port, key  # noqa: E402


def payloads(url: str, count: int = 64) -> list[bytes]:
    headers = {"Content-Type": "application/json", "Authorization": "Bearer ser_all.s2"}
    found = []
    for number in range(count):
        data = [round((number * 16 + i) % 97 / 97, 4) for i in range(16)]
        body = {"inputs": [{"name": "x", "shape": [1, 16], "datatype": "FP32", "data": data}]}
        found.append(loadgen.frame(url, json.dumps(body).encode(), headers))
    return found


def echo() -> tuple[subprocess.Popen[bytes], str]:
    port = free_port()
    child = subprocess.Popen([sys.executable, str(ROOT / "tests/benchmarks/echo_asgi.py"), str(port)])
    time.sleep(1.0)
    return child, f"http://127.0.0.1:{port}/v2/models/mlp/infer"


def gateway(folder: Path) -> tuple[Gateway, subprocess.Popen[bytes]]:
    socket = folder / "r1.sock"
    replica = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/support/fake_replica.py"), str(socket), "r1", "1", "1", "0"],
        env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    variant = VariantRoute(1, "primary", 10_000, MLP, [ReplicaRoute("r1", 1, f"unix:{socket}")])
    table = RoutingTable(
        generation=1,
        endpoints=[EndpointRoute("mlp", "m", "salt", False, 5000, 1024, [variant])],
        keys=[key("all", "s2", ["*"])],
    )
    (folder / "gateway").mkdir()
    (folder / "gateway" / "routes.json").write_bytes(routes.encode(table))
    found = Gateway(folder, "")
    return found.wait_live().wait_ready(), replica


def row(name: str, result: loadgen.Result) -> None:
    print(name.ljust(8), " ".join(f"{key}={value}" for key, value in asdict(result).items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--connections", default="1,32,128")
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    levels = [int(text) for text in given.connections.split(",")]
    if given.only != "gateway":
        child, url = echo()
        for connections in levels:
            row("echo", loadgen.measure(url, payloads(url), connections, given.seconds, [child.pid]))
        child.kill()
        child.wait()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        served, replica = gateway(Path(folder))
        url = f"{served.url}/v2/models/mlp/infer"
        for connections in levels:
            row("gateway", loadgen.measure(url, payloads(url), connections, given.seconds, [served.process.pid]))
        served.stop()
        replica.kill()
        replica.wait()
        print(f"load average {os.getloadavg()}")


if __name__ == "__main__":
    main()
