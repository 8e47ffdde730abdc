"""The judge looking at many simulated runs at once: numpy adds up, the product's own sequences decide.

`contrasts` computes for all runs what `rollouts.contrasts.sums_of` computes for one; a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rollouts.contrasts import FINE_S, OWN_EVENTS, SLOW, SURE
from rollouts.findings import Rule
from rollouts.guardrails import Guardrail, JudgeSettings
from rollouts.sequences import Contrast
from tests.support.rollout_traffic import Arm

EVERY_S = 10
# Values, their sum, sum of squares; float (runs, seconds) or (runs, units).
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]
# The fields of Contrast, each float64 (runs,).
Columns = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Course:
    """When each run was failed and passed, in seconds, inf: never; float64 (runs,). Passing does not end a run."""

    failed_s: np.ndarray
    passed_s: np.ndarray


def watched(
    arms: tuple[Arm, Arm],
    settings: JudgeSettings,
    *,
    share: float,
    every_s: int = EVERY_S,
    is_passing: bool = True,
) -> Course:
    """Looks at every run each `every_s` seconds until it fails; is_passing: also whether it would pass."""
    runs, seconds = arms[1].requests.shape
    failed, passed = np.full(runs, np.inf), np.full(runs, np.inf)
    tables = {item.metric: Table(item.metric, *arms, settings) for item in settings.guardrails}
    for now_s in range(every_s, seconds + 1, every_s):
        is_safe = np.isinf(failed) & np.isinf(passed) & is_passing
        for guardrail in settings.guardrails:
            table = tables[guardrail.metric]
            table.look(now_s)
            for run in table.failing(guardrail, np.isinf(failed)):
                failed[run] = now_s
            is_safe = table.passing(guardrail, share, is_safe)
        passed[is_safe & np.isinf(failed)] = now_s
    return Course(failed, passed)


class Table:
    """One metric over all runs: sums per unit for everybody, spreads only for those whom they can matter to."""

    def __init__(self, metric: str, stable: Arm, canary: Arm, settings: JudgeSettings) -> None:
        self.settings, self.arms = settings, (canary, stable)
        start = np.argmax(canary.requests > 0, axis=1) + (settings.warmup_s if metric in SLOW else 0)
        self.counted = np.arange(canary.requests.shape[1])[None, :] >= start[:, None]
        self.level = settings.levels([item.metric for item in settings.guardrails]).get(metric, 0.0)
        self.quantile = SLOW[metric][1] if metric in SLOW else None
        names = ("requests", "errors") if self.quantile is None else ("requests", "latency", "beyond")
        self.units = [[self._per_unit(getattr(arm, name)) for name in names] for arm in self.arms]

    def look(self, now_s: int) -> None:
        """Add up the first `now_s` seconds, whole units."""
        self.now_s, units = now_s, now_s // self.settings.unit_s
        self.runs = np.arange(len(self.counted))
        if self.quantile is None:
            treated, control = ((n[:, :units], k[:, :units], k[:, :units]) for n, k in self.units)
        else:
            totals = self.units[1][1][:, :, :units].sum(axis=2, dtype=float)
            self.cut, self.part = _cut(totals, self.quantile)
            treated, control = (
                (n[:, :units], *self._slow(inside[:, :, :units], beyond[:, :, :units], self.runs))
                for n, inside, beyond in self.units
            )
        self.means, cheap = _cheap(treated, control)
        ones = np.ones(len(self.runs))
        self.columns: Columns = (*cheap, _ratio(treated, control), ones, ones)
        self.enough = cheap[0] >= self.settings.min_units

    def failing(self, guardrail: Guardrail, is_open: np.ndarray) -> list[int]:
        """The runs, of the open ones, that fail."""
        proven = guardrail.margin * self.settings.proof
        is_far = self.columns[1] - self.columns[2] > self.columns[0] * guardrail.margin
        runs = np.flatnonzero(is_open & self.enough & is_far & _may_fail(self.columns, proven, self.level))
        rule, columns = Rule(guardrail, self.settings, 0.0, self.level), self.exactly(runs)
        return [int(run) for i, run in enumerate(runs) if rule.fails(_contrast(columns, i))]

    def passing(self, guardrail: Guardrail, share: float, is_safe: np.ndarray) -> np.ndarray:
        """bool (runs,): of the safe ones, those whom this metric lets pass."""
        rule = Rule(guardrail, self.settings, self.settings.ceiling(guardrail, share), self.level)
        runs = np.flatnonzero(is_safe & self.enough)
        columns = self.exactly(runs)
        found = np.zeros(len(is_safe), dtype=bool)
        for i, run in enumerate(runs):
            found[run] = rule.passes(_contrast(columns, i))
        return found

    def exactly(self, runs: np.ndarray) -> Columns:
        """The contrasts of `runs` with their spreads."""
        columns = tuple(column[runs] for column in self.columns[:5])
        if not len(runs):
            return *columns, *columns[:2]
        treated, control = (self._rows(arm, runs) for arm in self.arms)
        return *columns, *_spreads(treated, control, self.means[runs], columns, self.settings.unit_s)

    def _per_unit(self, values: np.ndarray) -> np.ndarray:
        counted = self.counted if values.ndim == 2 else self.counted[:, None, :]
        starts = np.arange(0, values.shape[-1], self.settings.unit_s)
        return np.add.reduceat(values * counted, starts, axis=-1, dtype=np.float32)

    def _slow(self, inside: np.ndarray, beyond: np.ndarray, runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        every, cut, part = np.arange(len(inside)), self.cut[runs], self.part[runs, None]
        within, above = inside[every, cut].astype(float), beyond[every, cut].astype(float)
        return above + within * part, above + within * part**2

    def _rows(self, arm: Arm, runs: np.ndarray) -> Rows:
        counted = self.counted[runs, : self.now_s]
        requests = arm.requests[runs, : self.now_s] * counted.astype(float)
        if self.quantile is None:
            errors = arm.errors[runs, : self.now_s] * counted.astype(float)
            return requests, errors, errors
        cut, part = self.cut[runs], self.part[runs, None]
        inside = arm.latency[runs, cut, : self.now_s] * counted
        beyond = arm.beyond[runs, cut, : self.now_s] * counted
        return requests, beyond + inside * part, beyond + inside * part**2


def _cut(totals: np.ndarray, quantile: float) -> tuple[np.ndarray, np.ndarray]:
    """The bucket that holds stable's quantile and the part of it that is slow, each (runs,)."""
    above = totals.sum(axis=1, keepdims=True) - np.cumsum(totals, axis=1)
    wanted = (1 - quantile) * totals.sum(axis=1, keepdims=True)
    cut = np.maximum(0, totals.shape[1] - 1 - np.argmax((above + totals > wanted)[:, ::-1], axis=1))
    every = np.arange(len(totals))
    return cut, (wanted[:, 0] - above[every, cut]) / np.maximum(totals[every, cut], 1e-12)


