"""Tails at equal offered load: W1, pinned, the same requests due at the same moments for every server.

The rates are shares of what the reference peer answers in a closed loop at 128 connections. Arrivals are a Poisson
process of a fixed seed, and a latency begins when its request was due, not when it could be sent. Whoever answers less
than the rate even in a closed loop has no tail to compare: its queue grows for as long as the load lasts.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import loadgen
import open_loop
from open_loop import Arrivals, Outcome

from tests.benchmarks.__main__ import Report
from tests.benchmarks.peers.contestants import Contestant

CELL = ("w1", "pinned", 128)
OURS = "serinus"
REFERENCE = "mosec"
SHARES = (0.5, 0.8)
WARM_S = 1.0
PATIENCE_S = 5.0
SEED = 11


@dataclass(frozen=True)
class Row:
    """One server under one rate. runs: none where it cannot answer that much."""

    share: float
    per_s: float
    reference: str
    server: str
    closed_per_s: float
    runs: list[tuple[Outcome, float]]  # and the server's CPU s


def compared(field: list[Contestant], rates: dict[str, float], seconds: float, rounds: int) -> list[Row]:
    """Rows of all servers under all shares, who take turns. rates: requests/s of the closed loop, by server."""
    others = {name: rate for name, rate in rates.items() if name != OURS}
    reference = REFERENCE if REFERENCE in others else max(others, key=lambda name: others[name], default=OURS)
    found = []
    for share in SHARES:
        per_s = round(share * rates[reference])
        rows = [Row(share, per_s, reference, one.name, rates[one.name], []) for one in field]
        able = [(one, row) for one, row in zip(field, rows, strict=True) if row.closed_per_s >= per_s]
        for turn in range(rounds):
            for one, row in able[turn % len(able) :] + able[: turn % len(able)]:
                row.runs.append(_measured(one, Arrivals(per_s, seconds, WARM_S, SEED + turn, True, PATIENCE_S)))
        found += rows
    return found


def _measured(one: Contestant, arrivals: Arrivals) -> tuple[Outcome, float]:
    with one.measured("pinned") as pids:
        before = loadgen.cpu_s(pids)
        found = open_loop.arrive(one.url, one.frames(), arrivals)
        return found, loadgen.cpu_s(pids) - before


def told(report: Report, rows: list[Row]) -> None:
    """The table, with medians over the rounds."""
    if not rows:
        return
    report.say("\n### At equal offered load (W1, pinned, open loop)\n")
    report.say(
        f"Rates: {', '.join(f'{share:.0%}' for share in SHARES)} of what {rows[0].reference} answers in the closed loop "
        "at 128 connections. Poisson arrivals, the same for all; a latency counts from the moment its request was due.\n"
    )
    report.head("offered/s", "share", "server", "answered/s", "p50 ms", "p99 ms", "p99 min-max", "max ms", "cores",
                "p99 theirs / ours", "late", "errors")  # fmt: skip
    ours = {row.share: _p99(row) for row in rows if row.server == OURS}
    for row in rows:
        if row.runs:
            _tell(report, row, ours[row.share])
        else:
            why = f"cannot: {row.closed_per_s:.0f}/s in the closed loop"
            report.row(f"{row.per_s:.0f}", f"{row.share:.0%}", row.server, why, *[""] * 8)


def _p99(row: Row) -> float:
    return statistics.median(run.p99_ms for run, _ in row.runs) if row.runs else 0.0


def _tell(report: Report, row: Row, ours: float) -> None:
    outcomes = [run for run, _ in row.runs]
    p99 = [run.p99_ms for run in outcomes]
    taken_s = [cpu_s / (run.answered / run.answered_per_s + WARM_S) for run, cpu_s in row.runs if run.answered]
    errors = {name: count for run in outcomes for name, count in run.errors.items()}
    report.row(
        f"{row.per_s:.0f}", f"{row.share:.0%}", row.server,
        f"{statistics.median(run.answered_per_s for run in outcomes):.0f}",
        f"{statistics.median(run.p50_ms for run in outcomes):.2f}", f"{_p99(row):.2f}", f"{min(p99):.2f}-{max(p99):.2f}",
        f"{max(run.max_ms for run in outcomes):.1f}", f"{statistics.median(taken_s):.2f}" if taken_s else "",
        f"{_p99(row) / ours:.2f}" if ours else "-", sum(run.late for run in outcomes) or "", errors or "",
    )  # fmt: skip
