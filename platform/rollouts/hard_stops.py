"""What needs no statistics: a canary that crashes, does not load, fails most requests or answers NaN. In seconds."""

from __future__ import annotations

from collections.abc import Sequence

from rollouts.bins import Bin

INVALID = 3
# (requests, seconds that they are spread over) from which it counts that all failed, and that most did: two failed
# batches of 16 in a row have fewer requests or are shorter.
ALL_FAILED = ((40, 3), (10, 8))
MOST_FAILED = ((120, 5), (30, 15))


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
    requests = errors = seconds = 0
    newest = canary[-1].at_unix_s if canary else 0
    for item in reversed(canary):
        requests, errors, seconds = requests + item.requests, errors + item.errors, seconds + bool(item.errors)
        span_s = newest - item.at_unix_s + 1
        is_all = errors == requests and seconds >= 3 and _reaches(ALL_FAILED, requests, span_s)
        is_most = 2 * errors > requests and seconds >= 5 and _reaches(MOST_FAILED, requests, span_s)
        if (is_all or is_most) and not _is_shared(stable, item.at_unix_s, errors / requests):
            return f"{errors} of the last {requests} requests to the new version failed."
        if errors < requests and _reaches(MOST_FAILED, requests, span_s):
            return None
    return None


def _reaches(least: Sequence[tuple[int, int]], requests: int, span_s: int) -> bool:
    return any(requests >= enough and span_s >= seconds for enough, seconds in least)


def _is_shared(stable: Sequence[Bin], since_unix_s: int, rate: float) -> bool:
    """Whether stable fails at least half as often over the same seconds: then it is not the version's fault."""
    recent = [item for item in stable if item.at_unix_s >= since_unix_s]
    requests, errors = sum(item.requests for item in recent), sum(item.errors for item in recent)
    return requests > 0 and errors / requests >= rate / 2
