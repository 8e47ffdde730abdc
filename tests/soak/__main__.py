"""`make soak`: minutes at 70 % of what this machine can do, through a real `serinus up`, by every door, beside clients that
crash; then broken messages by the hundred thousand. Prints memory at start and end, errors and p99; exits with 1 when a
good client got an error, memory grew, or a log holds a traceback. `--minutes 1` for trying.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "platform"), str(ROOT / "tests" / "benchmarks")]

import loadgen  # noqa: E402
import psutil  # noqa: E402
import uvloop  # noqa: E402

from tests.benchmarks.__main__ import framed, mlp, numbers, sentences  # noqa: E402
from tests.soak import doors  # noqa: E402
from tests.soak.doors import Counted  # noqa: E402
from tests.support import artifacts, fuzzing  # noqa: E402
from tests.support.house import House, running_house  # noqa: E402

LOAD = 0.7
PYTHON_CLIENTS_PER_S = 60.0  # by WebSocket and by gRPC each: their Python clients would be measured beyond it
BROKEN_A_MINUTE = 10_000
GROWTH, SLACK_BYTES = 0.10, 24 << 20


@dataclass
class Served:
    """An endpoint, its input's name and its payloads."""

    name: str
    input: str
    bodies: list[dict[str, Any]]
    url: str
    requests: list[bytes]


def serve(house: House, folder: Path) -> dict[str, Served]:
    mlp(folder / "mlp")
    artifacts.minilm(folder / "minilm")
    found = {}
    for name in ("mlp", "minilm"):
        version = house.upload(name, folder / name)
        assert version["status"] == "ready", version
        house.deploy(name, version["number"])
        given = version["signature"]["inputs"][0]["name"]
        bodies = numbers(given) if name == "mlp" else sentences()
        house.serves(name, bodies[0])
        found[name] = Served(name, given, bodies, *framed(house, name, bodies))
    return found


def memory(house: House) -> dict[str, int]:
    """Resident bytes of the gateway and each replica."""
    pids = {"gateway": house.pid("gateway")}
    pids |= {f"replica of {row['model']}": row["pid"] for row in house.replicas() if row["phase"] == "ready"}
    return {name: psutil.Process(pid).memory_info().rss for name, pid in pids.items()}


def capacity(served: Served, connections: int, seconds: float) -> float:
    return loadgen.measure(served.url, served.requests, connections, seconds, []).requests_per_s


async def load(house: House, served: dict[str, Served], rates: dict[str, float], seconds: float) -> list[Counted]:
    """Everybody at once for so long."""
    until = time.perf_counter() + seconds
    few = min(PYTHON_CLIENTS_PER_S, rates["mlp"] / 4)
    by_rest = Counted("mlp REST", max(1.0, rates["mlp"] - 2 * few))
    by_socket, by_grpc = Counted("mlp WebSocket", few), Counted("mlp gRPC", few)
    texts, bad = Counted("minilm REST", rates["minilm"]), Counted("crashing clients", 20)
    small = served["mlp"]
    stream = f"{house.gateway_url.replace('http', 'ws')}/v2/models/mlp/stream"
    await asyncio.gather(
        doors.rest(by_rest, small.url, small.requests, until),
        doors.websocket(by_socket, stream, house.key, small.bodies, until),
        doors.grpc(by_grpc, f"127.0.0.1:{house.grpc_port}", house.key, "mlp", small.input, until),
        doors.rest(texts, served["minilm"].url, served["minilm"].requests, until),
        doors.crashing(bad, house.http_port, random.Random(1).choice(small.requests), until),
    )
    return [by_rest, by_socket, by_grpc, texts, bad]


def told(counted: list[Counted]) -> list[str]:
    """Prints what each stream came to; the errors."""
    bad = []
    print(f"{'':18} {'offered/s':>9} {'sent':>8} {'p50 ms':>8} {'p99 ms':>8}  errors")
    for one in counted:
        p50, p99 = one.quantile_ms(0.5), one.quantile_ms(0.99)
        print(f"{one.name:18} {one.per_s:9.1f} {one.sent:8} {p50:8.1f} {p99:8.1f}  {dict(one.errors) or 'none'}")
        if one.errors:
            bad.append(f"{one.name}: {dict(one.errors)}")
    return bad


def grown(before: dict[str, int], after: dict[str, int]) -> list[str]:
    bad = []
    for name, start in before.items():
        end = after.get(name, 0)
        print(f"RSS of {name:20} {start / 2**20:8.1f} MiB at the start, {end / 2**20:8.1f} MiB at the end")
        if end > start * (1 + GROWTH) + SLACK_BYTES:
            bad.append(f"{name} grew from {start} to {end} bytes")
        if not end:
            bad.append(f"{name} is not there any more")
    return bad


def broken(house: House, served: Served, count: int) -> list[str]:
    target = fuzzing.Target(house.http_port, house.key, served.name, served.input, house.grpc_port)
    began = time.monotonic()
    found = asyncio.run(fuzzing.storm(target, count, seed=int(time.time())))
    print(f"{found.messages} broken messages in {time.monotonic() - began:.0f} s: {dict(found.seen.most_common(12))}")
    return found.problems[:10]


def soak(house: House, folder: Path, minutes: float) -> list[str]:
    served = serve(house, folder)
    rates = {"mlp": capacity(served["mlp"], 32, 3), "minilm": capacity(served["minilm"], 16, 5)}
    print("capacity, each alone: " + ", ".join(f"{name} {rate:.0f}/s" for name, rate in rates.items()))
    # both share this machine: each gets half of the 70 %
    rates = {name: max(1.0, rate * LOAD / 2) for name, rate in rates.items()}
    uvloop.run(load(house, served, rates, 10))  # what is made once is made now
    before, pids = memory(house), [seen.pid for seen in house.seen()] + [house.pid("gateway")]
    bad = told(uvloop.run(load(house, served, rates, minutes * 60)))
    bad += grown(before, memory(house))
    bad += broken(house, served["mlp"], int(BROKEN_A_MINUTE * minutes))
    bad += grown(before, memory(house))
    if pids != [seen.pid for seen in house.seen()] + [house.pid("gateway")]:
        bad.append("a process was replaced")
    in_flight = house_metric(house, "serinus_requests_in_flight")
    if in_flight:
        bad.append(f"{in_flight:g} requests are still under way")
    for log in (house.data_dir / "logs").rglob("*.log"):
        if "Traceback" in log.read_text(errors="replace"):
            bad.append(f"a traceback in {log.name}")
    return bad


def house_metric(house: House, name: str) -> float:
    import httpx

    time.sleep(2)
    text = httpx.get(f"{house.gateway_url}/metrics", headers={"Authorization": f"Bearer {house.key}"}).text
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name + " "))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as held, running_house(Path(held)) as house:
        bad = soak(house, Path(held), given.minutes)
    print(json.dumps({"ok": not bad, "problems": bad}, indent=1))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
