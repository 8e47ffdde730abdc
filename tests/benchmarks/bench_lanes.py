"""W2 on two cores, three ways: two replicas of a core each, one replica of one lane, one with a lane for each core.

`python tests/benchmarks/bench_lanes.py [--seconds 20] [--rounds 3]`: MiniLM, 512 sentences of 5 to 120 words, 64
connections in a closed loop. The ways take turns, so that what else the machine does meets all of them; medians.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "platform"), str(ROOT / "tests" / "benchmarks")]

import loadgen  # noqa: E402
from peers import workloads  # noqa: E402

from inference.protocol import routes  # noqa: E402
from inference.protocol.oip import Signature, TensorSpec  # noqa: E402
from inference.protocol.routes import EndpointRoute, ReplicaRoute, RoutingTable, VariantRoute  # noqa: E402
from serinus.demo import minilm  # noqa: E402
from tests.support.gateway_house import Gateway, key  # noqa: E402
from tests.support.replica_process import Replica  # noqa: E402

TEXTS = Signature([TensorSpec("text", "BYTES", [-1])], [TensorSpec("embedding", "FP32", [-1, 384])], max_batch_size=64)
CONNECTIONS = 64
START_S = 180


@dataclass(frozen=True)
class Way:
    """How MiniLM is put on the cores. cores: of each replica, all where 0; an encoder has a lane for each it may use."""

    name: str
    replicas: int
    cores: int


WAYS = (
    Way("two replicas, one core each", 2, 1),
    Way("one replica, one core", 1, 1),
    Way("one replica, a lane for each core", 1, 0),
)


@contextlib.contextmanager
def on_core(number: int | None) -> Iterator[None]:
    """What is started inside keeps to one core; None: to those that there are."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, own if number is None else {sorted(own)[number % len(own)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


def replica(folder: Path, artifact: Path, way: Way, number: int) -> Replica:
    with on_core(number if way.cores else None):
        threads = way.cores or len(os.sched_getaffinity(0))
        return Replica(folder / f"r{number}", artifact, "hf_encoder", {}, name=f"r{number}", threads=threads)


@contextlib.contextmanager
def served(folder: Path, artifact: Path, way: Way) -> Iterator[tuple[str, list[int]]]:
    """The endpoint's address and the pids of gateway and replicas."""
    replicas = [replica(folder, artifact, way, number) for number in range(way.replicas)]
    gateway = None
    for one in replicas:
        one.control.sock.settimeout(START_S)
    try:
        links = [ReplicaRoute(f"r{n}", 1, f"unix:{one.ready().path}") for n, one in enumerate(replicas)]
        variant = VariantRoute(1, "primary", 10_000, TEXTS, links)
        table = RoutingTable(
            1, [EndpointRoute("w2", "m", "salt", False, 60_000, 1024, [variant])], [key("all", "s2", ["*"])]
        )
        (folder / "gateway").mkdir()
        (folder / "gateway" / "routes.json").write_bytes(routes.encode(table))
        gateway = Gateway(folder, "").wait_live().wait_ready("w2")
        yield f"{gateway.url}/v2/models/w2/infer", [gateway.process.pid, *(one.process.pid for one in replicas)]
    finally:
        if gateway is not None:
            gateway.stop()
        for one in replicas:
            one.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    body = workloads.v2(flat=True)
    bodies = [json.dumps(body(text)).encode() for text in workloads.values("w2")]
    headers = {"Content-Type": "application/json", "Authorization": "Bearer ser_all.s2"}
    seen: dict[Way, list[loadgen.Result]] = {way: [] for way in WAYS}
    print(f"load average before: {os.getloadavg()[0]:.2f}")
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        minilm.make(Path(name))
        for round_ in range(given.rounds):
            for number, way in enumerate(WAYS):
                with (
                    tempfile.TemporaryDirectory(prefix=f"w2-{round_}{number}-") as folder,
                    served(Path(folder), Path(name), way) as (url, pids),
                ):
                    asked = [loadgen.frame(url, one, headers) for one in bodies]
                    seen[way].append(loadgen.measure(url, asked, CONNECTIONS, given.seconds, pids))
    print("| way | sentences/s | min-max | p50 ms | p99 ms | CPU ms a sentence | errors |")
    print("|" + "---|" * 7)
    for way, found in seen.items():
        rates = [one.requests_per_s for one in found]
        p50, p99 = (statistics.median(getattr(one, name) for one in found) for name in ("p50_ms", "p99_ms"))
        cpu = statistics.median(one.cpu_ms_per_request for one in found)
        errors = [one.errors for one in found if one.errors] or ""
        print(f"| {way.name} | {statistics.median(rates):.1f} | {min(rates):.1f}-{max(rates):.1f} | {p50:.0f} | {p99:.0f} "
              f"| {cpu:.1f} | {errors} |")  # fmt: skip
    print(f"load average after: {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
