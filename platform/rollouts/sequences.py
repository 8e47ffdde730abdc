"""Confidence sequences for the difference of two means of values in 0..1: valid however often one looks.

The law: evidence is a mixture of exponential supermartingales. For every tilt `l` of a fixed grid

    exp(l S - K_canary(l) - K_stable(l)),   S = sum(canary) - canary's requests x (stable's mean + d)

has mean <= 1 while the true difference is d, where K are cumulants of the Poisson kind (Bennett's inequality), at the
variance that the hypothesis implies; by Ville's inequality the mixture ever exceeds 1 / alpha with chance alpha at most.
Sources: Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon 2021 (sub-Poisson mixtures); the plug-in of stable's mean
and of the variance makes it asymptotic in the sense of Waudby-Smith et al. 2021. Requests that fail together count as
one: `spread` is the design effect, the factor by which the sum's variance exceeds that of independent requests, and
also the size of the jumps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

# From rare events that became many (the mean times e^1.7) down to small shifts of common ones.
TILTS = (1.7, 1.2, 0.85, 0.6, 0.4, 0.2, 0.08, 0.02)
FOCUS = 0.6
_LOG_TILT = -math.log(len(TILTS))


@dataclass(frozen=True, slots=True)
class Contrast:
    """Sums of one metric over both arms; harm counts upwards.

    n: canary's values; total: their sum; expected: what the sum would be at stable's concurrent mean; leverage: sum
    over units of n_canary^2 / n_stable (variance of `expected` in values; 0: nothing was estimated); ratio: the values'
    variance over that of yes-or-no values of the same mean (0..1); spread, stable_spread: design effects, >= 1.
    """

    n: float
    total: float
    expected: float
    leverage: float
    ratio: float = 1.0
    spread: float = 1.0
    stable_spread: float = 1.0

    @property
    def difference(self) -> float:
        """Canary's mean minus stable's."""
        return (self.total - self.expected) / self.n

    def scaled(self, factor: float) -> Contrast:
        """The same rates with `factor` times the requests."""
        return replace(
            self,
            n=self.n * factor,
            total=self.total * factor,
            expected=self.expected * factor,
            leverage=self.leverage * factor,
        )


def worse_evidence(data: Contrast, difference: float) -> float:
    """Log of the evidence against "canary - stable <= difference", at least 0."""
    surplus = data.total - data.expected - data.n * difference
    if surplus <= 0:
        return 0.0
    cumulant = _cumulant(data, difference, 1.0)
    return max(0.0, _log_sum([_LOG_TILT + t * surplus - cumulant(t) for t in (x / data.spread for x in TILTS)]))


def better_evidence(data: Contrast, difference: float, aim: float) -> float:
    """Log of the evidence against "canary - stable >= difference", at least 0; strongest for equal arms at `aim`."""
    surplus = data.total - data.expected - data.n * difference
    if surplus >= 0:
        return 0.0
    cumulant = _cumulant(data, difference, -1.0)
    mean = min(1.0, (data.expected + data.total + 0.5) / (2 * data.n))
    variance = max(1e-9, data.ratio * mean * (1 - mean) * (1 + data.leverage / data.n))
    best = min(3.0, math.log1p(aim / variance)) / data.spread
    focus = math.log(FOCUS) - best * surplus - cumulant(best)
    rest = math.log(1 - FOCUS) + _LOG_TILT
    return max(0.0, _log_sum([focus, *(rest - t * surplus - cumulant(t) for t in (x / data.spread for x in TILTS))]))


def lower_bound(data: Contrast, threshold: float) -> float:
    """The smallest difference that the evidence of being worse does not exclude at log `threshold`."""
    return _crossing(lambda d: worse_evidence(data, d) >= threshold, -1.0, min(1.0, data.difference))


def upper_bound(data: Contrast, threshold: float, aim: float) -> float:
    """The largest difference that the evidence of being no worse does not exclude at log `threshold`."""
    return _crossing(lambda d: better_evidence(data, d, aim) < threshold, max(-1.0, data.difference), 1.0)


def split_evidence(canary: int, stable: int, share: float) -> float:
    """Log of the evidence against "each request went to the canary with chance `share`".

    A beta mixture around `share` (Lindon and Malek 2020): unlike a chi-square it may be looked at all the time.
    """
    a, b = 200 * share, 200 * (1 - share)
    mixed = math.lgamma(a + canary) + math.lgamma(b + stable) - math.lgamma(a + b + canary + stable)
    prior = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return mixed - prior - canary * math.log(share) - stable * math.log1p(-share)


def _cumulant(data: Contrast, difference: float, sign: float) -> Callable[[float], float]:
    seen = data.n * data.n / data.leverage if data.leverage else 0.0
    if seen:
        mean = (data.expected / data.n * seen + max(0.0, data.total - data.n * difference) + 0.5) / (seen + data.n)
    else:
        mean = 0.0
    mean = min(max(mean, 0.0), 1.0)
    null = min(max(mean + difference, 0.0), 1.0)
    weight = data.n * data.ratio * _variance(null, data.n) / data.spread
    size = data.spread
    reach = data.leverage / data.n * data.stable_spread
    control = data.leverage * data.ratio * _variance(mean, seen) * data.stable_spread / reach**2 if reach else 0.0

    def cumulant(tilt: float) -> float:
        x, y = sign * tilt * size, -sign * tilt * reach
        return weight * (math.expm1(x) - x) + (control * (math.expm1(y) - y) if reach else 0.0)

    return cumulant


def _variance(mean: float, n: float) -> float:
    # Half a value of each kind is always granted: nothing seen is not "impossible".
    floor = 0.5 / (n + 1) if n else 0.0
    return max(mean * (1 - mean), floor * (1 - floor))


def _log_sum(logs: list[float]) -> float:
    top = max(logs)
    return top + math.log(sum(math.exp(x - top) for x in logs))


def _crossing(is_below: Callable[[float], bool], low: float, high: float) -> float:
    for _ in range(22):
        middle = (low + high) / 2
        if is_below(middle):
            low = middle
        else:
            high = middle
    return (low + high) / 2
