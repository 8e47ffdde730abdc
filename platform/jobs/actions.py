"""What people and keys do to batches: make one, cancel one. What workers write is in jobs.leases."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models.functions import Now

from accounts.audit import record
from accounts.names import is_storable
from accounts.permissions import Actor, Verb, require
from accounts.wakeups import send_on_commit
from inference.errors import InvalidInput, RateLimited
from jobs import store
from jobs.limits import ENDPOINTS, MAX_ACTIVE_BATCHES, MAX_METADATA, MAX_WINDOW
from jobs.models import Batch, File
from jobs.rights import require_change
from jobs.statuses import ACTIVE, ENDED, Status, check_move

ADVANCE = "jobs.tasks.advance"
QUEUE = "jobs"
_WINDOW = re.compile(r"([1-9]\d{0,5})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def window_of(text: str) -> timedelta:
    """What "24h" and its like say. Raises InvalidInput."""
    found = _WINDOW.fullmatch(text)
    window = timedelta(**{_UNITS[found[2]]: int(found[1])}) if found else timedelta()
    if not timedelta() < window <= MAX_WINDOW:
        raise InvalidInput("completion_window must be '24h', or another time up to 14 days such as '90m' or '7d'")
    return window


def check_metadata(metadata: Any) -> dict[str, str] | None:
    """Raises InvalidInput unless there are at most 16 pairs of short texts."""
    if metadata is None:
        return None
    if not isinstance(metadata, dict) or len(metadata) > MAX_METADATA:
        raise InvalidInput(f"metadata must be an object of at most {MAX_METADATA} pairs")
    for name, value in metadata.items():
        if not isinstance(value, str) or len(name) > 64 or len(value) > 512:
            raise InvalidInput("metadata: names have at most 64 characters, values are texts of at most 512")
    if not is_storable(json.dumps(metadata, ensure_ascii=False)):
        raise InvalidInput("metadata must hold no NUL character")
    return metadata


@transaction.atomic
def create_batch(
    *,
    actor: Actor,
    file: File,
    endpoint: str,
    completion_window: str = "24h",
    metadata: Any = None,
    output_life_s: int = 0,
) -> Batch:
    """A batch over the lines of `file`; a worker checks and runs them. Raises Forbidden, InvalidInput, RateLimited."""
    require(actor, Verb.VIEW, file.team)
    if endpoint not in ENDPOINTS:
        raise InvalidInput(f"endpoint must be one of {', '.join(ENDPOINTS)}")
    if file.purpose != File.Purpose.BATCH:
        raise InvalidInput(f"{file.public_id} is the output of a batch: upload the lines with purpose 'batch'")
    window, metadata = window_of(completion_window), check_metadata(metadata)
    # Under the file's lock, so that it cannot be deleted meanwhile.
    File.objects.select_for_update().get(pk=file.pk)
    if Batch.objects.filter(team=file.team, status__in=ACTIVE).count() >= MAX_ACTIVE_BATCHES:
        raise RateLimited(f"team '{file.team.name}' has {MAX_ACTIVE_BATCHES} batches under way: wait for one to end")
    row = Batch.objects.create(
        public_id=store.new_id("batch_"),
        team=file.team,
        key=actor.key,
        person=actor.user,
        owner=actor.name,
        endpoint=endpoint,
        input_file=file,
        input_file_name=file.public_id,
        completion_window=completion_window,
        metadata=metadata,
        output_life_s=output_life_s,
        expires_at=Now() + window,
    )
    after = {"endpoint": endpoint, "input_file": file.public_id, "completion_window": completion_window}
    record(actor, "create_batch", "batch", row.public_id, team=file.team, after=after)
    send_on_commit(ADVANCE, row.pk, queue=QUEUE)
    row.refresh_from_db()
    return row


@transaction.atomic
def cancel_batch(*, actor: Actor, batch: Batch) -> Batch:
    """Lines on the way are given up within a tick of their worker. Cancelling again changes nothing.

    Raises Forbidden, Conflict when it is past that.
    """
    require_change(actor, batch)
    row = Batch.objects.select_for_update().get(pk=batch.pk)
    if row.status not in {Status.CANCELLING, Status.CANCELLED}:
        check_move(row.status, Status.CANCELLING)
        Batch.objects.filter(pk=row.pk).update(status=Status.CANCELLING, cancelling_at=Now(), resume_at=None)
        before, after = {"status": row.status}, {"status": Status.CANCELLING.value}
        record(actor, "cancel_batch", "batch", row.public_id, team=batch.team, before=before, after=after)
        send_on_commit(ADVANCE, row.pk, queue=QUEUE)
    batch.refresh_from_db()
    return batch


def has_ended(batch: Batch) -> bool:
    return batch.status in ENDED
