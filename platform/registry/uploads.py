"""Rows and quarantine files of uploads, and the collection of what nobody needs. Called through registry.actions.

A quarantine file (0600, named by a UUID, never by the client) lies on the store's file system; its size is the
upload's offset, so a killed server loses nothing and forgets nothing.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now

from accounts.audit import record
from accounts.models import Team
from accounts.names import check_text
from accounts.permissions import Actor, Verb, require, visible
from inference.errors import ClientError, TooLarge
from registry.content import SHA256, unused
from registry.models import Blob, Upload
from registry.storage import store

LIFETIME = timedelta(hours=24)
GRACE_S = 24 * 3600.0
COLLECT_AT_ONCE = 500


def quarantine() -> Path:
    folder: Path = settings.ARTIFACTS_DIR / "quarantine"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def file_of(upload_id: uuid.UUID) -> Path:
    return quarantine() / str(upload_id)


def offset_of(upload: Upload) -> int:
    """Bytes that are here. Raises FileNotFoundError when the file is gone."""
    return upload.length if upload.sha256 else file_of(upload.id).stat().st_size


def may_use(actor: Actor, upload: Upload) -> bool:
    """Only who began an upload may go on with it: a teammate could slip bytes into it."""
    return actor.superuser or (upload.team_id in actor.roles and upload.owner == actor.name)


def begin_upload(*, actor: Actor, team: Team, filename: str, length: int, sha256: str = "") -> Upload:
    """Reserves room and makes the empty quarantine file. Raises TooLarge, StorageFull, Forbidden."""
    require(actor, Verb.UPLOAD, team)
    check_text("file name", filename, 500)
    if length > settings.MAX_UPLOAD_BYTES:
        raise TooLarge(f"a file may have at most {settings.MAX_UPLOAD_BYTES} bytes")
    if length < 0:
        raise ClientError("the length must not be negative")
    if sha256 and not SHA256.fullmatch(sha256):
        raise ClientError("a sha256 is 64 small hexadecimal digits")
    store().require_free(length)
    upload_id = uuid.uuid4()
    descriptor = os.open(file_of(upload_id), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.close(descriptor)
    with transaction.atomic():
        upload = Upload.objects.create(
            id=upload_id,
            filename=filename,
            length=length,
            declared_sha256=sha256,
            team=team,
            owner=actor.name,
            expires_at=Now() + LIFETIME,
        )
        after = {"filename": filename[:200], "length": length}
        record(actor, "begin_upload", "upload", str(upload_id), team=team, after=after)
    upload.refresh_from_db()
    return upload


def find_upload(actor: Actor, upload_id: uuid.UUID) -> Upload | None:
    """The upload with its team; None when there is none that the actor may go on with."""
    upload = Upload.objects.select_related("team").filter(pk=upload_id).first()
    return upload if upload is not None and may_use(actor, upload) else None


def is_expired(upload: Upload) -> bool:
    """By the database's clock."""
    return not Upload.objects.filter(pk=upload.pk, expires_at__gt=Now()).exists()


def own_uploads(actor: Actor) -> list[Upload]:
    """What the actor has begun and not forgotten; newest first, at most 200."""
    rows = visible(actor, Upload.objects.select_related("team").filter(owner=actor.name, expires_at__gt=Now()))
    return list(rows.order_by("-created_at")[:200])


def renew_upload(upload: Upload) -> Upload:
    """Activity postpones the expiry."""
    Upload.objects.filter(pk=upload.pk).update(expires_at=Now() + LIFETIME)
    upload.refresh_from_db(fields=["expires_at"])
    return upload


def complete_upload(*, actor: Actor, upload: Upload) -> Upload:
    """The last byte is here.

    1. Hashes the file, and publishes it under its digest in the store by one rename. 2. Writes blob, digest and audit
    entry. Killed between the two, the file is gone from quarantine, the upload answers "gone", and the client starts
    anew: the blob is then there already. Raises Rejected (and drops the file) when it is not what was declared.
    """
    digest, size = store().adopt(file_of(upload.id), sha256=upload.declared_sha256)
    with transaction.atomic():
        Blob.objects.bulk_create(
            [Blob(sha256=digest, size_bytes=size)],
            update_conflicts=True,
            update_fields=["size_bytes"],
            unique_fields=["sha256"],
        )
        Upload.objects.filter(pk=upload.pk).update(sha256=digest, expires_at=Now() + LIFETIME)
        after = {"sha256": digest, "size_bytes": size}
        record(actor, "complete_upload", "upload", str(upload.id), team=upload.team, after=after)
    upload.refresh_from_db()
    return upload


@transaction.atomic
def cancel_upload(*, actor: Actor, upload: Upload) -> None:
    """Forgets the upload and its quarantine file. Content that a version uses stays."""
    if Upload.objects.filter(pk=upload.pk).delete()[0]:
        record(actor, "cancel_upload", "upload", str(upload.pk), team=upload.team, before={"length": upload.length})
    file_of(upload.pk).unlink(missing_ok=True)


def expire_uploads() -> int:
    """Deletes uploads past their time, and quarantine files that have no row; answers how many uploads."""
    count = 0
    for upload in Upload.objects.filter(expires_at__lte=Now())[:COLLECT_AT_ONCE]:
        file_of(upload.pk).unlink(missing_ok=True)
        count += Upload.objects.filter(pk=upload.pk, expires_at__lte=Now()).delete()[0]
    _sweep_quarantine()
    return count


def _sweep_quarantine() -> None:
    for path in quarantine().iterdir():
        with contextlib.suppress(FileNotFoundError, ValueError):
            old = time.time() - path.stat().st_mtime > GRACE_S
            if old and not Upload.objects.filter(pk=uuid.UUID(path.name)).exists():
                path.unlink()


def collect_blobs(grace_s: float = GRACE_S) -> int:
    """Deletes content that no version and no upload needs, rows and files; answers the bytes won.

    A row is locked while its file goes, and whoever makes a version locks it too, so neither can outrun the other.
    """
    freed = store().collect(_stray_digests(), grace_s=grace_s)
    candidates = Blob.objects.filter(unused()).values_list("sha256", flat=True)[:COLLECT_AT_ONCE]
    for digest in list(candidates):
        with transaction.atomic():
            row = Blob.objects.select_for_update(skip_locked=True).filter(sha256=digest).first()
            if row is None or not Blob.objects.filter(unused(), sha256=digest).exists():
                continue
            freed += store().collect([digest], grace_s=grace_s)
            if not store().has(digest):
                row.delete()
    store().sweep()
    return freed


def _stray_digests() -> list[str]:
    """Files in the store that no row tells of: from archives that failed half-way, or a kill at the wrong moment."""
    found = [path.name for path in (store().root / "blobs").glob("??/*")]
    known = set(Blob.objects.filter(sha256__in=found).values_list("sha256", flat=True))
    return [digest for digest in found if digest not in known]
