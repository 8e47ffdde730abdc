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
    safe = np.maximum(sn, 1e-12)
    n, total = treated[0].sum(axis=1), treated[1].sum(axis=1)
    scales = (1, 4, unit_s, 3 * unit_s)
    own, stable_spread = _spread(treated, scales), _spread(control, scales)
    events = np.minimum(total, n - total) / own
    borrowed = 1 + (_spread(control, (1,)) - 1) / (1 + events / OWN_EVENTS)
    return (
        n,
        total,
        (cn * st / safe).sum(axis=1),
        (cn * cn / safe * (cn > 0)).sum(axis=1),
        _ratio(treated, control),
        np.maximum(own, borrowed),
        stable_spread,
    )


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


def _spread(rows: Rows, scales_s: tuple[int, ...]) -> np.ndarray:
    n, total, squares = (x.sum(axis=1) for x in rows)
    mean = total / np.maximum(n, 1)
    independent = np.maximum(squares - total * mean, 0.0)
    residuals = rows[1] - rows[0] * mean[:, None]
    estimate, lowest = np.ones(len(n)), np.zeros(len(n))
    for scale_s in scales_s:
        grouped = _grouped(residuals, scale_s) if scale_s > 1 else residuals
        here = _grouped(rows[0], scale_s) if scale_s > 1 else rows[0]
        freedom = np.maximum((here > 0).sum(axis=1) - 1.0, 1e-9)
        w = 2 / (9 * freedom)
        factor = (grouped**2).sum(axis=1) * (freedom + 1) / freedom / np.maximum(independent, 1e-12)
        factor = np.where((freedom >= 1) & (independent > 1e-12), factor, 0.0)
        estimate = np.maximum(estimate, factor)
        lowest = np.maximum(lowest, factor / (1 - w + SURE * np.sqrt(w)) ** 3)
    return np.where(lowest > 1.0, estimate, 1.0)


def _ratio(treated: Rows, control: Rows) -> np.ndarray:
    n, total, squares = (a.sum(axis=1) + b.sum(axis=1) for a, b in zip(treated, control, strict=True))
    mean = total / np.maximum(n, 1)
    widest = mean * (1 - mean)
    found = (squares / np.maximum(n, 1) - mean * mean) / np.maximum(widest, 1e-12)
    return np.where(widest > 1e-9, np.clip(found, 1e-4, 1.0), 1.0)
