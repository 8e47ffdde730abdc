"""What workers write of batches: claims, commits, moves; each checks the fence under the row's lock (see jobs.slices).

Time is the database's alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models import BooleanField, Case, DurationField, ExpressionWrapper, F, Q, Value, When
from django.db.models.functions import Now

from accounts.audit import record
from accounts.permissions import SYSTEM
from jobs.limits import LEASE_S
from jobs.models import Batch, SegmentRow
from jobs.slices import LeaseLost, Ledger, Segment
from jobs.statuses import ACTIVE, ENDED, Status, check_move

LEASE = timedelta(seconds=LEASE_S)
_LEASED = Case(When(lease_until__gt=Now(), then=Value(True)), default=Value(False), output_field=BooleanField())
_LEFT = ExpressionWrapper(F("expires_at") - Now(), output_field=DurationField())
_RESTING = Q(resume_at__gt=Now()) & ~Q(status=Status.CANCELLING)


@dataclass(frozen=True, slots=True)
class Held:
    """A batch as it was at the claim, the fence that was given out, and what is left of its completion window."""

    batch: Batch
    fence: int
    left_s: float


@dataclass(frozen=True, slots=True)
class Progress:
    """What a commit adds: `count` lines after `first`, of which `failed` are errors; the next one begins at `offset`."""

    first: int
    count: int = 0
    failed: int = 0
    offset: int = 0
    window: float = 0.0


def waiting() -> list[int]:
    """Keys of batches that go on but that nobody holds."""
    rows = Batch.objects.filter(status__in=ACTIVE).exclude(lease_until__gt=Now()).exclude(_RESTING)
    return list(rows.order_by("lease_until", "pk").values_list("pk", flat=True)[:200])


@transaction.atomic
def claim(pk: int) -> Held | None:
    """The batch under the next fence; None while somebody holds it, and when it rests or has ended."""
    rows = Batch.objects.filter(pk=pk, status__in=ACTIVE).exclude(_RESTING).annotate(leased=_LEASED, left=_LEFT)
    row = rows.select_for_update().first()
    ledger = _ledger(row, leased=row.leased).claim() if row is not None else None
    if row is None or ledger is None:
        return None
    Batch.objects.filter(pk=pk).update(fence=ledger.fence, lease_until=Now() + LEASE, resume_at=None)
    batch = Batch.objects.select_related("team", "key", "person", "input_file").get(pk=pk)
    return Held(batch, ledger.fence, row.left.total_seconds())


def _ledger(row: Batch, *, leased: bool = True) -> Ledger:
    last = row.segments.order_by("-first").first()
    segment = Segment(last.fence, last.first, last.count) if last else None
    return Ledger(row.total, row.cursor, row.fence, leased, segment)


def _locked(held: Held) -> Batch:
    """The row, locked. Raises LeaseLost when another fence was given out, or the batch is gone."""
    row = Batch.objects.select_for_update().filter(pk=held.batch.pk, fence=held.fence).first()
    if row is None:
        raise LeaseLost
    return row


@transaction.atomic
def commit(held: Held, progress: Progress) -> str:
    """Moves the cursor, renews the lease, and answers the status as it is now. Raises LeaseLost."""
    row = _locked(held)
    ledger = _ledger(row).commit(held.fence, progress.first, progress.count)
    changes: dict[str, Any] = {"lease_until": Now() + LEASE}
    if progress.count and ledger.segment is not None:
        last = ledger.segment
        defaults = {"first": last.first, "count": last.count}
        SegmentRow.objects.update_or_create(batch=row, fence=last.fence, defaults=defaults)
        changes |= {
            "cursor": ledger.cursor,
            "offset": progress.offset,
            "completed": F("completed") + progress.count - progress.failed,
            "failed": F("failed") + progress.failed,
            "troubles": 0,
        }
    if progress.window:
        changes["window"] = progress.window
    Batch.objects.filter(pk=row.pk).update(**changes)
    return row.status


@transaction.atomic
def renew(held: Held) -> str:
    """Renews the lease and answers the status as it is now. Raises LeaseLost."""
    row = _locked(held)
    Batch.objects.filter(pk=row.pk).update(lease_until=Now() + LEASE)
    return row.status


@transaction.atomic
def move(held: Held, wanted: Status, **changes: Any) -> None:
    """Compare-and-swap of the status, with whatever else changes with it. Raises LeaseLost, Conflict."""
    row = _locked(held)
    check_move(row.status, wanted)
    if wanted in ENDED:
        changes |= {"ended_at": Now(), "lease_until": None}
        before, after = {"status": row.status}, {"status": wanted.value}
        record(SYSTEM, "end_batch", "batch", row.public_id, team=held.batch.team, before=before, after=after)
    Batch.objects.filter(pk=row.pk, status=row.status).update(status=wanted, troubles=0, **changes)


def release(held: Held, *, rest_s: float = 0.0, trouble: bool = False) -> bool:
    """Gives the lease back, to rest for `rest_s`; answers whether the batch goes on. Another's lease stays."""
    rest = Now() + timedelta(seconds=rest_s) if rest_s else None
    rows = Batch.objects.filter(pk=held.batch.pk, fence=held.fence, status__in=ACTIVE)
    return bool(rows.update(lease_until=None, resume_at=rest, troubles=F("troubles") + 1 if trouble else F("troubles")))
