"""What a mirror of 100 % costs the live requests: the same steady load (16 floats in JSON, open loop) on two gateways,
one that copies every request to a candidate and one that copies none, in turns, so that both see the same machine.
`python tests/benchmarks/bench_mirror.py [--per-s 300] [--seconds 5] [--rounds 5]` prints medians over the rounds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "benchmarks")]

import open_loop  # noqa: E402
from bench_gateway import payloads  # noqa: E402

from inference.protocol import routes  # noqa: E402
from inference.protocol.routes import EndpointRoute, ReplicaRoute, RoutingTable, Steering, VariantRoute  # noqa: E402
from tests.support.gateway_house import MLP, Gateway, key, until  # noqa: E402


def gateway(folder: Path, mirror_bp: int, latency_ms: float) -> tuple[Gateway, list[subprocess.Popen[bytes]]]:
    folder.mkdir()
    replicas, variants = [], []
    for version, arm in ((1, "primary"), (2, "canary")):
        socket = folder / f"r{version}.sock"
        command = [sys.executable, str(ROOT / "tests/support/fake_replica.py"), str(socket), f"r{version}", "1",
                   str(version), str(latency_ms)]  # fmt: skip
        replicas.append(subprocess.Popen(command, env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL))
        route = ReplicaRoute(f"r{version}", 1, f"unix:{socket}")
        variants.append(VariantRoute(version, arm, 10_000 if version == 1 else 0, MLP, [route]))
    endpoint = EndpointRoute(
        "mlp", "m", "salt", False, 5000, 1024, variants, steering=Steering("r", 1, 2, mirror_bp, mirror_inflight=256)
    )
    table = RoutingTable(generation=1, endpoints=[endpoint], keys=[key("all", "s2", ["*"])])
    (folder / "gateway").mkdir()
    (folder / "gateway" / "routes.json").write_bytes(routes.encode(table))
    found = Gateway(folder, "").wait_live().wait_ready()
    until(lambda: found.get("/v2/models/mlp/versions/2/ready").status_code == 200, 15)
    return found, replicas


def copied(found: Gateway) -> int:
    """Copies that were answered so far."""
    lines = found.get("/metrics").text.splitlines()
    told = [line for line in lines if line.startswith("serinus_requests_total{") and 'arm="shadow"' in line]
    return int(sum(float(line.rpartition(" ")[2]) for line in told))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--per-s", type=float, default=300)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--latency-ms", type=float, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        sides = {name: gateway(Path(folder) / name, bp, given.latency_ms) for name, bp in (("off", 0), ("on", 10_000))}
        found: dict[str, list[open_loop.Outcome]] = {name: [] for name in sides}
        for _ in range(given.rounds):
            for name, (served, _replicas) in sides.items():
                url = f"{served.url}/v2/models/mlp/infer"
                found[name].append(open_loop.offer(url, payloads(url), given.per_s, given.seconds))
        for name, outcomes in found.items():
            served, replicas = sides[name]
            shown = f"p50={median(one.p50_ms for one in outcomes):.1f} p99={median(one.p99_ms for one in outcomes):.1f}"
            each = " ".join(f"{one.p99_ms:.1f}" for one in outcomes)
            print(f"mirror {name:4} {shown} ms (p99 of each round: {each}) answered="
                  f"{sum(one.answered for one in outcomes)} copied={copied(served)} "
                  f"errors={sum(sum(one.errors.values()) for one in outcomes)}", flush=True)  # fmt: skip
            served.stop()
            for replica in replicas:
                replica.kill()
                replica.wait()
    print(f"load average {os.getloadavg()}")


if __name__ == "__main__":
    main()
