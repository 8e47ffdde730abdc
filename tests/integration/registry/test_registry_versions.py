"""Versions: made once, numbered for ever, never changed; approved by a second person; put away when unused."""

from __future__ import annotations

import hashlib

import pytest
from django.db import IntegrityError, connection, transaction

from accounts.models import AuditEntry
from inference.errors import ClientError, Conflict, Forbidden, NotFound, Rejected
from registry import actions
from registry.models import Blob, Model, Upload, ValidationRun, Version, VersionFile, VersionStatus
from registry.storage import store
from tests.support.cast import Cast
from tests.support.contents import new_version, ready_version, sent, validated, zipped


def test_a_version_its_wish_and_its_entry_come_at_once(cast: Cast) -> None:
    version = new_version(cast.actor("developer"), cast.red, b"{}", alias="champion")
    assert (version.number, version.status, version.model.team) == (1, VersionStatus.VALIDATING, cast.red)
    assert version.size_bytes == 2
    assert ValidationRun.objects.get().version == version
    verbs = list(AuditEntry.objects.order_by("pk").values_list("verb", flat=True))
    assert verbs == ["begin_upload", "complete_upload", "create_model", "create_version"]
    assert not version.model.aliases.exists()


def test_hosts_are_woken_after_the_commit(
    cast: Cast, monkeypatch: pytest.MonkeyPatch, django_capture_on_commit_callbacks: object
) -> None:
    woken: list[str] = []
    monkeypatch.setattr("accounts.wakeups.send", lambda task, *args, **options: woken.append(task))
    with django_capture_on_commit_callbacks(execute=True):  # type: ignore[operator]
        new_version(cast.actor("developer"), cast.red)
        assert woken == []
    assert woken == ["fleet.tasks.wake"]


def test_numbers_grow_and_are_not_used_again(cast: Cast) -> None:
    owner = cast.actor("owner")
    first, second = (new_version(owner, cast.red, data) for data in (b"1", b"2"))
    validated(first, "rejected", reason="no")
    actions.archive_version(actor=owner, version=first)
    assert (second.number, new_version(owner, cast.red, b"3").number) == (2, 3)


def test_equal_content_is_stored_once_and_refused_as_a_second_version(cast: Cast) -> None:
    new_version(cast.actor("developer"), cast.red)
    with pytest.raises(Conflict, match="digits:1 already has exactly these files"):
        new_version(cast.actor("owner"), cast.red)
    new_version(cast.actor("owner"), cast.red, settings={"max_batch_size": 3})
    assert Blob.objects.count() == 1
    assert Model.objects.get().versions.count() == 2


def test_content_whose_version_was_rejected_may_come_again(cast: Cast) -> None:
    validated(new_version(cast.actor("developer"), cast.red), "rejected", reason="no")
    assert new_version(cast.actor("developer"), cast.red).number == 2


def test_a_lone_archive_is_unpacked(cast: Cast) -> None:
    data = zipped({"folder/config.json": b"{}", "folder/sub/weights.bin": b"w" * 100})
    version = new_version(cast.actor("developer"), cast.red, data)
    assert [file["path"] for file in version.manifest["files"]] == ["config.json", "sub/weights.bin"]
    assert store().path(hashlib.sha256(b"w" * 100).hexdigest()).read_bytes() == b"w" * 100
    assert VersionFile.objects.filter(version=version).count() == 2


def test_an_archive_that_climbs_out_is_refused_and_nothing_is_made(cast: Cast) -> None:
    with pytest.raises(Rejected):
        new_version(cast.actor("developer"), cast.red, zipped({"../../evil": b"x"}))
    assert not Version.objects.exists()
    assert not Model.objects.exists()


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a//b", "a/./b", "", "a\\b", "a\0b", "x" * 600])
def test_bad_paths_are_refused(cast: Cast, path: str) -> None:
    upload = sent(cast.actor("developer"), cast.red, b"{}")
    with pytest.raises(Rejected):
        actions.create_version(
            actor=cast.actor("developer"), model_name="m", files=[{"path": path, "upload": str(upload.id)}]
        )


