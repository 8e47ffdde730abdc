"""Leases of validation runs: one holder at a time, late results ignored, hostile reports harmless."""

from __future__ import annotations

import pytest
from django.db import connection

from inference.protocol.supervision import CheckSeen, FileRef
from registry import actions, validation
from registry.models import Blob, ValidationRun, VersionFile, VersionStatus
from tests.support.cast import Cast
from tests.support.contents import new_version, seen


def lapse(run: ValidationRun) -> None:
    with connection.cursor() as cursor:
        cursor.execute("UPDATE registry_validationrun SET lease_until = now() - interval '1 s' WHERE id = %s", [run.pk])


def test_a_run_has_one_holder(cast: Cast) -> None:
    new_version(cast.actor("owner"), cast.red)
    (run,) = actions.claim_validations("a", 5)
    assert (run.host, run.lease, run.attempts) == ("a", 1, 1)
    assert actions.claim_validations("b", 5) == []
    assert actions.running_validations("a") == [run]
    assert actions.running_validations("b") == []


def test_the_limit_and_the_order_hold(cast: Cast) -> None:
    made = [new_version(cast.actor("owner"), cast.red, data) for data in (b"1", b"2", b"3")]
    assert [run.version for run in actions.claim_validations("a", 2)] == made[:2]
    assert [run.version for run in actions.claim_validations("b", 2)] == made[2:]


def test_a_late_result_is_ignored(cast: Cast) -> None:
    version = new_version(cast.actor("owner"), cast.red)
    (old,) = actions.claim_validations("a", 1)
    lapse(old)
    (new,) = actions.claim_validations("b", 1)
    assert new.lease == old.lease + 1
    assert not actions.validation_progress(old.id, old.lease, [CheckSeen("load", "running")])
    assert not actions.finish_validation(old.id, old.lease, seen(old, "rejected", reason="late"))
    version.refresh_from_db()
    assert version.status == VersionStatus.VALIDATING
    assert actions.finish_validation(new.id, new.lease, seen(new))
    assert not actions.finish_validation(new.id, new.lease, seen(new, "rejected"))
    version.refresh_from_db()
    assert version.status == VersionStatus.READY


def test_progress_renews_the_lease_and_shows_the_checklist(cast: Cast) -> None:
    new_version(cast.actor("owner"), cast.red)
    (run,) = actions.claim_validations("a", 1)
    lapse(run)
    assert actions.validation_progress(run.id, run.lease, [CheckSeen("load", "running")])
    run.refresh_from_db()
    assert run.checks[0]["name"] == "load"
    assert actions.claim_validations("b", 1) == []


def test_a_lost_run_is_tried_elsewhere_but_not_for_ever(cast: Cast) -> None:
    version = new_version(cast.actor("owner"), cast.red)
    for attempt in range(1, validation.MAX_ATTEMPTS + 1):
        (run,) = actions.claim_validations(f"host-{attempt}", 1)
        assert run.attempts == attempt
        assert actions.finish_validation(run.id, run.lease, seen(run, "lost"))
    assert actions.claim_validations("a", 1) == []
    version.refresh_from_db()
    assert version.status == VersionStatus.REJECTED
    assert "3 attempts" in version.reason


def test_hosts_that_vanish_are_counted_too(cast: Cast) -> None:
    version = new_version(cast.actor("owner"), cast.red)
    for _ in range(validation.MAX_ATTEMPTS):
        (run,) = actions.claim_validations("a", 1)
        lapse(run)
    assert actions.claim_validations("a", 1) == []
    version.refresh_from_db()
    assert version.status == VersionStatus.REJECTED


def test_a_report_with_nul_is_stored(cast: Cast) -> None:
    version = new_version(cast.actor("owner"), cast.red)
    (run,) = actions.claim_validations("a", 1)
    check = CheckSeen("load", "failed", message="a\0b")
    actions.finish_validation(run.id, run.lease, seen(run, "rejected", checks=[check], reason="bad\0byte"))
    version.refresh_from_db()
    assert version.status == VersionStatus.REJECTED
    assert version.reason == "bad\N{REPLACEMENT CHARACTER}byte"


def test_ready_without_a_signature_is_a_rejection(cast: Cast) -> None:
    version = new_version(cast.actor("owner"), cast.red)
    (run,) = actions.claim_validations("a", 1)
    actions.finish_validation(run.id, run.lease, seen(run, "ready", signature=None))
    version.refresh_from_db()
    assert version.status == VersionStatus.REJECTED


def test_what_conversion_made_is_served_instead_of_the_pickle(cast: Cast) -> None:
    version = new_version(cast.actor("owner"), cast.red)
    (run,) = actions.claim_validations("a", 1)
    made = FileRef("model.safetensors", 10, "a" * 64)
    actions.finish_validation(run.id, run.lease, seen(run, converted=[made]))
    version.refresh_from_db()
    assert [file["path"] for file in version.served_files] == ["echo.json", "model.safetensors"]
    assert [file["path"] for file in version.manifest["files"]] == ["echo.json"]
    assert Blob.objects.filter(pk="a" * 64).exists()
    assert VersionFile.objects.filter(version=version, blob_id="a" * 64).exists()


@pytest.mark.parametrize("state", ["ready", "rejected"])
def test_code_that_nobody_approved_never_becomes_ready(cast: Cast, state: str) -> None:
    version = new_version(cast.actor("owner"), cast.red)
    (run,) = actions.claim_validations("a", 1)
    actions.finish_validation(run.id, run.lease, seen(run, state, tier="code", format="python"))
    version.refresh_from_db()
    assert version.status == VersionStatus.AWAITING_APPROVAL
