"""Writes rows of files: right, quota, audit entry. The bytes are in jobs.store before a row tells of them."""

from __future__ import annotations

from datetime import timedelta

from django.db import transaction
from django.db.models import Sum
from django.db.models.functions import Now

from accounts.audit import record
from accounts.models import Team
from accounts.names import check_text
from accounts.permissions import SYSTEM, Actor, Verb, require
from inference.errors import ClientError, Conflict, InvalidInput
from jobs import store
from jobs.limits import FILE_LIFE, MAX_FILE_BYTES, MAX_TEAM_BYTES, MAX_TEAM_FILES, MIN_FILE_LIFE
from jobs.models import Batch, File
from jobs.rights import require_change
from jobs.statuses import ACTIVE

AT_ONCE = 500


def require_room(actor: Actor, team: Team, size_bytes: int) -> None:
    """May the actor bring a file of about this size? Raises Forbidden, ClientError, StorageFull."""
    require(actor, Verb.VIEW, team)
    held = File.objects.filter(team=team)
    used = held.aggregate(used=Sum("size_bytes"))["used"] or 0
    if used + size_bytes > MAX_TEAM_BYTES or held.count() >= MAX_TEAM_FILES:
        raise ClientError(f"the files of team '{team.name}' take {used} bytes, which is their share: delete some first")
    store.require_free(size_bytes or MAX_FILE_BYTES)


def life_of(seconds: int | None) -> timedelta:
    """How long a file shall live. Raises InvalidInput."""
    if seconds is None:
        return FILE_LIFE
    wanted = timedelta(seconds=seconds)
    if not MIN_FILE_LIFE <= wanted <= FILE_LIFE:
        low, high = int(MIN_FILE_LIFE.total_seconds()), int(FILE_LIFE.total_seconds())
        raise InvalidInput(f"expires_after.seconds must be from {low} to {high}")
    return wanted


@transaction.atomic
def keep_file(*, actor: Actor, team: Team, new: store.NewFile, filename: str, purpose: str, life: timedelta) -> File:
    """The row of a file that was written: moves the bytes to their name first. Raises Forbidden, ClientError."""
    require_room(actor, team, new.size_bytes)
    check_text("file name", filename, 255)
    if purpose != File.Purpose.BATCH:
        raise InvalidInput(f"purpose must be 'batch', not '{purpose[:40]}'")
    if not new.size_bytes:
        raise InvalidInput("the file is empty")
    new.keep()
    row = File.objects.create(
        public_id=new.public_id,
        team=team,
        key=actor.key,
        person=actor.user,
        owner=actor.name,
        purpose=purpose,
        filename=filename,
        size_bytes=new.size_bytes,
        sha256=new.sha256,
        expires_at=Now() + life,
    )
    after = {"filename": filename, "size_bytes": new.size_bytes, "sha256": new.sha256}
    record(actor, "upload_file", "file", row.public_id, team=team, after=after)
    row.refresh_from_db()
    return row


@transaction.atomic
def delete_file(*, actor: Actor, file: File) -> None:
    """Row and bytes. Raises Forbidden, Conflict while a batch reads it."""
    require_change(actor, file)
    if Batch.objects.filter(input_file=file, status__in=ACTIVE).exists():
        raise Conflict(f"a batch still reads {file.public_id}: cancel it first")
    if File.objects.filter(pk=file.pk).delete()[0]:
        before = {"filename": file.filename, "size_bytes": file.size_bytes}
        record(actor, "delete_file", "file", file.public_id, team=file.team, before=before)
    transaction.on_commit(lambda: store.forget(file.public_id))


def expire_files() -> int:
    """Deletes files past their time, and bytes that no row tells of; answers how many rows."""
    old = File.objects.filter(expires_at__lte=Now()).exclude(batches__status__in=ACTIVE)
    rows = list(old.select_related("team")[:AT_ONCE])
    for row in rows:
        with transaction.atomic():
            File.objects.filter(pk=row.pk).delete()
            record(SYSTEM, "expire_file", "file", row.public_id, team=row.team, before={"filename": row.filename})
        store.forget(row.public_id)
    known = set(File.objects.values_list("public_id", flat=True))
    known |= set(Batch.objects.filter(status__in=ACTIVE).values_list("public_id", flat=True))
    for path in store.strays(known):
        path.unlink() if path.is_file() else store.forget_journals(path.name)
    return len(rows)
