"""What needs no statistics: a canary that crashes, does not load, fails most requests or answers NaN. In seconds."""

from __future__ import annotations

from collections.abc import Sequence

from rollouts.bins import Bin

MOST_OF = 30
ALL_OF = 10
INVALID = 3
# One failed batch, however large, lasts less than this.
ALL_SPAN_S = 5
MOST_SPAN_S = 10


def hard_stop(
    stable: Sequence[Bin], canary: Sequence[Bin], *, crashes: int, crash_loop: int, load_failed: bool
) -> str | None:
    """The reason to take the canary off all traffic now, in words; None: there is none. Bins oldest first."""
    if load_failed:
        return "The new version could not be loaded."
    if crashes >= crash_loop:
        return f"The new version's replicas crashed {crashes} times."
    return _invalid(stable, canary) or _failing(stable, canary)


def _invalid(stable: Sequence[Bin], canary: Sequence[Bin]) -> str | None:
    found = sum(item.invalid for item in canary)
    if found >= INVALID and not any(item.invalid for item in stable):
        return f"{found} answers of the new version were NaN, infinite or broke the schema, none of the stable version."
    return None


def _failing(stable: Sequence[Bin], canary: Sequence[Bin]) -> str | None:
    requests = errors = 0
    failing: list[int] = []
    newest = canary[-1].at_unix_s if canary else 0
    for item in reversed(canary):
        requests += item.requests
        errors += item.errors
        if item.errors:
            failing.append(item.at_unix_s)
        span_s = newest - item.at_unix_s + 1
        all_fail = requests >= ALL_OF and errors == requests and span_s >= ALL_SPAN_S and len(failing) >= 3
        most_fail = requests >= MOST_OF and 2 * errors > requests and span_s >= MOST_SPAN_S and len(failing) >= 5
        if (all_fail or most_fail) and not _is_shared(stable, item.at_unix_s, errors / requests):
            return f"{errors} of the last {requests} requests to the new version failed."
        if requests >= MOST_OF and span_s >= MOST_SPAN_S:
            return None
    return None


def _is_shared(stable: Sequence[Bin], since_unix_s: int, rate: float) -> bool:
    """Whether stable fails at least half as often over the same seconds: then it is not the version's fault."""
    recent = [item for item in stable if item.at_unix_s >= since_unix_s]
    requests, errors = sum(item.requests for item in recent), sum(item.errors for item in recent)
    return requests > 0 and errors / requests >= rate / 2
