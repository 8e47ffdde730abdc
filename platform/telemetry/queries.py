"""What charts, scaling and the canary judge read. Sums are made in SQL and bounded: at most 300 points per version."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypedDict

from django.db import connection

from inference.protocol.samples import BATCH_EDGES, quantile_ms

MAX_POINTS = 300
MAX_SECONDS = 24 * 3600
MAX_ROWS = 10_000

_SUMS = """
    SELECT date_bin(make_interval(secs => %(step)s), at, 'epoch') AS bin, version, arm,
           sum(requests), sum(errors), sum(retries), sum(latency_sum_ms), sum(queue_sum_ms), sum(compute_sum_ms),
           sum(batch_sum), sum(input_sum_ms), sum(output_sum_ms)
    FROM telemetry_storedsample
    WHERE endpoint = %(endpoint)s AND at > now() - make_interval(secs => %(seconds)s)
    GROUP BY bin, version, arm
    ORDER BY bin, version, arm
    LIMIT %(limit)s
"""
_COUNTS = """
    SELECT bin, version, arm, array_agg(bucket::int), array_agg(n::bigint) FROM (
        SELECT date_bin(make_interval(secs => %(step)s), at, 'epoch') AS bin, version, arm, bucket,
               sum(held::bigint) AS n
        FROM telemetry_storedsample, jsonb_each_text(latency_counts) AS counts(bucket, held)
        WHERE endpoint = %(endpoint)s AND at > now() - make_interval(secs => %(seconds)s)
        GROUP BY bin, version, arm, bucket
    ) AS buckets
    GROUP BY bin, version, arm
    LIMIT %(limit)s
"""
_BATCHES = """
    SELECT bucket::int, sum(n::bigint)
    FROM telemetry_storedsample, jsonb_each_text(batch_counts) AS counts(bucket, n)
    WHERE endpoint = %(endpoint)s AND at > now() - make_interval(secs => %(seconds)s)
    GROUP BY bucket
    LIMIT %(limit)s
"""
_ERRORS = """
    SELECT version, arm, code, sum(n::bigint)
    FROM telemetry_storedsample, jsonb_each_text(error_counts) AS counts(code, n)
    WHERE endpoint = %(endpoint)s AND at > now() - make_interval(secs => %(seconds)s)
    GROUP BY version, arm, code
    LIMIT %(limit)s
"""


class Point(TypedDict):
    """Sums of one time bin for one version and arm. at: the bin's begin; times in ms, None without data."""

    at: datetime
    version: int
    arm: str
    requests: int
    errors: int
    retries: int
    mean_ms: float | None
    queue_ms: float | None
    input_ms: float | None
    compute_ms: float | None
    output_ms: float | None
    mean_batch: float | None
    p50_ms: float | None
    p99_ms: float | None


class Summary(Point):
    """As Point, over the whole time, with requests per second and errors by code."""

    requests_per_s: float
    error_counts: dict[str, int]


def step_s(seconds: int) -> int:
    """Width of a bin in s, so that `seconds` have at most MAX_POINTS bins."""
    return max(1, -(-seconds // MAX_POINTS))


def series(endpoint: str, seconds: int = 300) -> list[Point]:
    """Points in order of time, for each version and arm that had traffic in the last `seconds` (at most a day)."""
    seconds = min(max(1, seconds), MAX_SECONDS)
    return _points(endpoint, seconds, step_s(seconds))


def summary(endpoint: str, seconds: int = 60) -> list[Summary]:
    """One line for each version and arm that had traffic in the last `seconds` (at most a day)."""
    seconds = min(max(1, seconds), MAX_SECONDS)
    errors: dict[tuple[int, str], dict[str, int]] = {}
    for version, arm, code, n in _rows(_ERRORS, endpoint, seconds, 1):
        errors.setdefault((version, arm), {})[code] = int(n)
    # Bins begin at multiples of their width, so a time of one width lies in two of them.
    totals: dict[tuple[int, str], dict[str, Any]] = {}
    for sums, counts in _binned(endpoint, seconds, seconds):
        key = (sums["version"], sums["arm"])
        total = totals.setdefault(key, {**sums, "counts": {}, **dict.fromkeys(_ADDED, 0)})
        for name in _ADDED:
            total[name] += sums[name]
        for bucket, n in counts.items():
            total["counts"][bucket] = total["counts"].get(bucket, 0) + n
    return [
        Summary(
            **_point(total, total["counts"]),
            requests_per_s=total["requests"] / seconds,
            error_counts=errors.get(key, {}),
        )
        for key, total in sorted(totals.items())
    ]


def batch_sizes(endpoint: str, seconds: int = 60) -> list[tuple[int, int]]:
    """[(upper edge in rows, requests that ran in a batch of up to so many)], ascending, of all versions together; an
    edge of 0 stands last for what is above all edges. Only edges that have requests.
    """
    seconds = min(max(1, seconds), MAX_SECONDS)
    held = sorted((int(bucket), int(n)) for bucket, n in _rows(_BATCHES, endpoint, seconds, 1))
    return [(BATCH_EDGES[bucket] if bucket < len(BATCH_EDGES) else 0, n) for bucket, n in held]


_ADDED = (
    "requests", "errors", "retries", "latency_sum_ms", "queue_sum_ms", "compute_sum_ms", "batch_sum", "input_sum_ms",
    "output_sum_ms",
)  # fmt: skip


def _points(endpoint: str, seconds: int, step: int) -> list[Point]:
    return [_point(sums, counts) for sums, counts in _binned(endpoint, seconds, step)]


def _binned(endpoint: str, seconds: int, step: int) -> list[tuple[dict[str, Any], dict[int, int]]]:
    counts = {
        (at, version, arm): dict(zip(buckets, numbers, strict=True))
        for at, version, arm, buckets, numbers in _rows(_COUNTS, endpoint, seconds, step)
    }
    found = []
    for at, version, arm, *sums in _rows(_SUMS, endpoint, seconds, step):
        line = {"at": at, "version": version, "arm": arm, **dict(zip(_ADDED, sums, strict=True))}
        found.append((line, counts.get((at, version, arm), {})))
    return found


def _rows(query: str, endpoint: str, seconds: int, step: int) -> list[tuple[Any, ...]]:
    values: dict[str, str | int] = {"endpoint": endpoint, "seconds": seconds, "step": step, "limit": MAX_ROWS}
    with connection.cursor() as cursor:
        cursor.execute(query, values)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows


def _point(sums: dict[str, Any], counts: dict[int, int]) -> Point:
    answered = sum(counts.values())
    requests = int(sums["requests"])
    return Point(
        at=sums["at"],
        version=sums["version"],
        arm=sums["arm"],
        requests=requests,
        errors=int(sums["errors"]),
        retries=int(sums["retries"]),
        mean_ms=_mean(sums["latency_sum_ms"], answered),
        queue_ms=_mean(sums["queue_sum_ms"], answered),
        input_ms=_mean(sums["input_sum_ms"], answered),
        compute_ms=_mean(sums["compute_sum_ms"], answered),
        output_ms=_mean(sums["output_sum_ms"], answered),
        mean_batch=_mean(sums["batch_sum"], answered),
        p50_ms=quantile_ms(counts, 0.50),
        p99_ms=quantile_ms(counts, 0.99),
    )


def _mean(total: float, n: int) -> float | None:
    return float(total) / n if n else None