def contrasts(metric: str, stable: Arm, canary: Arm, now_s: int, settings: JudgeSettings) -> Columns:
    """The fields of `Contrast`, each float64 (runs,), of the first `now_s` seconds."""
    table = Table(metric, stable, canary, settings)
    table.look(now_s)
    return table.exactly(np.arange(len(canary.requests)))


def _contrast(columns: Columns, run: int) -> Contrast:
    return Contrast(*(float(column[run]) for column in columns))


def _cheap(treated: Rows, control: Rows) -> tuple[np.ndarray, Columns]:
    counts, control_counts = treated[0], np.maximum(control[0], 1e-12)
    means = control[1] / control_counts
    n = np.maximum(counts.sum(axis=1), 1e-12)
    leverage = (counts * counts / control_counts * (counts > 0)).sum(axis=1)
    return means, (n, treated[1].sum(axis=1), (counts * means).sum(axis=1), leverage)


def _may_fail(columns: Columns, margin: float, level: float) -> np.ndarray:
    """Where the evidence can reach `level` at all: it is at most surplus^2 / (2 variance of the canary's part)."""
    n, total, expected, leverage, ratio, _, _ = columns
    surplus = total - expected - n * margin
    seen = n * n / np.maximum(leverage, 1e-12)
    mean = (expected / n * seen + np.maximum(0, total - n * margin) + 0.5) / (seen + n)
    null = np.clip(np.clip(mean, 0, 1) + margin, 0, 1)
    return (surplus > 0) & (surplus**2 >= 2 * level * n * ratio * null * (1 - null))


