"""Models and versions: made, approved, refused, archived. Called through registry.actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from django.conf import settings as django_settings
from django.db import IntegrityError, transaction
from django.db.models import F, Q

from accounts.audit import record
from accounts.models import Team
from accounts.names import check_slug, check_text
from accounts.permissions import Actor, Verb, can, require
from accounts.teams import team_for
from accounts.wakeups import send_on_commit
from inference.artifacts.manifest import Manifest, digest_of
from inference.errors import ClientError, Conflict, Forbidden, NotFound
from inference.protocol.pipelines import ENTRY as PIPELINE_ENTRY
from inference.protocol.pipelines import MAX_BYTES as PIPELINE_BYTES
from inference.protocol.supervision import FileRef
from registry import pipelines
from registry.aliases import check_alias_name
from registry.content import NamedFile, resolve, runtime_settings
from registry.models import (
    Blob,
    Model,
    ValidationRun,
    Version,
    VersionFile,
    VersionStatus,
)
from registry.moves import move
from registry.rights import person_of, require_seen
from registry.storage import store

WAKE = "fleet.tasks.wake"
# Relations by which a version is held in use: by whom, and which of the rows count.
USED_BY = {
    "aliases": ("an alias", Q()),
    "variants": ("an endpoint", Q()),
    "adapter_of": ("an endpoint", Q()),
    "used_in": ("a pipeline", ~Q(pipeline__status=VersionStatus.ARCHIVED)),
}


@transaction.atomic
def create_model(*, actor: Actor, name: str, team: Team | None = None, task: str = "", description: str = "") -> Model:
    """A new, empty line of versions. Raises Conflict when the name is taken, by whomever."""
    team = team or team_for(actor, Verb.UPLOAD)
    require(actor, Verb.UPLOAD, team)
    check_slug("model", name)
    check_text("task", task, 64)
    check_text("description", description, 20_000)
    try:
        with transaction.atomic():
            model = Model.objects.create(
                name=name, team=team, task=task, description=description, created_by=person_of(actor)
            )
    except IntegrityError as error:
        raise Conflict(f"the model name '{name}' is taken") from error
    record(actor, "create_model", "model", name, team=team, after={"task": task, "description": description[:200]})
    return model


@transaction.atomic
def describe_model(*, actor: Actor, model: Model, task: str | None = None, description: str | None = None) -> Model:
    """Changes what people read about the model; never what its versions are."""
    require_seen(actor, Verb.UPLOAD, model)
    model = Model.objects.select_for_update().get(pk=model.pk)
    before = {"task": model.task, "description": model.description[:200]}
    model.task = model.task if task is None else check_text("task", task, 64)
    model.description = model.description if description is None else check_text("description", description, 20_000)
    model.save(update_fields=["task", "description"])
    after = {"task": model.task, "description": model.description[:200]}
    record(actor, "describe_model", "model", model.name, team=model.team, before=before, after=after)
    return model


def create_version(
    *,
    actor: Actor,
    model_name: str,
    files: Sequence[NamedFile],
    settings: dict[str, object] | None = None,
    alias: str | None = None,
    team: Team | None = None,
    number: int | None = None,
) -> Version:
    """Makes the next version of the model, which is made too when missing, and the wish that it is validated.

    1. Checks the right. 2. Finds the content, unpacking a lone archive into the store (no transaction open: that may
    take minutes). 3. In one transaction: the number, the version, its files, the validation wish, the audit entry.
    4. On commit wakes a host. `alias` is set when the version has become ready; `number` is the version's number, which
    must be above all that the model has had, and is counted on from.
    Raises Conflict when a living version of the model has the same files and settings. A pipeline is judged at once,
    for all that it is made of lies here.
    """
    if alias:
        check_alias_name(alias)
    runtime = runtime_settings(settings or {})
    target = _target(actor, model_name, team)
    return _create(actor, target, Manifest(files=resolve(actor, files), settings=runtime), alias or "", number)


def create_pipeline(
    *, actor: Actor, model_name: str, definition: bytes, alias: str | None = None, team: Team | None = None
) -> Version:
    """As create_version, for a definition that was written here and not uploaded. Raises ClientError when too long."""
    if len(definition) > PIPELINE_BYTES:
        raise ClientError(f"a pipeline's definition has {PIPELINE_BYTES} bytes at most")
    if alias:
        check_alias_name(alias)
    target = _target(actor, model_name, team)
    sha256, size = store().put_stream([definition])
    return _create(actor, target, Manifest(files=[FileRef(PIPELINE_ENTRY, size, sha256)]), alias or "")


class _Target(NamedTuple):
    """Where a version goes. is_new: the model is to be made; who was faster with its name keeps it."""

    name: str
    owner: Team
    is_new: bool


def _target(actor: Actor, model_name: str, team: Team | None) -> _Target:
    """Raises Forbidden, and NotFound for what is not seen."""
    check_slug("model", model_name)
    model = Model.objects.filter(name=model_name).select_related("team").first()
    owner = model.team if model else (team or team_for(actor, Verb.UPLOAD))
    if model:
        require_seen(actor, Verb.UPLOAD, model)
    require(actor, Verb.UPLOAD, owner)
    return _Target(model_name, owner, is_new=model is None)


def _create(actor: Actor, target: _Target, manifest: Manifest, alias: str, number: int | None = None) -> Version:
    definition = pipelines.definition_of(manifest)
    with transaction.atomic():
        if target.is_new:
            create_model(actor=actor, name=target.name, team=target.owner)
        if number is not None:
            _count_to(target.name, number)
        if definition is None:
            version = _write_version(actor, target.name, manifest, alias)
            want_validation(version)
            return version
        judged = pipelines.judge(definition, manifest, target.owner)
        version = _write_version(actor, target.name, judged.manifest, alias)
        pipelines.settle(version, judged)
        return version


def _count_to(model_name: str, number: int) -> None:
    """The model's next version gets this number. Raises Conflict where it, or a higher one, was given before."""
    model = Model.objects.select_for_update().get(name=model_name)
    if number < model.next_number:
        raise Conflict(f"{model_name} has had version {model.next_number - 1}: {number} cannot be given any more")
    Model.objects.filter(pk=model.pk).update(next_number=number)


