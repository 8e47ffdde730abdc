"""Quarantine, expiry and the collection of what nobody needs."""

from __future__ import annotations

import os
import time

import pytest
from django.db import connection

from inference.errors import ClientError, Forbidden, Rejected, StorageFull, TooLarge
from registry import actions, uploads
from registry.models import Blob, Upload
from registry.storage import store
from tests.support.cast import Cast
from tests.support.contents import new_version, sent


def age(upload: Upload) -> None:
    with connection.cursor() as cursor:
        cursor.execute("UPDATE registry_upload SET expires_at = now() - interval '1 s' WHERE id = %s", [upload.pk])


def test_a_quarantine_file_is_private_and_never_named_by_the_client(cast: Cast) -> None:
    upload = actions.begin_upload(actor=cast.actor("developer"), team=cast.red, filename="../../etc/passwd", length=3)
    file = uploads.file_of(upload.id)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.name == str(upload.id)
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_limits_at_and_beyond(cast: Cast, settings: object) -> None:
    settings.MAX_UPLOAD_BYTES = 10  # type: ignore[attr-defined]
    options = {"actor": cast.actor("developer"), "team": cast.red, "filename": "f"}
    actions.begin_upload(length=10, **options)  # type: ignore[arg-type]
    with pytest.raises(TooLarge):
        actions.begin_upload(length=11, **options)  # type: ignore[arg-type]
    settings.MAX_UPLOAD_BYTES = 1 << 60  # type: ignore[attr-defined]
    with pytest.raises(StorageFull):
        actions.begin_upload(length=1 << 59, **options)  # type: ignore[arg-type]
    with pytest.raises(ClientError):
        actions.begin_upload(length=-1, **options)  # type: ignore[arg-type]
    assert Upload.objects.count() == 1
    assert len(list(uploads.quarantine().iterdir())) == 1


def test_viewers_and_strangers_upload_nothing(cast: Cast) -> None:
    for name in ("teammate", "stranger"):
        with pytest.raises(Forbidden):
            actions.begin_upload(actor=cast.actor(name), team=cast.red, filename="f", length=1)


def test_only_who_began_an_upload_goes_on_with_it(cast: Cast) -> None:
    upload = actions.begin_upload(actor=cast.actor("developer"), team=cast.red, filename="f", length=1)
    found = {name: uploads.find_upload(cast.actor(name), upload.id) for name in ("developer", "owner", "stranger")}
    assert found == {"developer": upload, "owner": None, "stranger": None}


def test_content_that_is_not_what_was_declared_is_refused(cast: Cast) -> None:
    upload = actions.begin_upload(actor=cast.actor("developer"), team=cast.red, filename="f", length=3, sha256="0" * 64)
    uploads.file_of(upload.id).write_bytes(b"abc")
    with pytest.raises(Rejected):
        actions.complete_upload(actor=cast.actor("developer"), upload=upload)
    assert not Blob.objects.exists()


def test_expired_uploads_go_with_their_files(cast: Cast) -> None:
    upload = actions.begin_upload(actor=cast.actor("developer"), team=cast.red, filename="f", length=3)
    stray = uploads.quarantine() / "0a0e4f0e-6a0e-4f0e-8a0e-0a0e4f0e6a0e"
    stray.write_bytes(b"left by a crash")
    os.utime(stray, (time.time() - 2 * 86400,) * 2)
    assert actions.expire_uploads() == 0
    assert not stray.exists()
    assert uploads.file_of(upload.id).exists()
    age(upload)
    assert actions.expire_uploads() == 1
    assert not uploads.file_of(upload.id).exists()


def test_content_is_collected_only_when_nobody_needs_it(cast: Cast) -> None:
    version = new_version(cast.actor("developer"), cast.red, b"used")
    waiting, unused = (sent(cast.actor("developer"), cast.red, data) for data in (b"waiting", b"unused"))
    Upload.objects.exclude(pk=waiting.pk).delete()
    assert actions.collect_blobs() == 0, "all of it is too young"
    assert actions.collect_blobs(grace_s=0) == len(b"unused")
    assert not store().has(unused.sha256)
    assert store().has(waiting.sha256)
    assert store().has(version.manifest["files"][0]["sha256"])
    assert set(Blob.objects.values_list("pk", flat=True)) == {waiting.sha256, version.manifest["files"][0]["sha256"]}


def test_files_that_no_row_tells_of_are_collected(cast: Cast) -> None:
    digest, _ = store().put_stream([b"from half an archive"])
    assert actions.collect_blobs(grace_s=0) == len(b"from half an archive")
    assert not store().has(digest)
