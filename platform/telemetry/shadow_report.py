"""What copied requests say about a candidate: how many were compared and drifted, how fast both answered, and the worst."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, TypedDict

from inference.protocol.samples import quantile_ms
from telemetry.judged import JudgedBin, judged_bins
from telemetry.models import ShadowDiff

MAX_DIFFS = 20


class Side(TypedDict):
    """Requests that one version answered, their errors and latency. None without data."""

    version: int
    requests: int
    errors: int
    p50_ms: float | None
    p99_ms: float | None


class ShadowReport(TypedDict):
    """stable: the live requests of the primary versions; candidate: the copies. mean_distance: over what was compared;
    worst: the diffs furthest apart, as told by their rows.
    """

    stable: Side
    candidate: Side
    compared: int
    drifted: int
    dropped: int
    mean_distance: float | None
    worst: list[dict[str, Any]]


def shadow_report(endpoint: str, candidate: int, since_unix_s: float) -> ShadowReport:
    """As of `since_unix_s`, a day at most. Two queries."""
    bins = judged_bins(endpoint, since_unix_s)
    copies = bins.get((candidate, "shadow"), [])
    live = [(version, held) for (version, arm), held in bins.items() if arm == "primary" and version != candidate]
    stable = max((version for version, _ in live), default=0)
    compared = sum(one.compared for one in copies)
    return ShadowReport(
        stable=_side(stable, [one for _, held in live for one in held]),
        candidate=_side(candidate, copies),
        compared=compared,
        drifted=sum(one.drifted for one in copies),
        dropped=sum(one.dropped for one in copies),
        mean_distance=sum(one.drift_sum for one in copies) / compared if compared else None,
        worst=worst_diffs(endpoint, candidate, since_unix_s),
    )


def worst_diffs(endpoint: str, candidate: int, since_unix_s: float, most: int = MAX_DIFFS) -> list[dict[str, Any]]:
    """Of the diffs that are kept, those furthest apart."""
    since = datetime.fromtimestamp(since_unix_s, UTC)
    rows = ShadowDiff.objects.filter(endpoint=endpoint, candidate=candidate, at__gte=since)
    fields = ("at", "stable", "candidate", "distance", "is_drift", "output", "kind", "detail", "request", "stable_ms",
              "candidate_ms")  # fmt: skip
    return list(rows.order_by("-distance", "-at").values(*fields)[:most])


def _side(version: int, bins: list[JudgedBin]) -> Side:
    counts: dict[int, int] = {}
    for one in bins:
        for bucket, count in one.latency.items():
            counts[bucket] = counts.get(bucket, 0) + count
    return Side(
        version=version,
        requests=sum(one.requests for one in bins),
        errors=sum(one.errors for one in bins),
        p50_ms=quantile_ms(counts, 0.50),
        p99_ms=quantile_ms(counts, 0.99),
    )
