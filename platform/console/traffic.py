"""How much traffic endpoints have right now, over all their versions: two bounded sums in SQL over stored samples."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from django.db import connection

from inference.protocol.samples import quantile_ms

WINDOW_S = 30
# Samples arrive within two seconds; the newest ones are not whole yet.
LATE_S = 2
_SUMS = """
    SELECT endpoint, sum(requests), sum(errors) FROM telemetry_storedsample
    WHERE endpoint = ANY(%s) AND at > now() - make_interval(secs => %s) AND at <= now() - make_interval(secs => %s)
    GROUP BY endpoint
"""
_COUNTS = """
    SELECT endpoint, bucket, sum(held::bigint)
    FROM telemetry_storedsample, jsonb_each_text(latency_counts) AS counts(bucket, held)
    WHERE endpoint = ANY(%s) AND at > now() - make_interval(secs => %s) AND at <= now() - make_interval(secs => %s)
    GROUP BY endpoint, bucket
"""


@dataclass(slots=True)
class Traffic:
    """Sums over the last WINDOW_S seconds."""

    requests: int = 0
    errors: int = 0
    counts: Counter[int] = field(default_factory=Counter)

    @property
    def rps(self) -> float:
        return round(self.requests / WINDOW_S, 2)

    @property
    def error_share(self) -> float | None:
        return self.errors / self.requests if self.requests else None

    def quantile_ms(self, q: float) -> float | None:
        found = quantile_ms(dict(self.counts), q)
        return None if found is None else round(found, 2)


def traffic_of(endpoints: list[str]) -> dict[str, Traffic]:
    """Endpoint -> its traffic; every name that was asked for is there."""
    found = {name: Traffic() for name in endpoints}
    if not endpoints:
        return found
    values: tuple[list[str], int, int] = (endpoints, WINDOW_S + LATE_S, LATE_S)
    with connection.cursor() as cursor:
        cursor.execute(_SUMS, values)
        for name, requests, errors in cursor.fetchall():
            found[name].requests, found[name].errors = int(requests), int(errors)
        cursor.execute(_COUNTS, values)
        for name, bucket, count in cursor.fetchall():
            found[name].counts[int(bucket)] += int(count)
    return found


def total(parts: dict[str, Traffic]) -> Traffic:
    whole = Traffic()
    for part in parts.values():
        whole.requests += part.requests
        whole.errors += part.errors
        whole.counts.update(part.counts)
    return whole
