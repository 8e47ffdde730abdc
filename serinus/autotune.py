"""What a sweep found, and what it advises. Pure: numbers in, a table, a page and a plot out."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

NEAR_BEST = 0.95
WIDTH, HEIGHT, MARGIN = 640, 360, 56
OPEN_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class Load:
    """One load on one candidate. rate: requests per second that were offered, 0 for a closed loop."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    errors: int = 0
    rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """Settings that were tried, and how they did: as fast as possible, and at a steady rate below that."""

    settings: dict[str, Any]
    closed: Load
    open: Load
    version: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What was tried on which endpoint. objective_ms: 0 for none."""

    endpoint: str
    model: str
    connections: int
    objective_ms: float
    candidates: list[Candidate] = field(default_factory=list)

    @property
    def advised(self) -> Candidate | None:
        """Among those that answered every request (and hold the objective, where any does) the quickest tail within 5 %
        of the best throughput.
        """
        sound = [one for one in self.candidates if not one.closed.errors and not one.open.errors]
        if self.objective_ms:
            sound = [one for one in sound if one.open.p99_ms <= self.objective_ms] or sound
        if not sound:
            return None
        best = max(one.closed.requests_per_s for one in sound)
        near = [one for one in sound if one.closed.requests_per_s >= NEAR_BEST * best]
        return min(near, key=lambda one: one.open.p99_ms)

    def as_json(self) -> dict[str, Any]:
        advised = self.advised
        return asdict(self) | {"advised": asdict(advised) if advised else None}


def grid(max_batch_sizes: Sequence[int], windows_ms: Sequence[float], delays_us: Sequence[int]) -> list[dict[str, Any]]:
    """Every size with every window, and with every delay; no window matters to batches of one."""
    found: list[dict[str, Any]] = []
    for size in max_batch_sizes:
        if size == 1:
            found.append({"max_batch_size": 1})
            continue
        found += [{"max_batch_size": size, "window_ms": window} for window in windows_ms]
        found += [{"max_batch_size": size, "max_queue_delay_us": delay} for delay in delays_us]
    return found


def columns() -> list[str]:
    return ["settings", "most req/s", "p50 ms", "p99 ms", "at req/s", "p50 ms", "p99 ms", "errors"]


def rows(report: Report) -> list[list[str]]:
    advised = report.advised
    return [
        [
            ("* " if one is advised else "") + words(one.settings),
            f"{one.closed.requests_per_s:.0f}",
            f"{one.closed.p50_ms:.2f}",
            f"{one.closed.p99_ms:.2f}",
            f"{one.open.rate:.0f}",
            f"{one.open.p50_ms:.2f}",
            f"{one.open.p99_ms:.2f}",
            str(one.closed.errors + one.open.errors),
        ]
        for one in report.candidates
    ]


def words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in settings.items())


def options(settings: dict[str, Any]) -> str:
    """The settings as options of `serinus upload`."""
    return " ".join(f"--set '{name}={json.dumps(value)}'" for name, value in settings.items())


def markdown(report: Report, plot: str) -> str:
    """The page; `plot` is the plot's file name beside it."""
    lines = [
        f"# Autotune of `{report.endpoint}`",
        f"Closed loop of {report.connections} connections, then Poisson arrivals at {OPEN_SHARE:.0%} of each candidate's own best rate.",
        "",
        "| " + " | ".join(columns()) + " |",
        "|" + "---|" * len(columns()),
        *("| " + " | ".join(row) + " |" for row in rows(report)),
        "",
        f"![throughput and tail]({plot})",
        "",
        "## Advice",
        _advice(report),
    ]
    return "\n".join(lines) + "\n"


def _advice(report: Report) -> str:
    advised = report.advised
    if advised is None:
        return "No candidate answered every request: look at the endpoint's page and its log before tuning it."
    held = ""
    if report.objective_ms:
        is_held = advised.open.p99_ms <= report.objective_ms
        held = f" The objective of {report.objective_ms:g} ms is {'held' if is_held else 'NOT held by any candidate'}."
    apply = (
        f"Version {advised.version} has these settings and is kept: `serinus deploy {report.model}:{advised.version} "
        f"--endpoint {report.endpoint}`, then `serinus split`. Elsewhere"
        if advised.version
        else "To apply them"
    )
    return f"**{words(advised.settings)}**.{held} {apply}: `serinus upload {report.model} PATH {options(advised.settings)}`."


def svg(report: Report) -> str:
    """Each candidate as a point: most requests per second to the right, p99 at the steady rate upwards."""
    most = max([one.closed.requests_per_s for one in report.candidates], default=1.0) or 1.0
    worst = max([*(one.open.p99_ms for one in report.candidates), report.objective_ms], default=1.0) or 1.0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="sans-serif" font-size="11">',
        f"<title>Autotune of {escape(report.endpoint)}: throughput and tail latency</title>",
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<path d="M{MARGIN} {MARGIN / 2}V{HEIGHT - MARGIN}H{WIDTH - MARGIN / 2}" fill="none" stroke="#444"/>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">most requests per second</text>',
        f'<text x="14" y="{HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 14 {HEIGHT / 2})">p99, ms</text>',
    ]
    for share in (0.0, 0.5, 1.0):
        x, y = _place(share, share)
        parts.append(f'<text x="{x:.0f}" y="{HEIGHT - MARGIN + 16}" text-anchor="middle">{most * share:.0f}</text>')
        parts.append(f'<text x="{MARGIN - 6}" y="{y:.0f}" text-anchor="end">{worst * share:.3g}</text>')
    if report.objective_ms:
        _, y = _place(0, report.objective_ms / worst)
        parts.append(f'<path d="M{MARGIN} {y:.1f}H{WIDTH - MARGIN / 2}" stroke="#c60" stroke-dasharray="4 3"/>')
    advised = report.advised
    for number, one in zip(itertools.count(1), report.candidates, strict=False):
        x, y = _place(one.closed.requests_per_s / most, one.open.p99_ms / worst)
        colour = "#0a7" if one is advised else "#357"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"><title>{escape(words(one.settings))}</title></circle>'
        )
        parts.append(f'<text x="{x + 7:.1f}" y="{y - 5:.1f}">{number}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _place(right: float, up: float) -> tuple[float, float]:
    return MARGIN + right * (WIDTH - 1.5 * MARGIN - 20), HEIGHT - MARGIN - up * (HEIGHT - 1.5 * MARGIN - 10)
