"""Other judges over the same simulated traffic, in the shape that rollout controllers are run with by default.

None is the product's code of anybody: each is a rule described by its public documentation, reduced to what it decides.
Every rule gives the second at which each run is rolled back (inf: never), for errors and for latency apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from inference.protocol.samples import LATENCY_EDGES_MS
from rollouts.guardrails import DEFAULT_GUARDRAILS, JudgeSettings
from tests.support.rollout_looks import watched
from tests.support.rollout_traffic import Arm

Arms = tuple[Arm, Arm]
MINUTE_S = 60
ERROR_LIMIT = 0.01
SLOWER_LIMIT = 1.2
KAYENTA_Z = 2.326
KAYENTA_TOLERANCE = 0.25
KAYENTA_MINUTES = 5
# What the product splits alpha over where no tokens are streamed.
JUDGED = ("error_rate", "refusal_rate", "invalid_rate", "slow_p50", "slow_p95", "slow_p99")


@dataclass(frozen=True)
class Judge:
    """A name, and when each run is rolled back: float64 (runs,)."""

    name: str
    errors: Callable[[Arms], np.ndarray]
    latency: Callable[[Arms], np.ndarray]


class Settings(JudgeSettings):
    """The defaults with fewer metrics, at the levels that each has among all of them."""

    __slots__ = ()

    def levels(self, metrics: object) -> dict[str, float]:
        return JudgeSettings().levels(JUDGED)


def defaults(*metrics: str) -> Settings:
    """The product's defaults restricted to `metrics`."""
    return Settings(guardrails=tuple(item for item in DEFAULT_GUARDRAILS if item.metric in metrics))


def ours(*metrics: str) -> Callable[[Arms], np.ndarray]:
    """The product's judge with its defaults, `metrics` of them."""
    return lambda arms: watched(arms, defaults(*metrics), share=0.1, is_passing=False).failed_s


def _per_minute(values: np.ndarray) -> np.ndarray:
    return np.add.reduceat(values, np.arange(0, values.shape[-1], MINUTE_S), axis=-1, dtype=np.int64)


def _error_rates(arm: Arm) -> np.ndarray:
    requests, errors = _per_minute(arm.requests), _per_minute(arm.errors)
    return np.where(requests > 0, errors / np.maximum(requests, 1), np.nan)


def _quantiles(arm: Arm, quantile: float) -> np.ndarray:
    """Of each minute, in ms, by linear interpolation inside a bucket: float64 (runs, minutes)."""
    counts = _per_minute(arm.latency)
    seen = np.cumsum(counts, axis=1)
    wanted = quantile * seen[:, -1:, :]
    bucket = np.argmax(seen >= wanted, axis=1)[:, None, :]
    here = np.maximum(np.take_along_axis(counts, bucket, axis=1), 1)
    edges = np.array([0.0, *LATENCY_EDGES_MS, LATENCY_EDGES_MS[-1]])
    low, high = edges[bucket + arm.first_bucket], edges[bucket + arm.first_bucket + 1]
    found = low + (high - low) * (1 - (np.take_along_axis(seen, bucket, axis=1) - wanted) / here)
    return np.where(seen[:, -1, :] > 0, found[:, 0, :], np.nan)


def _first(is_hit: np.ndarray, step_s: int = MINUTE_S) -> np.ndarray:
    return np.where(is_hit.any(axis=1), (np.argmax(is_hit, axis=1) + 1.0) * step_s, np.inf)


def _error_checks(arms: Arms) -> np.ndarray:
    return np.nan_to_num(_error_rates(arms[1])) > ERROR_LIMIT


def _latency_checks(arms: Arms) -> np.ndarray:
    stable, canary = (_quantiles(arm, 0.99) for arm in arms)
    return np.nan_to_num(canary) > SLOWER_LIMIT * np.nan_to_num(stable, nan=np.inf)


def _in_total(checks: np.ndarray, limit: int) -> np.ndarray:
    return _first(np.cumsum(checks, axis=1) >= limit)