@pytest.mark.parametrize(
    "given", [{"max_batch_size": -1}, {"window_ms": 99}, {"nope": 1}, {"task": "a\0b"}, {"labels": ["\ud800"]}]
)
def test_bad_settings_name_the_field(cast: Cast, given: dict[str, object]) -> None:
    with pytest.raises(ClientError, match="runtime"):
        new_version(cast.actor("developer"), cast.red, settings=given)


def test_only_finished_uploads_of_ones_own_team_count(cast: Cast) -> None:
    developer, stranger = cast.actor("developer"), cast.actor("stranger")
    open_one = actions.begin_upload(actor=developer, team=cast.red, filename="f", length=5)
    files = [{"path": "f", "upload": str(open_one.id)}]
    with pytest.raises(Conflict, match="not complete"):
        actions.create_version(actor=developer, model_name="m", files=files)  # type: ignore[arg-type]
    done = sent(developer, cast.red, b"secret")
    for named in ({"upload": str(done.id)}, {"sha256": done.sha256}):
        with pytest.raises(NotFound):
            actions.create_version(actor=stranger, model_name="m", files=[{"path": "f", **named}])  # type: ignore[list-item]
    assert not Version.objects.exists()


def test_known_content_need_not_be_sent_again(cast: Cast) -> None:
    first = new_version(cast.actor("developer"), cast.red)
    Upload.objects.all().delete()
    digest = first.manifest["files"][0]["sha256"]
    again = actions.create_version(
        actor=cast.actor("developer"), model_name="other", files=[{"path": "echo.json", "sha256": digest}]
    )
    assert again.digest == first.digest


def test_another_teams_model_does_not_exist_for_one(cast: Cast) -> None:
    new_version(cast.actor("owner"), cast.red)
    with pytest.raises(NotFound):
        new_version(cast.actor("stranger"), cast.blue, b"other")
    with pytest.raises(Forbidden):
        new_version(cast.actor("teammate"), cast.red, b"other")


def test_what_a_version_is_made_of_never_changes(cast: Cast) -> None:
    version = ready_version(cast.actor("owner"), cast.red)
    for change in (
        "digest = 'x'", "manifest = '{}'", "number = 9", "signature = '{}'", "settings = '{\"x\": 1}'", "status = 'validating'",
        "report = '{}'", "tier = 'code'", "format = 'x'", "served_files = '[]'", "approved_by = 'me'",
    ):  # fmt: skip
        with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"UPDATE registry_version SET {change} WHERE id = %s", [version.pk])
    with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("DELETE FROM registry_versionfile; DELETE FROM registry_version")


def code_version(cast: Cast, name: str) -> Version:
    version = new_version(cast.actor(name), cast.red, name.encode())
    return validated(version, "rejected", checks=[], tier="code", format="torchscript")


def test_code_waits_for_a_second_person(cast: Cast) -> None:
    version = code_version(cast, "owner")
    assert version.status == VersionStatus.AWAITING_APPROVAL
    assert actions.claim_validations("host-a", 5) == []
    with pytest.raises(Forbidden, match="second person"):
        actions.approve_version(actor=cast.actor("owner"), version=version)
    with pytest.raises(Forbidden):
        actions.approve_version(actor=cast.actor("developer"), version=version)
    actions.approve_version(actor=cast.actor("root"), version=version, reason="read it")
    assert (version.status, version.approved_by) == (VersionStatus.VALIDATING, "root")
    assert validated(version, tier="code", format="torchscript").status == VersionStatus.READY
    assert AuditEntry.objects.get(verb="approve_version").after["alone"] is False


def test_ones_own_key_is_no_second_person(cast: Cast) -> None:
    version = code_version(cast, "owner")
    with pytest.raises(Forbidden, match="second person"):
        actions.approve_version(actor=cast.key_actor("owner"), version=version)


