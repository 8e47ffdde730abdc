"""When a crashed replica may start again. Pure: takes times (s, monotonic) and a chance, returns a verdict.

Full jitter after Brooker, "Exponential Backoff and Jitter" (AWS, 2015), so that replicas that crashed together do
not come back together.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """The first restart is immediate, the next wait low_s..cap_s; `max_crashes` in `window_s` are a failure."""

    low_s: float = 1.0
    cap_s: float = 60.0
    window_s: float = 600.0
    max_crashes: int = 5


@dataclass(frozen=True, slots=True)
class Verdict:
    """crashes: those that still count, the newest last. delay_s: None when it is given up."""

    crashes: tuple[float, ...]
    delay_s: float | None


def after_crash(policy: RestartPolicy, crashes: tuple[float, ...], now_s: float, chance: float) -> Verdict:
    """What follows a crash at `now_s` after the earlier `crashes`; `chance` is uniform in 0..1."""
    counted = (*(at for at in crashes if now_s - at < policy.window_s), now_s)
    if len(counted) >= policy.max_crashes:
        return Verdict(counted, None)
    return Verdict(counted, wait_s(policy, len(counted), chance))


def wait_s(policy: RestartPolicy, crash_count: int, chance: float) -> float:
    """Seconds before the restart that follows the `crash_count`-th crash in a row."""
    if crash_count <= 1:
        return 0.0
    high = min(policy.cap_s, policy.low_s * 2.0 ** min(crash_count - 1, 32))
    return policy.low_s + chance * (high - policy.low_s)
