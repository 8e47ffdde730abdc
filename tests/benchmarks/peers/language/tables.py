"""What the windows of all engines come to, as Markdown."""

from __future__ import annotations

from tests.benchmarks.peers.language.measured import Window, median

BURST, POISSON = "burst", "Poisson 0.35 /s"
Found = dict[tuple[str, str], list[Window]]
HEAD = [
    "arrivals", "engine", "output tokens/s", "TTFT p50 ms", "p99", "between tokens p50 ms", "p99", "CPU ms/token",
    "server cores", "client cores", "foreign",
]  # fmt: skip
RATIOS = ["arrivals", "beside", "output tokens/s", "TTFT p50", "TTFT p99", "between tokens p50", "p99", "CPU/token"]


def table(head: list[str], rows: list[str]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows]


def line(arrivals: str, engine: str, of: Window) -> str:
    """One window as a row."""
    cells = [
        f"{of.tokens_per_s:.1f}", f"{of.first_p50_ms:.0f}", f"{of.first_p99_ms:.0f}", f"{of.gap_p50_ms:.0f}",
        f"{of.gap_p99_ms:.0f}", f"{of.cpu_ms_per_token:.1f}", f"{of.server_cores:.2f}", f"{of.client_cores:.2f}",
        f"{of.foreign_cores:.2f}",
    ]  # fmt: skip
    return f"| {' | '.join([arrivals, engine, *cells])} |"


def windows(found: Found) -> list[str]:
    """Every window that was measured."""
    return table(HEAD, [line(what, name, one) for (what, name), runs in found.items() for one in runs])


def ratios(found: Found, ours: str) -> list[str]:
    """Ours over theirs, of the medians: tokens a second over 1 and times under 1 speak for us."""
    rows = []
    for (what, name), runs in found.items():
        if name != ours and (what, ours) in found:
            mine, other = median(found[what, ours]), median(runs)
            cells = [
                mine.tokens_per_s / other.tokens_per_s, mine.first_p50_ms / other.first_p50_ms,
                mine.first_p99_ms / other.first_p99_ms, mine.gap_p50_ms / other.gap_p50_ms,
                mine.gap_p99_ms / other.gap_p99_ms, mine.cpu_ms_per_token / other.cpu_ms_per_token,
            ]  # fmt: skip
            rows.append(f"| {' | '.join([what, name, *(f'{cell:.2f}' for cell in cells)])} |")
    return ["Ours / theirs (medians):", "", *table(RATIOS, rows)]
