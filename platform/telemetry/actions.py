"""The only writer of this app's rows. Storing a sample twice changes nothing: source and sequence number identify it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import cast

import msgspec
import redis
from django.conf import settings
from django.db.models.functions import Now

from accounts.actions import note_used
from inference.protocol.routes import SAMPLES_STREAM, USED_KEYS
from inference.protocol.samples import Sample
from telemetry.models import StoredSample

FIELD = b"s"
BATCH = 500
BATCHES_PER_RUN = 20
ID_CHARS = 12
KEPT = timedelta(hours=24)
EXPIRED_AT_ONCE = 20_000
JUDGED = (
    "invalid", "rescued", "drawn", "scores", "score_sum", "score_sq", "compared", "drifted", "drift_sum", "drift_sq",
    "dropped",
)  # fmt: skip
Entries = list[tuple[bytes, dict[bytes, bytes]]]

log = logging.getLogger(__name__)
_decoder = msgspec.msgpack.Decoder(Sample)


def store(samples: Iterable[Sample]) -> int:
    """Stores those that are not there yet; answers how many were given."""
    rows = [_row(sample) for sample in samples]
    StoredSample.objects.bulk_create(rows, ignore_conflicts=True, batch_size=BATCH)
    return len(rows)


def drain() -> int:
    """Moves samples from Valkey's stream into PostgreSQL, a bounded number per run; answers how many.

    1. Read the oldest entries. 2. Store them. 3. Only then delete them: a crash in between stores them twice, which
    changes nothing. Two drains at once do no harm either. Then it notes which keys were used. Raises redis.RedisError when Valkey is away.
    """
    moved = 0
    with redis.Redis.from_url(settings.REDIS_URL, socket_connect_timeout=2, socket_timeout=5) as valkey:
        for _ in range(BATCHES_PER_RUN):
            entries = cast("Entries", valkey.xrange(SAMPLES_STREAM, count=BATCH))
            if not entries:
                break
            moved += store(_decoded(entries))
            valkey.xdel(SAMPLES_STREAM, *[entry for entry, _ in entries])
        used = cast("list[bytes]", valkey.spop(USED_KEYS, BATCH))
        if used:
            note_used(name.decode(errors="replace")[:ID_CHARS].replace("\0", "") for name in used)
    return moved


def expire() -> int:
    """Deletes samples older than a day, a bounded number per run; answers how many."""
    old = StoredSample.objects.filter(at__lt=Now() - KEPT).order_by("at").values("id")[:EXPIRED_AT_ONCE]
    return StoredSample.objects.filter(id__in=old).delete()[0]


def _decoded(entries: Entries) -> list[Sample]:
    found = []
    for entry, fields in entries:
        try:
            sample = _decoder.decode(fields.get(FIELD, b""))
            datetime.fromtimestamp(sample.at_unix_s, UTC)
        except (msgspec.MsgspecError, OverflowError, ValueError, OSError) as error:
            log.warning("entry %s of the samples' stream is no sample: %s", entry, error)
            continue
        found.append(sample)
    return found


def _row(sample: Sample) -> StoredSample:
    return StoredSample(
        source=sample.source[:64],
        sequence=sample.sequence,
        at=datetime.fromtimestamp(sample.at_unix_s, UTC),
        endpoint=sample.endpoint[:64],
        version=sample.version,
        arm=sample.arm[:16],
        requests=sample.requests,
        errors=sample.errors,
        retries=sample.retries,
        latency_sum_ms=sample.latency_sum_ms,
        queue_sum_ms=sample.queue_sum_ms,
        compute_sum_ms=sample.compute_sum_ms,
        batch_sum=sample.batch_sum,
        latency_counts={str(bucket): count for bucket, count in sample.latency_counts.items()},
        error_counts=dict(sample.error_counts),
        input_sum_ms=sample.input_sum_ms,
        output_sum_ms=sample.output_sum_ms,
        batch_counts={str(bucket): count for bucket, count in sample.batch_counts.items()},
        queue_counts={str(bucket): count for bucket, count in sample.queue_counts.items()},
        first_counts={str(bucket): count for bucket, count in sample.first_counts.items()},
        next_counts={str(bucket): count for bucket, count in sample.next_counts.items()},
        **{name: getattr(sample, name) for name in JUDGED},
    )
