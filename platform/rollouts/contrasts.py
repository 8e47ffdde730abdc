"""From bins to one contrast per metric: bounded values, units of time, stable as the concurrent control.

Each metric is a mean of values in 0..1 per request. A slow-ratio's value is 1 above stable's own quantile and 0 below;
in the bucket that holds the quantile it is the fraction that makes stable's share exact. The difference is taken
inside units of time and weighted by the canary's requests, so that a bad hour of the whole endpoint, or a weight that
rises while load falls, blames nobody.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from inference.protocol.samples import LATENCY_EDGES_MS
from rollouts.bins import Bin, merged
from rollouts.sequences import Contrast

# (values, their sum, sum of squares) of one second or more.
Triple = tuple[float, float, float]
Row = tuple[int, float, float, float]
SLOW: dict[str, tuple[str, float]] = {
    "slow_p50": ("latency", 0.50),
    "slow_p95": ("latency", 0.95),
    "slow_p99": ("latency", 0.99),
    "first_token_p95": ("first", 0.95),
    "next_token_p95": ("next", 0.95),
    "queue_p95": ("queue", 0.95),
}
COUNTED: dict[str, Callable[[Bin], Triple]] = {
    "error_rate": lambda b: (b.requests, b.errors, b.errors),
    "refusal_rate": lambda b: (b.requests, b.refusals, b.refusals),
    "invalid_rate": lambda b: (b.requests, b.invalid, b.invalid),
    "drift_rate": lambda b: (b.compared, b.drifted, b.drifted),
    "drift": lambda b: (b.compared, b.drift_sum, b.drift_sq),
    "score": lambda b: (b.scores, b.score_sum, b.score_sq),
}
# A copy is compared with stable's answer: the distance is the difference already.
PAIRED = ("drift_rate", "drift")
# Events of the canary's own from which on its own spread is believed.
OWN_EVENTS = 5


@dataclass(frozen=True, slots=True)
class Sums:
    """One metric over both arms: the contrast, the means as they are (not turned to harm), how many units."""

    contrast: Contrast
    stable: float | None
    canary: float
    units: int


def sums_of(
    metric: str, stable: Sequence[Bin], canary: Sequence[Bin], *, unit_s: int, is_decrease: bool = False
) -> Sums | None:
    """One metric's sums over the same seconds of both arms, oldest first; None without values in both arms."""
    read = _reader(metric, stable, is_decrease=is_decrease)
    treated = _rows(canary, read)
    control = [] if metric in PAIRED else _rows(stable, read)
    n, total = sum(row[1] for row in treated), sum(row[2] for row in treated)
    if not n or (metric not in PAIRED and not control):
        return None
    if metric in PAIRED:
        units, expected, leverage = len({row[0] // unit_s for row in treated}), 0.0, 0.0
    else:
        n, total, expected, leverage, units = _matched(treated, control, unit_s)
        if not n:
            return None
    spread, stable_spread = _spreads(treated, control, unit_s)
    contrast = Contrast(n, total, expected, leverage, _ratio([*treated, *control]), spread, stable_spread)
    turn = (lambda mean: 1 - mean) if is_decrease else (lambda mean: mean)
    return Sums(contrast, None if metric in PAIRED else turn(expected / n), turn(total / n), units)


def spread_of(rows: Sequence[Row], scales_s: Sequence[int]) -> float:
    """The design effect: how many times the variance of independent values the sum over `rows` has, at least 1.

    Cluster-robust variance with spans of `scales_s` seconds as clusters, divided by the variance of as many independent
    values; of several spans the largest, each at the lower end of what its few units leave open.
    """
    n, total, squares = (sum(row[i] for row in rows) for i in (1, 2, 3))
    mean = total / n
    independent = squares - total * mean
    if independent <= 1e-12:
        return 1.0
    return max(1.0, *(_variance(rows, mean, scale) / independent for scale in scales_s))


def _variance(rows: Sequence[Row], mean: float, scale_s: int) -> float:
    residuals: dict[int, float] = {}
    for at, n, total, _ in rows:
        key = at // scale_s
        residuals[key] = residuals.get(key, 0.0) + total - n * mean
    freedom = len(residuals) - 1
    if freedom < 1:
        return 0.0
    # Wilson and Hilferty's approximation of the chi-square's 90th percentile.
    w = 2 / (9 * freedom)
    quantile = freedom * (1 - w + 1.2816 * math.sqrt(w)) ** 3
    return sum(r * r for r in residuals.values()) * (freedom + 1) / quantile


def _spreads(treated: Sequence[Row], control: Sequence[Row], unit_s: int) -> tuple[float, float]:
    scales = (1, 4, unit_s, 3 * unit_s)
    own = spread_of(treated, scales)
    if not control:
        return own, 1.0
    n, total = sum(row[1] for row in treated), sum(row[2] for row in treated)
    events = min(total, n - total) / own
    borrowed = 1 + (spread_of(control, (1,)) - 1) / (1 + events / OWN_EVENTS)
    return max(own, borrowed), spread_of(control, scales)


def _matched(treated: Sequence[Row], control: Sequence[Row], unit_s: int) -> tuple[float, float, float, float, int]:
    """n, total, expected, leverage over units of time, each with enough of stable's values to compare with."""
    units: dict[int, list[float]] = {}
    for offset, rows in ((0, treated), (2, control)):
        for at, n, total, _ in rows:
            sums = units.setdefault(at // unit_s, [0.0, 0.0, 0.0, 0.0])
            sums[offset] += n
            sums[offset + 1] += total
    closed: list[list[float]] = []
    for key in sorted(units):
        if closed and closed[-1][2] < max(10, closed[-1][0] / 4):
            closed[-1] = [a + b for a, b in zip(closed[-1], units[key], strict=True)]
        else:
            closed.append(units[key])
    if len(closed) > 1 and closed[-1][2] < max(10, closed[-1][0] / 4):
        last = closed.pop()
        closed[-1] = [a + b for a, b in zip(closed[-1], last, strict=True)]
    used = [unit for unit in closed if unit[0] and unit[2]]
    return (
        sum(u[0] for u in used),
        sum(u[1] for u in used),
        sum(u[0] * u[3] / u[2] for u in used),
        sum(u[0] * u[0] / u[2] for u in used),
        len(used),
    )


def _ratio(rows: Sequence[Row]) -> float:
    n, total, squares = (sum(row[i] for row in rows) for i in (1, 2, 3))
    mean = total / n
    widest = mean * (1 - mean)
    return 1.0 if widest <= 1e-9 else min(1.0, max(1e-4, (squares / n - mean * mean) / widest))


def _rows(bins: Iterable[Bin], read: Callable[[Bin], Triple]) -> list[Row]:
    return [(item.at_unix_s, *values) for item in bins if (values := read(item))[0]]


def _reader(metric: str, stable: Sequence[Bin], *, is_decrease: bool) -> Callable[[Bin], Triple]:
    read = _slow_reader(metric, stable) if metric in SLOW else COUNTED[metric]
    if not is_decrease:
        return read

    def turned(item: Bin) -> Triple:
        n, total, squares = read(item)
        return n, n - total, n - 2 * total + squares

    return turned


def _slow_reader(metric: str, stable: Sequence[Bin]) -> Callable[[Bin], Triple]:
    name, quantile = SLOW[metric]
    values = slow_values(merged(getattr(item, name) for item in stable), quantile)

    def read(item: Bin) -> Triple:
        counts = getattr(item, name)
        n = total = squares = 0.0
        for bucket, count in counts.items():
            value = values[bucket]
            n += count
            total += value * count
            squares += value * value * count
        return n, total, squares

    return read


def slow_values(counts: dict[int, int], quantile: float) -> list[float]:
    """Per bucket, how slow a request in it is (0..1), so that the mean over `counts` is 1 - quantile."""
    values = [0.0] * (len(LATENCY_EDGES_MS) + 1)
    wanted = (1 - quantile) * sum(counts.values())
    for bucket in range(len(values) - 1, -1, -1):
        count = counts.get(bucket, 0)
        if count > wanted:
            values[bucket] = wanted / count
            break
        values[bucket] = 1.0
        wanted -= count
    return values
