"""What the judge reads: sufficient sums per arm and second, and the sums of several bins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Any

EMPTY: Mapping[int, int] = MappingProxyType({})
COUNTERS = ("requests", "errors", "refusals", "invalid", "rescued", "drawn", "compared", "drifted", "scores")
MOMENTS = ("drift_sum", "drift_sq", "score_sum", "score_sq")
HISTOGRAMS = ("latency", "queue", "first", "next")


@dataclass(frozen=True, slots=True)
class Bin:
    """Sums of one arm over the second `at_unix_s` (or over more seconds from there on, see `coarsened`).

    errors: the server's fault, also those rescued on stable; refusals: overloaded, deadline passed, not ready;
    invalid: answers with NaN or infinity or that break the schema; rescued: of the errors, those whose caller got the
    stable version's answer; drawn: requests assigned to this arm each by itself, which is what the split is checked by.
    latency, queue, first, next: bucket of samples.LATENCY_EDGES_MS -> count, of the latency,
    the queue's wait, the time to the first token and between tokens. compared, drifted, drift_sum, drift_sq: copies
    whose outputs were compared, those beyond the tolerance, their distances (0..1). scores: business scores (0..1).
    """

    at_unix_s: int
    requests: int = 0
    errors: int = 0
    refusals: int = 0
    invalid: int = 0
    latency: Mapping[int, int] = field(default_factory=lambda: EMPTY)
    queue: Mapping[int, int] = field(default_factory=lambda: EMPTY)
    first: Mapping[int, int] = field(default_factory=lambda: EMPTY)
    next: Mapping[int, int] = field(default_factory=lambda: EMPTY)
    compared: int = 0
    drifted: int = 0
    drift_sum: float = 0.0
    drift_sq: float = 0.0
    scores: int = 0
    score_sum: float = 0.0
    score_sq: float = 0.0
    rescued: int = 0
    drawn: int = 0


def coarsened(bins: Iterable[Bin], span_s: int) -> tuple[Bin, ...]:
    """The same sums by spans of `span_s` seconds, oldest first: for looks back over many hours."""
    groups: dict[int, list[Bin]] = {}
    for item in bins:
        groups.setdefault(item.at_unix_s // span_s * span_s, []).append(item)
    return tuple(_added(at, groups[at]) for at in sorted(groups))


def by_second(bins: Iterable[Bin]) -> tuple[Bin, ...]:
    """One bin per second, oldest first, whatever the order and however many gateways counted."""
    ordered = sorted(bins, key=lambda item: item.at_unix_s)
    if all(a.at_unix_s < b.at_unix_s for a, b in pairwise(ordered)):
        return tuple(ordered)
    return coarsened(ordered, 1)


def merged(histograms: Iterable[Mapping[int, int]]) -> dict[int, int]:
    """The sum of histograms."""
    total: dict[int, int] = {}
    for counts in histograms:
        for bucket, count in counts.items():
            total[bucket] = total.get(bucket, 0) + count
    return total


def _added(at_unix_s: int, group: list[Bin]) -> Bin:
    if len(group) == 1 and group[0].at_unix_s == at_unix_s:
        return group[0]
    sums: dict[str, Any] = {name: sum(getattr(item, name) for item in group) for name in COUNTERS}
    # Sorted, so that the sum of floats does not depend on the order of the bins.
    moments: dict[str, Any] = {name: sum(sorted(getattr(item, name) for item in group)) for name in MOMENTS}
    histograms: dict[str, Any] = {name: merged(getattr(item, name) for item in group) for name in HISTOGRAMS}
    return Bin(at_unix_s, **sums, **moments, **histograms)