def _spreads(
    treated: Rows, control: Rows, means: np.ndarray, columns: Columns, unit_s: int
) -> tuple[np.ndarray, np.ndarray]:
    n, total, expected, leverage = columns[:4]
    local = np.repeat(means, unit_s, axis=1)[:, : treated[0].shape[1]]
    shift = ((total - expected) / n)[:, None]
    residuals = treated[1] - treated[0] * (local + shift)
    variance = treated[2].sum(axis=1) / n - (total / n) ** 2
    control_n = np.maximum(control[0].sum(axis=1), 1e-12)
    control_variance = control[2].sum(axis=1) / control_n - (control[1].sum(axis=1) / control_n) ** 2
    one = np.ones(len(n))
    fine = [_inflation(residuals, treated[0], scale, n * variance, one) for scale in FINE_S]
    wide = n * variance + leverage * control_variance
    coarse = [_inflation(residuals, treated[0], scale, wide, one) for scale in (unit_s, 3 * unit_s)]
    own = _largest([*fine, *coarse])
    within = control[2].sum(axis=1) - (_grouped(control[1], unit_s) * means).sum(axis=1)
    counted = (_grouped(control[0], unit_s) > 0).sum(axis=1)
    around = control[1] - control[0] * local
    stable = _largest([_inflation(around, control[0], scale, within, counted) for scale in FINE_S])
    events = np.minimum(total, n - total)
    control_total = control[1].sum(axis=1)
    control_events = np.minimum(control_total, control[0].sum(axis=1) - control_total)
    return (
        np.maximum(own, 1 + (stable - 1) / (1 + events / own / OWN_EVENTS)),
        np.maximum(stable, 1 + (own - 1) / (1 + control_events / stable / OWN_EVENTS)),
    )


def _grouped(values: np.ndarray, scale_s: int) -> np.ndarray:
    return np.add.reduceat(values, np.arange(0, values.shape[1], scale_s), axis=1) if scale_s > 1 else values


def _largest(found: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    factor = np.max([factor for factor, _ in found], axis=0)
    lowest = np.max([lowest for _, lowest in found], axis=0)
    return np.where(lowest > 1.0, np.maximum(factor, 1.0), 1.0)


def _inflation(
    residuals: np.ndarray, counts: np.ndarray, scale_s: int, independent: np.ndarray, estimated: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    sums = _grouped(residuals, scale_s)
    groups = (_grouped(counts, scale_s) > 0).sum(axis=1)
    freedom = np.maximum(groups - estimated, 1e-9)
    factor = (sums**2).sum(axis=1) / np.maximum(independent, 1e-12) * groups / freedom
    factor = np.where((freedom >= 1) & (independent > 1e-9), factor, 0.0)
    w = 2 / (9 * freedom)
    return factor, factor / (1 - w + SURE * np.sqrt(w)) ** 3


def _ratio(treated: Rows, control: Rows) -> np.ndarray:
    n, total, squares = (a.sum(axis=1) + b.sum(axis=1) for a, b in zip(treated, control, strict=True))
    mean = total / np.maximum(n, 1)
    widest = mean * (1 - mean)
    found = (squares / np.maximum(n, 1) - mean * mean) / np.maximum(widest, 1e-12)
    return np.where(widest > 1e-9, np.clip(found, 1e-4, 1.0), 1.0)
