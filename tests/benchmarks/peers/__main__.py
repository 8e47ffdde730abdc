"""`make bench-peers`: Serinus beside other servers, the same payloads, alternately in one run.

W1 is a tiny MLP, one row a request; W2 is MiniLM, one sentence a request. Serinus is the whole `serinus up`: gateway and
replica with key check, routing, metrics and deadlines. A peer that is not measured is stopped meanwhile (SIGSTOP);
Serinus idles, for its parts watch each other and would take a stop for a crash.
`pinned`: server on core 0, load on core 1. Peers run with defaults and the batch settings that the workload names.
Then the same requests are offered to all at the same moments (equal_load.py): a closed loop asks more of whoever
answers sooner, so its tails do not compare.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "platform"), str(ROOT / "tests" / "benchmarks")]

import loadgen  # noqa: E402

from serinus.demo import minilm  # noqa: E402
from tests.benchmarks import pages  # noqa: E402
from tests.benchmarks.__main__ import Report, machine, mlp  # noqa: E402
from tests.benchmarks.peers import equal_load, workloads  # noqa: E402
from tests.benchmarks.peers.contestants import PEERS, Contestant, first_answer, started  # noqa: E402
from tests.support.house import House, running_house  # noqa: E402

CELLS = [("w1", "pinned", 1), ("w1", "pinned", 32), ("w1", "pinned", 128),
         ("w1", "free", 1), ("w1", "free", 32), ("w1", "free", 128), ("w2", "free", 64)]  # fmt: skip
OURS = "serinus"
TITLE = pages.PEERS
TOLERANCE = 2e-3


def serinus(house: House, workload: str, folder: Path) -> Contestant:
    """Our own contestant: a version uploaded and deployed as anybody would."""
    name = {"w1": "mlp", "w2": "minilm"}[workload]
    if workload == "w1":
        mlp(folder / name)
    else:
        minilm.make(folder / name)
    version = house.upload(name, folder / name)
    assert version["status"] == "ready", version
    house.deploy(name, version["number"])
    body = workloads.v2(version["signature"]["inputs"][0]["name"], flat=True)
    house.serves(name, body(workloads.values(workload)[0]))
    replicas = [row["pid"] for row in house.ready_replicas(name)]
    url = f"{house.gateway_url}/v2/models/{name}/infer"
    requests = workloads.encoded(body, workload)
    headers = {"Authorization": f"Bearer {house.key}"}
    return Contestant(OURS, url, requests, lambda: [house.pid("gateway"), *replicas], headers)


def measure(one: Contestant, mode: str, connections: int, seconds: float) -> loadgen.Result:
    """One window of a closed loop."""
    with one.measured(mode) as pids:
        return loadgen.measure(one.url, one.frames(), connections, seconds, pids)


def compare(
    report: Report, field: list[Contestant], cell: tuple[str, str, int], seconds: float, rounds: int
) -> dict[str, float]:
    """The rows of one cell: medians over rounds in which everybody has had a turn. Answers requests per second."""
    workload, mode, connections = cell
    found: dict[str, list[loadgen.Result]] = {one.name: [] for one in field}
    for turn in range(rounds):
        for one in field[turn % len(field) :] + field[: turn % len(field)]:
            found[one.name].append(measure(one, mode, connections, seconds))

    def median(name: str, what: str) -> float:
        return statistics.median(getattr(run, what) for run in found[name])

    ours = median(OURS, "requests_per_s")
    for one in field:
        runs = found[one.name]
        rate = median(one.name, "requests_per_s")
        spread = f"{min(r.requests_per_s for r in runs):.0f}-{max(r.requests_per_s for r in runs):.0f}"
        errors = {name: count for run in runs for name, count in run.errors.items()}
        report.row(
            workload, mode, connections, one.name, f"{rate:.0f}", spread, f"{median(one.name, 'p50_ms'):.2f}",
            f"{median(one.name, 'p99_ms'):.2f}", f"{median(one.name, 'cpu_ms_per_request'):.3f}",
            f"{ours / rate:.2f}" if rate else "-", errors or "",
        )  # fmt: skip
    return {one.name: median(one.name, "requests_per_s") for one in field}


def differing(field: list[Contestant], workload: str) -> list[str]:
    """Who gives other numbers than we do."""
    mine = workloads.numbers_in(first_answer(field[0]))
    found = []
    for one in field[1:]:
        one.wake()
        theirs = workloads.numbers_in(first_answer(one))
        one.rest()
        if len(mine) != len(theirs) or max(abs(a - b) for a, b in zip(mine, theirs, strict=True)) > TOLERANCE:
            found.append(f"{one.name} ({workload})")
    return found


@contextlib.contextmanager
def everybody(house: House, workload: str, names: list[str], report: Report) -> Iterator[list[Contestant]]:
    """Ours and all peers that could be started, each at rest."""
    with tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as held:
        folder, field = Path(held), []
        minilm.make(folder / "weights")
        try:
            field.append(serinus(house, workload, folder))
            for peer in PEERS:
                if peer.name in names:
                    try:
                        field.append(started(peer, workload, folder, folder / "weights"))
                        field[-1].rest()
                    except RuntimeError as error:
                        report.say(f"\n{peer.name} is left out: {str(error).splitlines()[0]}")
                        print(error, file=sys.stderr)
            yield field
        finally:
            for one in field:
                one.end()


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", default=",".join(peer.name for peer in PEERS if peer.is_default))
    parser.add_argument("--with-ray", action="store_true", help="Ray Serve too (a large download)")
    parser.add_argument("--with-pytriton", action="store_true", help="PyTriton too (a very large download)")
    parser.add_argument("--workloads", default="w1,w2")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only-pinned", action="store_true", help="leave out the cells in which nothing is pinned")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    return parser.parse_args()


def written(lines: list[str]) -> None:
    """Puts the table in the place of the one before, or at the end of the page."""
    page = ROOT / "docs" / "benchmarks.md"
    page.write_text(pages.with_section(page.read_text(), lines))


def main() -> None:
    given = parsed()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # who is told to stop ends what it has started
    names = [*given.peers.split(","), *["ray"] * given.with_ray, *["pytriton"] * given.with_pytriton]
    report = Report()
    report.say(TITLE)
    report.say(f"{datetime.now(UTC):%Y-%m-%d}: {machine()}")
    report.say(
        f"Closed loop, {given.seconds:g} s a window (W2: twice that), medians of {given.rounds} rounds in which all take turns. Load "
        f"average before: {os.getloadavg()[0]:.2f}. 'ours / theirs' over 1: Serinus answers more.\n"
    )
    report.head("work", "mode", "connections", "server", "req/s", "min-max", "p50 ms", "p99 ms", "CPU ms/req",
                "ours / theirs", "errors")  # fmt: skip
    unlike: list[str] = []
    equal: list[equal_load.Row] = []
    with tempfile.TemporaryDirectory(prefix="serinus-peers-") as folder, running_house(Path(folder)) as house:
        for workload in given.workloads.split(","):
            with everybody(house, workload, names, report) as field:
                unlike += differing(field, workload)
                seconds = given.seconds * (2 if workload == "w2" else 1)
                rates = {
                    cell: compare(report, field, cell, seconds, given.rounds)
                    for cell in CELLS
                    if cell[0] == workload and (cell[1] == "pinned" or not given.only_pinned)
                }
                if equal_load.CELL in rates:
                    equal += equal_load.compared(field, rates[equal_load.CELL], given.seconds, given.rounds)
    report.say("\nThe first answers are the same numbers everywhere." if not unlike else f"\nOTHER NUMBERS: {unlike}")
    equal_load.told(report, equal)
    if given.write:
        written(report.lines)


if __name__ == "__main__":
    main()