def _in_a_row(checks: np.ndarray, limit: int) -> np.ndarray:
    run = checks.copy()
    for back in range(1, limit):
        run[:, back:] &= checks[:, :-back]
        run[:, :back] = False
    return _first(run)


def _z_test(arms: Arms) -> np.ndarray:
    """Two proportions at level 0.01, one-sided, at every look of 10 s from 150 canary requests on."""
    (n_s, k_s), (n_c, k_c) = (
        [np.cumsum(x, axis=1)[:, 9::10].astype(float) for x in (arm.requests, arm.errors)] for arm in arms
    )
    return _first(_z(n_s, k_s, n_c, k_c) & (n_c >= 150), 10)


def _z_latency(arms: Arms) -> np.ndarray:
    """The same of the requests above stable's 95th percentile over the whole run."""
    stable = arms[0].latency.sum(axis=2, dtype=np.int64)
    above = stable[:, ::-1].cumsum(axis=1)[:, ::-1] - stable
    cut = np.argmax(above <= 0.05 * stable.sum(axis=1, keepdims=True), axis=1)
    every = np.arange(len(cut))
    sums = []
    for arm in arms:
        sums += [np.cumsum(x, axis=1)[:, 9::10].astype(float) for x in (arm.requests, arm.beyond[every, cut])]
    n_s, k_s, n_c, k_c = sums
    return _first(_z(n_s, k_s, n_c, k_c) & (n_c >= 150), 10)


def _z(n_s: np.ndarray, k_s: np.ndarray, n_c: np.ndarray, k_c: np.ndarray) -> np.ndarray:
    n_s, n_c = np.maximum(n_s, 1), np.maximum(n_c, 1)
    pooled = (k_s + k_c) / (n_s + n_c)
    deviation = np.sqrt(np.maximum(pooled * (1 - pooled) * (1 / n_s + 1 / n_c), 1e-12))
    return (k_c / n_c - k_s / n_s) / deviation > 2.326


def _kayenta(stable: np.ndarray, canary: np.ndarray) -> np.ndarray:
    """Mann and Whitney's test on minutes: the shift's lower confidence limit beyond a quarter of its estimate."""
    rng = np.random.default_rng(0)
    runs, minutes = stable.shape
    noisy = [np.nan_to_num(x) + rng.normal(0, 1e-5, x.shape) for x in (stable, canary)]
    hits = np.zeros((runs, minutes), dtype=bool)
    for minute in range(KAYENTA_MINUTES, minutes + 1):
        shifts = np.sort(
            (noisy[1][:, :minute, None] - noisy[0][:, None, :minute]).reshape(runs, minute * minute), axis=1
        )
        rank = int(minute**2 / 2 - KAYENTA_Z * np.sqrt(minute**2 * (2 * minute + 1) / 12))
        if rank >= 0:
            estimate = np.median(shifts, axis=1)
            hits[:, minute - 1] = shifts[:, rank] > KAYENTA_TOLERANCE * np.abs(estimate)
    return _first(hits)


JUDGES: tuple[Judge, ...] = (
    Judge(
        "Flagger-like: one check a minute, 1 failure",
        lambda arms: _in_total(_error_checks(arms), 1),
        lambda arms: _in_total(_latency_checks(arms), 1),
    ),
    Judge(
        "Argo-like: one check a minute, 3 failures in all",
        lambda arms: _in_total(_error_checks(arms), 3),
        lambda arms: _in_total(_latency_checks(arms), 3),
    ),
    Judge(
        "Argo-like: 3 failures in a row",
        lambda arms: _in_a_row(_error_checks(arms), 3),
        lambda arms: _in_a_row(_latency_checks(arms), 3),
    ),
    Judge("z-test at every look, level 0.01", _z_test, _z_latency),
    Judge(
        "Kayenta-like: Mann-Whitney, 0.98, from 5 min",
        lambda arms: _kayenta(*(_error_rates(arm) for arm in arms)),
        lambda arms: _kayenta(*(_quantiles(arm, 0.95) for arm in arms)),
    ),
    Judge("Serinus", ours("error_rate"), ours("slow_p50", "slow_p95", "slow_p99")),
)
