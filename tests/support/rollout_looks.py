"""The judge looking at many simulated runs at once: numpy adds up, the product's own sequences decide.

`contrasts` computes for all runs what `rollouts.contrasts.sums_of` computes for one; a test holds the two together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rollouts.contrasts import OWN_EVENTS, SLOW, SURE
from rollouts.guardrails import Guardrail, JudgeSettings
from rollouts.sequences import Contrast, better_evidence, worse_evidence
from tests.support.rollout_traffic import Arm

EVERY_S = 10
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


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
    stable, canary = arms
    runs, seconds = canary.requests.shape
    failed, passed = np.full(runs, np.inf), np.full(runs, np.inf)
    levels = settings.levels([item.metric for item in settings.guardrails])
    safe_bar = math.log(1 / settings.pass_alpha)
    for now_s in range(every_s, seconds + 1, every_s):
        is_open = np.isinf(failed)
        is_safe = is_open & np.isinf(passed) & is_passing
        for guardrail in settings.guardrails:
            columns = contrasts(guardrail.metric, stable, canary, now_s, settings)
            enough = columns[0] >= settings.min_units
            for run in np.flatnonzero(is_open & enough & _may_fail(columns, guardrail.margin, levels[guardrail.metric])):
                if worse_evidence(_contrast(columns, run), guardrail.margin) >= levels[guardrail.metric]:
                    failed[run] = min(failed[run], now_s)
            ceiling = settings.ceiling(guardrail, share)
            is_safe &= enough & np.isinf(failed)
            for run in np.flatnonzero(is_safe):
                is_safe[run] = better_evidence(_contrast(columns, run), ceiling, ceiling) >= safe_bar
        passed[is_safe] = now_s
    return Course(failed, passed)


def _contrast(columns: tuple[np.ndarray, ...], run: int) -> Contrast:
    return Contrast(*(float(column[run]) for column in columns))


def _may_fail(columns: tuple[np.ndarray, ...], margin: float, level: float) -> np.ndarray:
    """Where the evidence can reach `level` at all: it is at most surplus^2 / (2 variance of the canary's part)."""
    n, total, expected, leverage, ratio, spread, _ = columns
    surplus = total - expected - n * margin
    seen = n * n / np.maximum(leverage, 1e-12)
    mean = (expected / np.maximum(n, 1) * seen + np.maximum(0, total - n * margin) + 0.5) / (seen + n + 1e-12)
    null = np.clip(np.clip(mean, 0, 1) + margin, 0, 1)
    variance = n * ratio * null * (1 - null) * spread
    return (surplus > 0) & (surplus**2 >= 2 * level * np.maximum(variance, 0))


def contrasts(
    metric: str, stable: Arm, canary: Arm, now_s: int, settings: JudgeSettings
) -> tuple[np.ndarray, ...]:
    """The fields of `Contrast`, each float64 (runs,), of the first `now_s` seconds."""
    start = np.argmax(canary.requests > 0, axis=1) + (settings.warmup_s if metric in SLOW else 0)
    counted = np.arange(now_s)[None, :] >= start[:, None]
    if metric in SLOW:
        treated, control = _slow(stable, canary, counted, SLOW[metric][1])
    else:
        treated, control = (_errors(arm, counted) for arm in (canary, stable))
    unit_s = settings.unit_s
    cn, ct = (_grouped(x, unit_s) for x in treated[:2])
    sn, st = (_grouped(x, unit_s) for x in control[:2])
    means = st / np.maximum(sn, 1e-12)
    n, total = np.maximum(treated[0].sum(axis=1), 1e-12), treated[1].sum(axis=1)
    expected = (cn * means).sum(axis=1)
    leverage = (cn * cn / np.maximum(sn, 1e-12) * (cn > 0)).sum(axis=1)
    own, stable_spread = _spreads(treated, control, means, (n, total, expected, leverage), unit_s)
    return n, total, expected, leverage, _ratio(treated, control), own, stable_spread


def _spreads(
    treated: Rows,
    control: Rows,
    means: np.ndarray,
    sums: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    unit_s: int,
) -> tuple[np.ndarray, np.ndarray]:
    n, total, expected, leverage = sums
    local = np.repeat(means, unit_s, axis=1)[:, : treated[0].shape[1]]
    shift = ((total - expected) / n)[:, None]
    residuals = treated[1] - treated[0] * (local + shift)
    variance = treated[2].sum(axis=1) / n - (total / n) ** 2
    control_n = np.maximum(control[0].sum(axis=1), 1e-12)
    control_variance = control[2].sum(axis=1) / control_n - (control[1].sum(axis=1) / control_n) ** 2
    one = np.ones(len(n))
    fine = [_inflation(residuals, treated[0], scale, n * variance, one) for scale in (1, 5)]
    wide = n * variance + leverage * control_variance
    coarse = [_inflation(residuals, treated[0], scale, wide, one) for scale in (unit_s, 3 * unit_s)]
    own = _largest([*fine, *coarse])
    spans = _grouped(control[0], unit_s)
    within = control[2].sum(axis=1) - (_grouped(control[1], unit_s) * means).sum(axis=1)
    counted = (spans > 0).sum(axis=1)
    around = control[1] - control[0] * local
    stable = _largest([_inflation(around, control[0], scale, within, counted) for scale in (1, 5)])
    borrowed = 1 + (stable - 1) / (1 + np.minimum(total, n - total) / own / OWN_EVENTS)
    return np.maximum(own, borrowed), stable


def _errors(arm: Arm, counted: np.ndarray) -> Rows:
    now_s = counted.shape[1]
    errors = arm.errors[:, :now_s] * counted
    return (arm.requests[:, :now_s] * counted).astype(float), errors.astype(float), errors.astype(float)


def _slow(stable: Arm, canary: Arm, counted: np.ndarray, quantile: float) -> tuple[Rows, Rows]:
    now_s = counted.shape[1]
    totals = np.einsum("rsb,rs->rb", stable.latency[:, :now_s], counted, dtype=np.float64)
    above = totals.sum(axis=1, keepdims=True) - np.cumsum(totals, axis=1)
    wanted = (1 - quantile) * totals.sum(axis=1, keepdims=True)
    values = np.clip((wanted - above) / np.maximum(totals, 1e-12), 0.0, 1.0) * (above <= wanted)
    values[(totals == 0) & (above < wanted)] = 1.0
    both = np.stack([values, values * values], axis=2).astype(np.float32)

    def rows(arm: Arm) -> Rows:
        sums = np.matmul(arm.latency[:, :now_s].astype(np.float32), both) * counted[:, :, None]
        return (
            (arm.requests[:, :now_s] * counted).astype(float),
            sums[:, :, 0].astype(float),
            sums[:, :, 1].astype(float),
        )

    return rows(canary), rows(stable)


def _grouped(values: np.ndarray, scale_s: int) -> np.ndarray:
    return np.add.reduceat(values, np.arange(0, values.shape[1], scale_s), axis=1)


def _largest(found: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    factor = np.max([factor for factor, _ in found], axis=0)
    lowest = np.max([lowest for _, lowest in found], axis=0)
    return np.where(lowest > 1.0, np.maximum(factor, 1.0), 1.0)


def _inflation(
    residuals: np.ndarray, counts: np.ndarray, scale_s: int, independent: np.ndarray, estimated: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    sums = _grouped(residuals, scale_s) if scale_s > 1 else residuals
    groups = ((_grouped(counts, scale_s) if scale_s > 1 else counts) > 0).sum(axis=1)
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