def test_a_lone_admin_may_approve_where_the_setting_says_so(cast: Cast, settings: object) -> None:
    settings.LONE_ADMIN_APPROVES = True  # type: ignore[attr-defined]
    version = code_version(cast, "owner")
    actions.approve_version(actor=cast.actor("owner"), version=version)
    assert AuditEntry.objects.get(verb="approve_version").after["alone"] is True


def test_code_of_somebody_without_the_right_is_rejected(cast: Cast) -> None:
    version = code_version(cast, "developer")
    assert version.status == VersionStatus.REJECTED
    assert "no right to upload code" in version.reason
    assert version.remedy


def test_code_can_be_refused_by_a_person(cast: Cast) -> None:
    version = code_version(cast, "owner")
    with pytest.raises(ClientError):
        actions.reject_version(actor=cast.actor("root"), version=version, reason=" ")
    actions.reject_version(actor=cast.actor("root"), version=version, reason="it phones home")
    assert version.status == VersionStatus.REJECTED
    assert "it phones home" in version.reason
    with pytest.raises(Conflict):
        actions.approve_version(actor=cast.actor("root"), version=version)


def test_aliases_move_with_history(cast: Cast) -> None:
    owner = cast.actor("owner")
    first, second = (ready_version(owner, cast.red, data) for data in (b"1", b"2"))
    model = first.model
    actions.set_alias(actor=owner, model=model, name="champion", version=first, reason="first")
    actions.set_alias(actor=owner, model=model, name="champion", version=first)
    actions.set_alias(actor=owner, model=model, name="champion", version=second, reason="better")
    actions.delete_alias(actor=owner, model=model, name="champion")
    history = [(c.from_version_id, c.to_version_id, c.reason) for c in model.alias_changes.order_by("pk")]
    assert history == [(None, first.pk, "first"), (first.pk, second.pk, "better"), (second.pk, None, "")]
    with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
        model.alias_changes.update(reason="rewritten")


def test_an_alias_needs_a_ready_version_of_the_model(cast: Cast) -> None:
    owner = cast.actor("owner")
    waiting, other = new_version(owner, cast.red), ready_version(owner, cast.red, name="other")
    with pytest.raises(Conflict, match="ready"):
        actions.set_alias(actor=owner, model=waiting.model, name="a", version=waiting)
    with pytest.raises(ClientError, match="no version of"):
        actions.set_alias(actor=owner, model=waiting.model, name="a", version=other)
    for name in ("latest", "7", "../x"):
        with pytest.raises(ClientError):
            actions.set_alias(actor=owner, model=other.model, name=name, version=other)


def test_an_alias_asked_for_at_upload_is_set_when_ready(cast: Cast) -> None:
    version = ready_version(cast.actor("developer"), cast.red, alias="champion")
    assert version.aliases.get().name == "champion"


def test_a_version_in_use_is_not_put_away(cast: Cast) -> None:
    version = ready_version(cast.actor("owner"), cast.red, alias="champion")
    with pytest.raises(Conflict, match="an alias"):
        actions.archive_version(actor=cast.actor("owner"), version=version)
    actions.delete_alias(actor=cast.actor("owner"), model=version.model, name="champion")
    archived = actions.archive_version(actor=cast.actor("owner"), version=version)
    assert archived.status == VersionStatus.ARCHIVED


def test_a_number_may_be_chosen_above_all_that_were_given(cast: Cast) -> None:
    owner = cast.actor("owner")
    assert new_version(owner, cast.red, b'{"a": 1}', number=3).number == 3
    assert new_version(owner, cast.red, b'{"a": 2}').number == 4
    for taken in (1, 3, 4):
        with pytest.raises(Conflict, match="cannot be given any more"):
            new_version(owner, cast.red, b'{"a": 3}', number=taken)
    assert new_version(owner, cast.red, b'{"a": 3}', number=9).number == 9