def _write_version(actor: Actor, model_name: str, manifest: Manifest, alias: str) -> Version:
    model = Model.objects.select_for_update().select_related("team").get(name=model_name)
    lock_blobs(manifest.files)
    if not all(store().has(file.sha256) for file in manifest.files):
        raise NotFound("some of the content is no longer stored: upload it again")
    digest = digest_of(manifest)
    twin = model.versions.filter(digest=digest).exclude(status__in=[VersionStatus.REJECTED, VersionStatus.ARCHIVED])
    if held := twin.first():
        raise Conflict(f"{model.name}:{held.number} already has exactly these files and settings")
    version = Version.objects.create(
        model=model,
        number=model.next_number,
        digest=digest,
        manifest=msgspec.to_builtins(manifest),
        settings=msgspec.to_builtins(manifest.settings),
        size_bytes=sum(file.size_bytes for file in manifest.files),
        created_by=person_of(actor),
        creator=actor.name,
        code_allowed=can(actor, Verb.UPLOAD_CODE, model),
        wanted_alias=alias,
    )
    Model.objects.filter(pk=model.pk).update(next_number=F("next_number") + 1)
    attach_files(version, manifest.files)
    after = {"digest": digest, "files": len(manifest.files), "size_bytes": version.size_bytes}
    record(actor, "create_version", "version", str(version), team=model.team, after=after)
    return version


def lock_blobs(files: Sequence[FileRef]) -> None:
    """Holds the blobs against collection until the version that needs them is committed."""
    sizes = {file.sha256: file.size_bytes for file in files}
    Blob.objects.bulk_create(
        [Blob(sha256=digest, size_bytes=size) for digest, size in sorted(sizes.items())],
        update_conflicts=True,
        update_fields=["size_bytes"],
        unique_fields=["sha256"],
    )


def attach_files(version: Version, files: Sequence[FileRef]) -> None:
    """Writes which blobs the version needs."""
    VersionFile.objects.bulk_create(
        [VersionFile(version=version, blob_id=file.sha256, path=file.path) for file in files]
    )


def want_validation(version: Version, purpose: str = ValidationRun.Purpose.VALIDATE) -> ValidationRun:
    run = ValidationRun.objects.create(version=version, purpose=purpose)
    send_on_commit(WAKE)
    return run


@transaction.atomic
def approve_version(*, actor: Actor, version: Version, reason: str = "") -> Version:
    """A second person lets a version that holds code run; validation then runs it for the first time."""
    require_seen(actor, Verb.APPROVE, version.model)
    alone = _is_same_person(actor, version)
    if alone and not django_settings.LONE_ADMIN_APPROVES:
        raise Forbidden(
            f"{version} needs the approval of a second person, for you uploaded it "
            "(SERINUS_LONE_ADMIN_APPROVES=1 lets a lone admin approve)"
        )
    move(version, VersionStatus.VALIDATING, approved_by=actor.name, report=None)
    want_validation(version)
    after = {"status": version.status, "approved_by": actor.name, "alone": alone}
    before = {"status": VersionStatus.AWAITING_APPROVAL}
    record(
        actor,
        "approve_version",
        "version",
        str(version),
        team=version.model.team,
        before=before,
        after=after,
        reason=reason,
    )
    return version


def _is_same_person(actor: Actor, version: Version) -> bool:
    person = person_of(actor)
    if person is not None and version.created_by_id is not None:
        return bool(person.pk == version.created_by_id)
    return actor.name == version.creator


@transaction.atomic
def reject_version(*, actor: Actor, version: Version, reason: str) -> Version:
    """A person refuses a version that holds code."""
    require_seen(actor, Verb.APPROVE, version.model)
    if not reason.strip():
        raise ClientError("say why: the uploader reads it")
    check_text("reason", reason, 500)
    if version.status != VersionStatus.AWAITING_APPROVAL:
        raise Conflict(f"{version} is {version.status}: only one that awaits approval can be refused")
    move(version, VersionStatus.REJECTED, reason=f"{actor.name} refused it: {reason}")
    record(
        actor,
        "reject_version",
        "version",
        str(version),
        team=version.model.team,
        after={"status": version.status},
        reason=reason,
    )
    return version


@transaction.atomic
def archive_version(*, actor: Actor, version: Version, reason: str = "") -> Version:
    """Puts a version away for ever. Raises Conflict while an alias, an endpoint or a pipeline uses it."""
    require_seen(actor, Verb.DEPLOY, version.model)
    version = Version.objects.select_for_update().select_related("model__team").get(pk=version.pk)
    for relation, (user, living) in USED_BY.items():
        rows = getattr(version, relation, None)
        held = rows.filter(living).first() if rows is not None else None
        if held is not None:
            raise Conflict(f"{version} is in use by {user} ({held}): take it out of there first")
    before = {"status": version.status}
    move(version, VersionStatus.ARCHIVED)
    record(
        actor,
        "archive_version",
        "version",
        str(version),
        team=version.model.team,
        before=before,
        after={"status": version.status},
        reason=reason,
    )
    return version
