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
# Events of an arm's own from which on its own spread is believed.
OWN_EVENTS = 5
# Spans within a unit in which a failing batch may answer.
FINE_S = (1, 5)
# Normal quantile from which values are said to fail together: 0.975.
SURE = 1.96


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
    units = units_of(treated, control, unit_s)
    used = [unit for unit in units if unit.n and (unit.control_n or metric in PAIRED)]
    if not used:
        return None
    n, total = sum(unit.n for unit in used), sum(unit.total for unit in used)
    expected = sum(unit.n * unit.mean for unit in used)
    leverage = sum(unit.n * unit.n / unit.control_n for unit in used if unit.control_n)
    spread, stable_spread = spreads(treated, control, units, unit_s)
    contrast = Contrast(n, total, expected, leverage, _ratio([*treated, *control]), spread, stable_spread)
    before, after = expected / n, total / n
    if is_decrease:
        before, after = 1 - before, 1 - after
    return Sums(contrast, None if metric in PAIRED else before, after, len(used))


@dataclass(slots=True)
class Unit:
    """A span of time: the canary's values and their sum, stable's. first, last: its spans of unit_s."""

    first: int
    last: int
    n: float = 0.0
    total: float = 0.0
    control_n: float = 0.0
    control_total: float = 0.0

    @property
    def mean(self) -> float:
        """Stable's mean (0 without values)."""
        return self.control_total / self.control_n if self.control_n else 0.0

    def lacks_control(self) -> bool:
        """Whether stable's values are too few for a mean that the canary's can be held against."""
        return self.control_n < max(10.0, self.n / 4)

    def add(self, other: Unit) -> None:
        """Take the next unit in."""
        self.last = other.last
        self.n += other.n
        self.total += other.total
        self.control_n += other.control_n
        self.control_total += other.control_total


def units_of(treated: Sequence[Row], control: Sequence[Row], unit_s: int) -> list[Unit]:
    """Units of `unit_s` seconds, oldest first, joined with the next where stable has too few values in one."""
    spans: dict[int, Unit] = {}
    for at, n, total, _ in treated:
        unit = spans.setdefault(at // unit_s, Unit(at // unit_s, at // unit_s))
        unit.n += n
        unit.total += total
    for at, n, total, _ in control:
        unit = spans.setdefault(at // unit_s, Unit(at // unit_s, at // unit_s))
        unit.control_n += n
        unit.control_total += total
    ordered = [spans[key] for key in sorted(spans)]
    if not control:
        return ordered
    joined: list[Unit] = []
    for unit in ordered:
        if joined and joined[-1].lacks_control():
            joined[-1].add(unit)
        else:
            joined.append(unit)
    if len(joined) > 1 and joined[-1].lacks_control():
        last = joined.pop()
        joined[-1].add(last)
    return joined


def spreads(treated: Sequence[Row], control: Sequence[Row], units: Sequence[Unit], unit_s: int) -> tuple[float, float]:
    """The design effects of both arms: how many times the variance of independent values their sums have, >= 1.

    Cluster-robust variances around stable's mean of the same unit, so that what moves both arms inflates neither, with
    1 s, 5 s, one unit and three as clusters. Only when one span's lower confidence limit exceeds 1 are values taken to
    fail together; then the largest estimate of all counts, since a batch may lie across the border of a short span.
    An arm that has hardly failed yet borrows the other's.
    """
    index = {span: unit for unit in units for span in range(unit.first, unit.last + 1)}
    n, total, squares = _moments(treated)
    expected = sum(unit.n * unit.mean for unit in units)
    shift = (total - expected) / n
    residuals = [(at, index[at // unit_s], s - m * (index[at // unit_s].mean + shift)) for at, m, s, _ in treated]
    variance = squares / n - (total / n) ** 2
    fine = [_inflation(residuals, scale, n * variance) for scale in FINE_S]
    wide = n * variance + _control_variance(control, units)
    coarse = [_inflation(residuals, scale, wide, is_fine=False) for scale in (unit_s, 3 * unit_s)]
    own = _largest([*fine, *coarse])
    if not control:
        return own, 1.0
    own_residuals = [(at, index[at // unit_s], s - m * index[at // unit_s].mean) for at, m, s, _ in control]
    within = sum(row[3] for row in control) - sum(unit.control_total * unit.mean for unit in units)
    counted = sum(unit.control_n > 0 for unit in units)
    stable = _largest([_inflation(own_residuals, scale, within, estimated=counted) for scale in FINE_S])
    control_n, control_total, _ = _moments(control)
    return (
        max(own, _borrowed(stable, own, min(total, n - total))),
        max(stable, _borrowed(own, stable, min(control_total, control_n - control_total))),
    )


def _borrowed(other: float, own: float, events: float) -> float:
    return 1 + (other - 1) / (1 + events / own / OWN_EVENTS)


def _control_variance(control: Sequence[Row], units: Sequence[Unit]) -> float:
    if not control:
        return 0.0
    n, total, squares = _moments(control)
    leverage = sum(unit.n * unit.n / unit.control_n for unit in units if unit.control_n)
    return leverage * (squares / n - (total / n) ** 2)


def _largest(found: Sequence[tuple[float, float]]) -> float:
    if max(lowest for _, lowest in found) <= 1.0:
        return 1.0
    return max(1.0, *(factor for factor, _ in found))


def _inflation(
    residuals: Sequence[tuple[int, Unit, float]],
    scale_s: int,
    independent: float,
    *,
    estimated: int = 1,
    is_fine: bool = True,
) -> tuple[float, float]:
    """The factor over the variance of independent values with spans of `scale_s` as clusters, and its lower limit.

    estimated: how many means the residuals were taken around; is_fine: no span crosses the border of a unit.
    """
    sums: dict[tuple[int, int], float] = {}
    for at, unit, residual in residuals:
        key = (at // scale_s, unit.first if is_fine else 0)
        sums[key] = sums.get(key, 0.0) + residual
    freedom = len(sums) - estimated
    if freedom < 1 or independent <= 1e-9:
        return 0.0, 0.0
    factor = sum(r * r for r in sums.values()) / independent * len(sums) / freedom
    # Wilson and Hilferty's approximation of the chi-square's quantile.
    w = 2 / (9 * freedom)
    return factor, factor / (1 - w + SURE * math.sqrt(w)) ** 3


def _moments(rows: Sequence[Row]) -> tuple[float, float, float]:
    return sum(row[1] for row in rows), sum(row[2] for row in rows), sum(row[3] for row in rows)


def _ratio(rows: Sequence[Row]) -> float:
    n, total, squares = _moments(rows)
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
