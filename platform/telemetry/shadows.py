"""The only writer of shadow diffs and recorded requests: from Valkey's streams into rows, of which each endpoint keeps
the newest. Storing an entry twice changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar, cast

import msgspec
import redis
from django.conf import settings
from django.db import connection

from inference.protocol import records, shadows
from inference.protocol.records import Record
from inference.protocol.routes import DIFFS_STREAM, RECORDS_STREAM
from inference.protocol.shadows import Diff
from telemetry.models import RecordedRequest, ShadowDiff

AT_ONCE = 100
DIFFS_KEPT = 200
RECORDS_KEPT = 1_000
RECORDS_KEPT_BYTES = 64 << 20
Entries = list[tuple[bytes, dict[bytes, bytes]]]
T = TypeVar("T")

log = logging.getLogger(__name__)
_TRIM = """
    DELETE FROM {table} WHERE id IN (
        SELECT id FROM (
            SELECT id, row_number() OVER newest AS place, sum({size}) OVER newest AS total
            FROM {table} WHERE endpoint = %(endpoint)s
            WINDOW newest AS (ORDER BY at DESC, id DESC)
        ) AS held
        WHERE place > %(most)s OR total > %(most_bytes)s
    )
"""


def drain() -> int:
    """Moves diffs and records from their streams into rows, a bounded number per run; answers how many.

    Raises redis.RedisError when Valkey is away.
    """
    with redis.Redis.from_url(settings.REDIS_URL, socket_connect_timeout=2, socket_timeout=5) as valkey:
        moved = _drain(valkey, DIFFS_STREAM, shadows.FIELD, shadows.decode, store_diffs)
        return moved + _drain(valkey, RECORDS_STREAM, records.FIELD, records.decode, store_records)


def store_diffs(diffs: list[Diff]) -> None:
    rows = [_diff_row(diff) for diff in diffs]
    ShadowDiff.objects.bulk_create(rows, ignore_conflicts=True)
    for endpoint in {row.endpoint for row in rows}:
        _trim("telemetry_shadowdiff", "0", endpoint, most=DIFFS_KEPT, most_bytes=0)


def store_records(found: list[Record]) -> None:
    rows = [_record_row(record) for record in found if record.size_bytes <= 2 * records.MAX_RECORD_BYTES]
    RecordedRequest.objects.bulk_create(rows, ignore_conflicts=True)
    for endpoint in {row.endpoint for row in rows}:
        _trim("telemetry_recordedrequest", "size_bytes", endpoint, most=RECORDS_KEPT, most_bytes=RECORDS_KEPT_BYTES)


def purge(endpoint: str) -> int:
    """Deletes an endpoint's recorded requests; answers how many. Its caller has checked rights."""
    return RecordedRequest.objects.filter(endpoint=endpoint).delete()[0]


def _drain(
    valkey: redis.Redis,
    stream: str,
    field: bytes,
    decode: Callable[[bytes], T],
    store: Callable[[list[T]], None],
) -> int:
    """1. Read the oldest entries. 2. Store them. 3. Only then delete them."""
    entries = cast("Entries", valkey.xrange(stream, count=AT_ONCE))
    if not entries:
        return 0
    found = []
    for entry, fields in entries:
        try:
            found.append(decode(fields.get(field, b"")))
        except (msgspec.MsgspecError, UnicodeError) as error:
            log.warning("entry %s of %s cannot be read: %s", entry, stream, error)
    store(found)
    valkey.xdel(stream, *[entry for entry, _ in entries])
    return len(found)


def _trim(table: str, size: str, endpoint: str, *, most: int, most_bytes: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            _TRIM.format(table=table, size=size), {"endpoint": endpoint, "most": most, "most_bytes": most_bytes}
        )


def _diff_row(diff: Diff) -> ShadowDiff:
    return ShadowDiff(
        source=diff.source[:64],
        sequence=diff.sequence,
        at=datetime.fromtimestamp(diff.at_unix_s, UTC),
        endpoint=diff.endpoint[:64],
        stable=diff.stable,
        candidate=diff.candidate,
        distance=diff.distance,
        is_drift=diff.is_drift,
        output=_clean(diff.output, 256),
        kind=diff.kind[:16],
        detail=_clean(diff.detail, 200),
        request=_clean(diff.request, shadows.MAX_REQUEST_CHARS),
        stable_ms=diff.stable_ms,
        candidate_ms=diff.candidate_ms,
    )


def _record_row(record: Record) -> RecordedRequest:
    return RecordedRequest(
        source=record.source[:64],
        sequence=record.sequence,
        at=datetime.fromtimestamp(record.at_unix_s, UTC),
        endpoint=record.endpoint[:64],
        version=record.version,
        kind=record.kind[:16],
        is_repeatable=record.is_repeatable,
        latency_ms=record.latency_ms,
        size_bytes=record.size_bytes,
        record=records.encode(record),
    )


def _clean(text: str, most: int) -> str:
    """PostgreSQL's texts hold no zero byte and no half of a pair."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()[:most]
