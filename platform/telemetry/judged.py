"""What a rollout's judge reads: per-second sums of each version and arm, all gateways added up. Sums, never requests."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from django.db import connection

MAX_SECONDS = 24 * 3600
REFUSALS = frozenset({"overloaded", "deadline_exceeded", "not_ready", "draining"})
_SUMS = (
    "requests", "errors", "retries", "latency_sum_ms", "queue_sum_ms", "invalid", "rescued", "drawn", "scores", "score_sum",
    "score_sq", "compared", "drifted", "drift_sum", "drift_sq", "dropped",
)  # fmt: skip
_COUNTS = ("latency_counts", "queue_counts", "first_counts", "next_counts", "error_counts")
_BINS = f"""
    SELECT extract(epoch FROM at)::bigint, version, arm, {", ".join(f"sum({name})" for name in _SUMS)},
           json_agg(json_build_array({", ".join(_COUNTS)}))::text
    FROM telemetry_storedsample
    WHERE endpoint = %(endpoint)s AND at >= to_timestamp(%(since)s) AND at < to_timestamp(%(until)s)
    GROUP BY at, version, arm
    ORDER BY at, version, arm
"""  # noqa: S608 (the names above, no values)

K = TypeVar("K")
_Counts = dict[int, int]
_decode = msgspec.json.Decoder(list[tuple[_Counts, _Counts, _Counts, _Counts, dict[str, int]]]).decode


@dataclass(slots=True)
class JudgedBin:
    """Sums of one second of one version and arm; the fields of inference.protocol.samples.Sample, where each is said.

    refusals: of the errors, those that say "no room" or "no time" rather than "failed" (codes of REFUSALS). latency,
    queue, first, next: bucket of LATENCY_EDGES_MS -> count.
    """

    at_unix_s: int
    requests: int = 0
    errors: int = 0
    retries: int = 0
    latency_sum_ms: float = 0.0
    queue_sum_ms: float = 0.0
    invalid: int = 0
    rescued: int = 0
    drawn: int = 0
    scores: int = 0
    score_sum: float = 0.0
    score_sq: float = 0.0
    compared: int = 0
    drifted: int = 0
    drift_sum: float = 0.0
    drift_sq: float = 0.0
    dropped: int = 0
    latency: _Counts = field(default_factory=dict)
    queue: _Counts = field(default_factory=dict)
    first: _Counts = field(default_factory=dict)
    next: _Counts = field(default_factory=dict)
    error_counts: dict[str, int] = field(default_factory=dict)

    @property
    def refusals(self) -> int:
        return sum(count for code, count in self.error_counts.items() if code in REFUSALS)


def judged_bins(
    endpoint: str, since_unix_s: float, until_unix_s: float | None = None
) -> dict[tuple[int, str], list[JudgedBin]]:
    """{(version, arm): its seconds from `since_unix_s` on and before `until_unix_s`, ascending}; one query.

    No more than the last day. A gateway sends a second's sums when it has ended, and those that could not be sent
    come later: whoever reads again and again asks from a little before where it stopped, and takes what it gets
    anew (`JudgedBin.at_unix_s`) for what it had.
    """
    now = time.time()
    values: dict[str, str | float] = {
        "endpoint": endpoint,
        "since": max(since_unix_s, now - MAX_SECONDS),
        "until": min(until_unix_s if until_unix_s is not None else now + 60, now + 60),
    }
    found: dict[tuple[int, str], list[JudgedBin]] = {}
    with connection.cursor() as cursor:
        cursor.execute(_BINS, values)
        for row in cursor.fetchall():
            found.setdefault((row[1], row[2]), []).append(_bin(row))
    return found


def _bin(row: tuple[Any, ...]) -> JudgedBin:
    at, _version, _arm, *sums, held = row
    parts = _decode(held)
    latency, queue, first, following, errors = parts[0]
    for part in parts[1:]:
        for into, counts in zip((latency, queue, first, following), part[:4], strict=True):
            _add(into, counts)
        _add(errors, part[4])
    return JudgedBin(
        int(at),
        **dict(zip(_SUMS, sums, strict=True)),
        latency=latency,
        queue=queue,
        first=first,
        next=following,
        error_counts=errors,
    )


def _add(into: dict[K, int], counts: dict[K, int]) -> None:
    for key, count in counts.items():
        into[key] = into.get(key, 0) + count
