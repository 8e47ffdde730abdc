"""`python -m tests.benchmarks`: the whole stack measured on this machine; writes docs/benchmarks.md.

A real `serinus up` in a temporary folder serves a tiny MLP and MiniLM; the load comes from this process. A bare ASGI
echo on the same server stands beside them. `--quick` shortens every window (for trying the benchmark out).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "platform"), str(Path(__file__).parent)]

import bench_idle_grpc  # noqa: E402
import bench_predict  # noqa: E402
import bench_sockets  # noqa: E402
import loadgen  # noqa: E402
import open_loop  # noqa: E402
import pages  # noqa: E402

from inference.errors import SerinusError  # noqa: E402
from tests.support import artifacts  # noqa: E402
from tests.support.house import House, free_port, running_house, until  # noqa: E402

WORDS = [
    "time",
    "people",
    "way",
    "water",
    "words",
    "day",
    "part",
    "number",
    "sound",
    "work",
    "place",
    "year",
    "name",
    "house",
    "page",
    "world",
    "school",
]
OBJECTIVE_MS = 200.0
MISSION_PER_S = 10_000 / 60


@dataclass
class Windows:
    closed_s: float
    mission_s: float
    ramp_s: float


def mlp(folder: Path) -> None:
    """16-16-4 in torch, exported with a free batch of up to 64."""
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).eval()
    dims = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(model, (torch.zeros(2, 16),), dynamic_shapes=dims)
    folder.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, folder / "model.pt2")


def numbers(name: str) -> list[dict]:
    rng = random.Random(1)
    rows = [[round(rng.uniform(-1, 1), 4) for _ in range(16)] for _ in range(256)]
    return [{"inputs": [{"name": name, "datatype": "FP32", "shape": [1, 16], "data": row}]} for row in rows]


def sentences() -> list[dict]:
    rng = random.Random(2)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(5, 12))) for _ in range(512)]
    return [{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}]} for text in texts]


def framed(house: House, endpoint: str, bodies: list[dict]) -> tuple[str, list[bytes]]:
    url = f"{house.gateway_url}/v2/models/{endpoint}/infer"
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {house.key}"}
    return url, [loadgen.frame(url, json.dumps(body).encode(), headers) for body in bodies]


def server_pids(house: House) -> list[int]:
    """The gateway and every replica: what a prediction costs."""
    return [house.pid("gateway"), *(seen.pid for seen in house.seen() if seen.pid)]


class Report:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str = "") -> None:
        print(line, flush=True)
        self.lines.append(line)

    def row(self, *cells: object) -> None:
        self.say("| " + " | ".join(str(cell) for cell in cells) + " |")

    def head(self, *cells: str) -> None:
        self.row(*cells)
        self.say("|" + "---|" * len(cells))


def closed(report: Report, name: str, url: str, requests: list[bytes], pids: list[int], seconds: float) -> None:
    for connections in (1, 32, 128):
        found = loadgen.measure(url, requests, connections, seconds, pids)
        errors = found.errors or ""
        report.row(
            name, connections, f"{found.requests_per_s:.0f}", f"{found.p50_ms:.2f}", f"{found.p99_ms:.2f}",
            f"{found.cpu_ms_per_request:.3f}", f"{found.client_cores:.2f}", errors,
        )  # fmt: skip


def echo(report: Report, bodies: list[dict], seconds: float) -> None:
    port = free_port()
    child = subprocess.Popen([sys.executable, str(ROOT / "tests/benchmarks/echo_asgi.py"), str(port)])
    try:
        time.sleep(1.5)
        url = f"http://127.0.0.1:{port}/v2/models/mlp/infer"
        requests = [loadgen.frame(url, json.dumps(b).encode(), {"Content-Type": "application/json"}) for b in bodies]
        closed(report, "bare ASGI echo", url, requests, [child.pid], seconds)
    finally:
        child.terminate()
        child.wait(10)


def ramp(report: Report, name: str, url: str, requests: list[bytes], steps: list[int], seconds: float) -> None:
    """Raises the rate until the objective breaks."""
    for per_s in steps:
        found = open_loop.offer(url, requests, per_s, seconds)
        kept = found.p99_ms < OBJECTIVE_MS and not found.errors
        report.row(
            name, f"{per_s}", f"{per_s * 60:,}", found.p50_ms, found.p99_ms, found.errors or "", "yes" if kept else "no"
        )
        if not kept:
            return


def measure(report: Report, house: House, windows: Windows) -> dict:
    """Everything under load; answers a request that `mlp` takes."""
    with tempfile.TemporaryDirectory() as folder:
        mlp(Path(folder) / "mlp")
        artifacts.minilm(Path(folder) / "minilm")
        bench_predict.identity(Path(folder) / "same")
        versions = {name: house.upload(name, Path(folder) / name) for name in ("mlp", "minilm", "same")}
    for name, version in versions.items():
        assert version["status"] == "ready", version
        house.deploy(name, version["number"])
    input_name = versions["mlp"]["signature"]["inputs"][0]["name"]
    work = {"mlp": numbers(input_name), "minilm": sentences()}
    for name, bodies in work.items():
        house.serves(name, bodies[0])
    loads = {name: framed(house, name, bodies) for name, bodies in work.items()}

    url, requests = loads["mlp"]
    report.say("## One row a request: tiny MLP, JSON, gateway and replica on one core (pinned) and on all (free)\n")
    report.head(
        "mode", "connections", "req/s", "p50 ms", "p99 ms", "CPU ms/req", "server cores", "client cores", "errors"
    )
    bench_predict.rates(report, url, requests, server_pids(house), windows.closed_s)
    report.say("\n## Large tensors there and back (identity model, binary), beside a memcpy of the same bytes\n")
    report.head("size", "ms", "MB/s (both ways)", "memcpy MB/s", "times two memcpys")
    same = versions["same"]["signature"]["inputs"][0]["name"]
    bench_predict.tensors(report, f"{house.gateway_url}/v2/models/same/infer", house.key, same)
    report.say()

    report.say("## Closed loop: the whole stack beside a bare ASGI echo\n")
    report.head("what", "connections", "req/s", "p50 ms", "p99 ms", "server CPU ms/req", "client cores", "errors")
    echo(report, work["mlp"], windows.closed_s)
    for name, (url, requests) in loads.items():
        closed(report, name, url, requests, server_pids(house), windows.closed_s)

    report.say(
        f"\n## The mission: 10,000 requests a minute, p99 under {OBJECTIVE_MS:.0f} ms, for {windows.mission_s:.0f} s\n"
    )
    report.head("what", "offered req/s", "answered", "p50 ms", "p99 ms", "max ms", "errors")
    for name, (url, requests) in loads.items():
        found = open_loop.offer(url, requests, MISSION_PER_S, windows.mission_s)
        report.row(
            name,
            f"{found.offered_per_s:.1f}",
            found.answered,
            found.p50_ms,
            found.p99_ms,
            found.max_ms,
            found.errors or "",
        )

    report.say(
        f"\n## How far beyond: open loop, {windows.ramp_s:.0f} s a step, until p99 passes {OBJECTIVE_MS:.0f} ms\n"
    )
    report.head("what", "offered req/s", "per minute", "p50 ms", "p99 ms", "errors", "kept")
    steps = {"mlp": [1000, 2000, 4000, 6000, 8000], "minilm": [200, 250, 300, 350]}
    for name, (url, requests) in loads.items():
        ramp(report, name, url, requests, steps[name], windows.ramp_s)
    return work["mlp"][0]


def recovery(report: Report, house: House, body: dict) -> None:
    """Kills each part with SIGKILL and times how long it takes until it serves, or steers, again."""
    replica = next(seen for seen in house.seen() if seen.phase == "ready")

    def predicts() -> bool:
        try:
            return house.infer("mlp", body, **{"X-Request-Timeout-Ms": "500"}).status_code == 200
        except httpx.HTTPError:  # nothing listens at this moment
            return False

    def agent_pid() -> int:
        return int(house.ok("GET", "/api/hosts/testhost/")["agent_pid"])

    agent, pids = agent_pid(), [seen.pid for seen in house.seen()]
    cases: list[tuple[str, Callable[[], object], Callable[[], bool]]] = [
        (
            "a replica",
            lambda: os.kill(replica.pid, 9),
            lambda: any(s.id == replica.id and s.phase == "ready" and s.pid not in pids for s in _seen(house)),
        ),
        ("the host agent (next one adopts)", lambda: house.kill("agent"), lambda: agent_pid() != agent),
        ("the supervisor (replicas back and serving)", lambda: house.kill("host"), predicts),
        ("the gateway", lambda: house.kill("gateway"), predicts),
    ]
    report.say("\n## Recovery after kill -9\n")
    report.head("killed", "back after s")
    for name, kill, back in cases:
        began = time.perf_counter()
        kill()
        time.sleep(0.05)
        until(name, back, 60, 0.02)
        report.row(name, f"{time.perf_counter() - began:.2f}")
        time.sleep(3)


def _seen(house: House) -> list:
    try:
        return house.seen()
    except (OSError, SerinusError):  # the supervisor is being replaced
        return []


def machine() -> str:
    model = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())  # fmt: skip
    memory = psutil.virtual_memory().total / (1 << 30)
    import torch

    return (
        f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, Python {platform.python_version()}, "
        f"torch {torch.__version__}. Load generator on the same machine."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    parser.add_argument(
        "--sockets", action="store_true", help="10,000 WebSockets and gRPC connections too: about 90 s more"
    )
    given = parser.parse_args()
    windows = Windows(2, 10, 4) if given.quick else Windows(4, 120, 8)
    report = Report()
    report.say("# Benchmarks\n")
    report.say(f"Measured by `make bench` on {datetime.now(UTC):%Y-%m-%d}: {machine()}")
    report.say("Series made by hand, and older ones: [benchmarks by hand](benchmarks-by-hand.md).")
    report.say(
        f"Load average before: {os.getloadavg()[0]:.2f}. Everything is shared by one small machine: trust ratios.\n"
    )
    with tempfile.TemporaryDirectory(prefix="serinus-bench-") as folder, running_house(Path(folder)) as house:
        report.say(f"`serinus up` without demo was ready after {house.welcome['seconds']} s.\n")
        recovery(report, house, measure(report, house, windows))
    if given.sockets:
        report.say("\n## 10,000 idle WebSockets and 200 busy ones on one gateway\n")
        for line in bench_sockets.lines(bench_sockets.run()):
            report.say(line)
        for line in bench_idle_grpc.lines(bench_idle_grpc.run()):
            report.say(line)
    if given.write:
        page = ROOT / "docs" / "benchmarks.md"
        peers = pages.section(page.read_text(), pages.PEERS)  # another program's
        page.write_text("\n".join(report.lines) + "\n" + (f"\n{peers}" if peers else ""))


if __name__ == "__main__":
    main()
