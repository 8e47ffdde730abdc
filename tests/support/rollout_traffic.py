"""Simulated traffic of a rollout: per-second sums of both arms over many runs at once, seeded, no clock."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from inference.protocol.samples import LATENCY_EDGES_MS
from rollouts.bins import Bin

START_UNIX_S = 1_800_000_000
MEDIAN_MS = 20.0


@dataclass(frozen=True)
class Shape:
    """A latency distribution: a lognormal body and stragglers `tail_factor` times slower, all times `factor`."""

    sigma: float = 0.4
    tail: float = 0.03
    tail_factor: float = 4.0
    factor: float = 1.0

    def chances(self) -> np.ndarray:
        """Of each histogram bucket: float64 (buckets,)."""

        def below(edge: float, median: float) -> float:
            return 0.5 * (1 + math.erf(math.log(edge / median) / (self.sigma * math.sqrt(2))))

        median = MEDIAN_MS * self.factor
        cumulative = [
            (1 - self.tail) * below(edge, median) + self.tail * below(edge, median * self.tail_factor)
            for edge in LATENCY_EDGES_MS
        ]
        return np.diff(np.array([0.0, *cumulative, 1.0]))


@dataclass(frozen=True)
class Scenario:
    """One kind of traffic: requests per second of both arms together, the canary's share, what differs.

    batch: so many requests in a row share one fate; at_once: and answer in the same second. slow_batches: a batch has
    one latency too. sway: standard deviation of a slow wave in the log of both arms' latency. is_timed: False leaves latency out.
    """

    per_second: float = 50.0
    share: float = 0.1
    stable_errors: float = 0.005
    canary_errors: float = 0.005
    batch: int = 1
    at_once: bool = False
    slow_batches: bool = False
    shape: Shape = Shape()
    slower: float = 1.0
    sway: float = 0.0
    is_timed: bool = True


@dataclass(frozen=True)
class Arm:
    """requests, errors: int64 (runs, seconds); latency: int16 (runs, buckets from `first_bucket`, seconds)."""

    requests: np.ndarray
    errors: np.ndarray
    latency: np.ndarray
    first_bucket: int

    @cached_property
    def beyond(self) -> np.ndarray:
        """Requests in higher buckets than each: int16 (runs, buckets, seconds)."""
        upwards = np.cumsum(self.latency[:, ::-1], axis=1, dtype=np.int16)[:, ::-1]
        return np.ascontiguousarray(upwards - self.latency)

    def bins(self, run: int, seconds: int, since: int = 0) -> list[Bin]:
        """One run's first `seconds`, from `since` on, as the judge reads them; those without requests left out."""
        found = []
        for second in range(since, seconds):
            if self.requests[run, second]:
                row = self.latency[run, :, second]
                counts = {int(i) + self.first_bucket: int(row[i]) for i in np.flatnonzero(row)}
                found.append(
                    Bin(
                        START_UNIX_S + second,
                        requests=int(self.requests[run, second]),
                        drawn=int(self.requests[run, second]),
                        errors=int(self.errors[run, second]),
                        latency=counts,
                    )
                )
        return found


def simulated(scenario: Scenario, runs: int, seconds: int, seed: int) -> tuple[Arm, Arm]:
    """Stable and canary over `runs` independent runs of `seconds`."""
    rng = np.random.default_rng(seed)
    canary = replace(scenario.shape, factor=scenario.slower)
    chances = scenario.shape.chances(), canary.chances()
    used = np.flatnonzero(np.maximum(*chances) > 1e-7)
    if scenario.sway:
        used = np.arange(max(0, used[0] - 6), min(len(chances[0]), used[-1] + 7))
    first, last = int(used[0]), int(used[-1])
    sway = _sway(rng, runs, seconds, scenario.sway) if scenario.sway else None
    rates = scenario.per_second * (1 - scenario.share), scenario.per_second * scenario.share
    arms = []
    for rate, errors, chance in zip(rates, (scenario.stable_errors, scenario.canary_errors), chances, strict=True):
        requests = rng.poisson(rate, (runs, seconds))
        if scenario.batch > 1 and scenario.at_once:
            requests = rng.poisson(rate / scenario.batch, (runs, seconds)) * scenario.batch
        failed = _failed(rng, requests, errors, scenario.batch)
        if not scenario.is_timed:
            arms.append(Arm(requests, failed, requests.astype(np.int16)[:, None, :], first))
            continue
        kept = chance[first : last + 1] / chance[first : last + 1].sum()
        latency = _latency(rng, requests, kept, scenario.batch if scenario.slow_batches else 1)
        if sway is not None:
            latency = _shifted(latency, sway)
        arms.append(Arm(requests, failed, np.ascontiguousarray(latency.transpose(0, 2, 1)), first))
    return arms[0], arms[1]


def _failed(rng: np.random.Generator, requests: np.ndarray, rate: float, batch: int) -> np.ndarray:
    if batch == 1:
        return rng.binomial(requests, rate)
    ends = np.cumsum(requests, axis=1)
    fate = rng.random((len(requests), int(ends.max()) // batch + 1)) < rate
    return _members(ends, fate, batch)


def _members(ends: np.ndarray, fate: np.ndarray, batch: int) -> np.ndarray:
    """How many of each second's requests belong to batches with `fate`."""
    whole = np.concatenate([np.zeros((len(fate), 1), dtype=np.int64), np.cumsum(fate, axis=1)], axis=1)
    group = ends // batch
    own = np.take_along_axis(fate, np.minimum(group, fate.shape[1] - 1), axis=1)
    until = batch * np.take_along_axis(whole, group, axis=1) + own * (ends % batch)
    return np.diff(until, axis=1, prepend=0)


def _latency(rng: np.random.Generator, requests: np.ndarray, chance: np.ndarray, batch: int) -> np.ndarray:
    if batch == 1:
        return rng.multinomial(requests, chance).astype(np.int16)
    ends = np.cumsum(requests, axis=1)
    bucket = rng.choice(len(chance), p=chance, size=(len(requests), int(ends.max()) // batch + 1))
    counts = [_members(ends, bucket == i, batch) for i in range(len(chance))]
    return np.stack(counts, axis=2).astype(np.int16)


def _sway(rng: np.random.Generator, runs: int, seconds: int, deviation: float) -> np.ndarray:
    """A wave of whole buckets, the same for both arms: minutes long."""
    steps = rng.normal(0, deviation * math.sqrt(2 / 60), (runs, seconds))
    wave = np.zeros((runs, seconds))
    for second in range(1, seconds):
        wave[:, second] = wave[:, second - 1] * (1 - 1 / 60) + steps[:, second]
    return np.clip(np.rint(wave / math.log(1.25)), -5, 5).astype(np.int64)


def _shifted(latency: np.ndarray, buckets: np.ndarray) -> np.ndarray:
    width = latency.shape[2]
    source = np.arange(width)[None, None, :] - buckets[:, :, None]
    taken = np.take_along_axis(latency, np.clip(source, 0, width - 1), axis=2)
    return np.where((source >= 0) & (source < width), taken, 0)
