"""`python tests/benchmarks/bench_judge.py [--write]`: the canary's judge beside others, over simulated traffic.

Seeded, without a clock or a network: the same figures on every machine. `--write` puts the tables into
docs/rollouts.md and the plot into docs/img/judge.svg.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from rollouts.judge import JudgeSettings, coarsened, judge  # noqa: E402
from tests.support.judges import JUDGES, defaults  # noqa: E402
from tests.support.rollout_looks import watched  # noqa: E402
from tests.support.rollout_traffic import START_UNIX_S, Scenario, simulated  # noqa: E402

SEED = 2026
PAGE, PLOT = ROOT / "docs" / "rollouts.md", ROOT / "docs" / "img" / "judge.svg"
HALF_AN_HOUR = 1800
# Title, traffic, whether errors or latency are judged, whether the canary is equal.
COLUMNS: tuple[tuple[str, Scenario, str, bool], ...] = (
    ("equal, errors", Scenario(is_timed=False), "errors", True),
    ("equal, batches of 4", Scenario(batch=4, is_timed=False), "errors", True),
    ("equal, batches of 16", Scenario(batch=16, is_timed=False), "errors", True),
    ("equal, latency", Scenario(), "latency", True),
    ("equal, 0.5/s, errors", Scenario(per_second=5, is_timed=False), "errors", True),
    ("equal, 0.5/s, latency", Scenario(per_second=5), "latency", True),
    ("errors 1 %", Scenario(canary_errors=0.01, is_timed=False), "errors", False),
    ("errors 2 %", Scenario(canary_errors=0.02, is_timed=False), "errors", False),
    ("errors 5 %", Scenario(canary_errors=0.05, is_timed=False), "errors", False),
    ("latency x 1.25", Scenario(slower=1.25), "latency", False),
)
PASSES: tuple[tuple[str, Scenario, int], ...] = (
    ("50 requests/s, 1 % to the canary", Scenario(share=0.01), HALF_AN_HOUR),
    ("50 requests/s, 10 %", Scenario(), HALF_AN_HOUR),
    ("50 requests/s, 50 %", Scenario(share=0.5), 900),
    (
        "50 requests/s, 10 %, errors 0.05 %",
        Scenario(stable_errors=0.0005, canary_errors=0.0005),
        HALF_AN_HOUR,
    ),
    ("50 requests/s, 10 %, latency sways with the load", Scenario(sway=0.2), HALF_AN_HOUR),
    ("500 requests/s, 10 %", Scenario(per_second=500), 300),
    ("5 requests/s, 10 %", Scenario(per_second=5), 7200),
    ("5 requests/s, 50 %", Scenario(per_second=5, share=0.5), 7200),
)
PANELS = ("equal, errors", "equal, batches of 16", "errors 2 %", "latency x 1.25")
COLOURS = ("#b8860b", "#c2571a", "#8a5a9e", "#5b7fa6", "#7a8b5c", "#0b6e4f")

Found = dict[tuple[str, str], np.ndarray]


def measured(runs: int) -> Found:
    """(judge, column) -> the second at which each run is rolled back."""
    found = {}
    for title, scenario, what, is_equal in COLUMNS:
        seconds = HALF_AN_HOUR if is_equal or title == "errors 1 %" else 900
        arms = simulated(scenario, runs, seconds, SEED)
        for item in JUDGES:
            found[item.name, title] = getattr(item, what)(arms)
    return found


def comparison(found: Found, runs: int) -> str:
    """Two tables: false rollbacks, and how soon a worse canary is rolled back."""
    parts = []
    for is_equal, head in ((True, "Rolled back though equal"), (False, "Rolled back because worse: share, median")):
        titles = [title for title, _, _, equal in COLUMNS if equal is is_equal]
        rows = [f"| {head} | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
        for item in JUDGES:
            cells = [_cell(found[item.name, title], is_equal=is_equal) for title in titles]
            name = f"**{item.name}**" if item.name == "Serinus" else item.name
            rows.append(f"| {name} | {' | '.join(cells)} |")
        parts.append("\n".join(rows))
    return "\n\n".join([*parts, f"{runs} runs each, seed {SEED}."])


def _cell(seconds: np.ndarray, *, is_equal: bool) -> str:
    share = 100 * np.isfinite(seconds).mean()
    if is_equal:
        return f"{share:.3g} %"
    median = np.median(seconds)
    return f"{share:.3g} %, {median:.0f} s" if np.isfinite(median) else f"{share:.3g} %"


def passing(runs: int) -> str:
    """How soon an equal canary passes."""
    settings = defaults("error_rate", "slow_p50", "slow_p95", "slow_p99")
    rows = ["| An equal canary passes | half of all by | nine in ten by |", "|---|---|---|"]
    for title, scenario, seconds in PASSES:
        course = watched(simulated(scenario, runs, seconds, SEED), settings, share=scenario.share)
        half, most = (np.quantile(course.passed_s, q, method="higher") for q in (0.5, 0.9))
        rows.append(f"| {title} | {_minutes(half, seconds)} | {_minutes(most, seconds)} |")
    return "\n".join([*rows, "", f"{runs} runs each, seed {SEED}, 0.5 % errors where nothing else is said."])


def _minutes(seconds: float, most: float) -> str:
    if not np.isfinite(seconds):
        return f"over {most / 60:.0f} min"
    return f"{seconds:.0f} s" if seconds < 300 else f"{seconds / 60:.0f} min"


def plot(found: Found) -> str:
    """The share of runs rolled back by each second, one panel per kind of traffic, as SVG."""
    width, height, pad = 340, 190, 46
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * (width + pad) + 20} {2 * (height + pad) + 90}">',
        '<g font-family="sans-serif" font-size="11" fill="#333">',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for place, title in enumerate(PANELS):
        left, top = pad + place % 2 * (width + pad), 26 + place // 2 * (height + pad)
        parts.append(_panel(found, title, (left, top), (width, height)))
    for place, item in enumerate(JUDGES):
        x, y = pad + place % 2 * (width + pad), 2 * (height + pad) + 36 + place // 2 * 17
        parts.append(
            f'<line x1="{x}" x2="{x + 22}" y1="{y}" y2="{y}" {_stroke(place)}/>'
            f'<text x="{x + 28}" y="{y + 4}">{item.name}</text>'
        )
    return "\n".join([*parts, "</g></svg>\n"])


def _panel(found: Found, title: str, corner: tuple[int, int], size: tuple[int, int]) -> str:
    (left, top), (width, height) = corner, size
    most_s = HALF_AN_HOUR if title.startswith("equal") else 600
    parts = [
        f'<text x="{left}" y="{top - 8}" font-weight="bold">{title}: share of runs rolled back</text>',
        f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#bbb"/>',
    ]
    for part in (0, 0.5, 1):
        y = top + height * (1 - part)
        parts.append(f'<text x="{left - 5}" y="{y + 4:.0f}" text-anchor="end">{100 * part:.0f} %</text>')
        at_s = most_s * part
        parts.append(
            f'<text x="{left + width * part:.0f}" y="{top + height + 14}" text-anchor="middle">{at_s:.0f} s</text>'
        )
    for place, item in enumerate(JUDGES):
        seconds = np.sort(found[item.name, title])
        points, share = [f"{left},{top + height}"], 0.0
        for at in sorted({float(x) for x in seconds if x <= most_s}):
            x = left + width * at / most_s
            points.append(f"{x:.1f},{top + height * (1 - share):.1f}")
            share = float((seconds <= at).mean())
            points.append(f"{x:.1f},{top + height * (1 - share):.1f}")
        points.append(f"{left + width},{top + height * (1 - share):.1f}")
        parts.append(f'<polyline points="{" ".join(points)}" fill="none" {_stroke(place)}/>')
    return "\n".join(parts)


def _stroke(place: int) -> str:
    return f'stroke="{COLOURS[place]}" stroke-width="{3 if place == len(JUDGES) - 1 else 1.4}"'


def cost() -> str:
    """Milliseconds of processor time of one look back over half an hour: depends on the machine, so only printed."""
    arms = simulated(replace(Scenario(), canary_errors=0.006), 1, HALF_AN_HOUR, SEED)
    bins = [arm.bins(0, HALF_AN_HOUR) for arm in arms]
    told = []
    for span_s in (1, 10):
        coarse = [coarsened(arm, span_s) for arm in bins]
        begun = time.process_time()
        for _ in range(5):
            judge(*coarse, JudgeSettings(), now_unix_s=START_UNIX_S + HALF_AN_HOUR, expected_share=0.1)
        told.append(f"{200 * (time.process_time() - begun):.0f} ms with bins of {span_s} s")
    return ", ".join(told)


def replaced(page: str, name: str, text: str) -> str:
    """`page` with what lies between the marks of `name` replaced."""
    begin, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
    before, rest = page.split(begin)
    return before + begin + text + end + rest.split(end)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="rewrite docs/rollouts.md and docs/img/judge.svg")
    parser.add_argument("--runs", type=int, default=400)
    asked = parser.parse_args()
    found = measured(asked.runs)
    tables = {"judges": comparison(found, asked.runs), "passing": passing(max(1, asked.runs // 2))}
    print("\n\n".join(tables.values()))
    print(f"\nOne look back over half an hour: {cost()}.")
    if asked.write:
        page = PAGE.read_text()
        for name, text in tables.items():
            page = replaced(page, name, text)
        PAGE.write_text(page)
        PLOT.parent.mkdir(exist_ok=True)
        PLOT.write_text(plot(found))


if __name__ == "__main__":
    main()
