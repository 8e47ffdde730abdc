"""From what a caller names (uploads and digests) to the files of a version. Reads only; never trusts a digest alone."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Sequence
from typing import TypedDict

import msgspec
from django.db.models import Q

from accounts.names import is_storable
from accounts.permissions import Actor, Verb, visible
from inference.artifacts import archive
from inference.artifacts.manifest import RuntimeSettings, settings_from
from inference.artifacts.paths import check_paths
from inference.errors import ClientError, Conflict, NotFound
from inference.protocol.supervision import FileRef
from registry.models import Blob, Upload, VersionFile
from registry.storage import store

SHA256 = re.compile(r"[0-9a-f]{64}")
MAX_FILES = 2000


class NamedFile(TypedDict, total=False):
    """A file as the caller names it: its path, and an upload's id or a digest."""

    path: str
    upload: str
    sha256: str


def resolve(actor: Actor, files: Sequence[NamedFile]) -> list[FileRef]:
    """The files with sizes and digests; a zip or tar alone becomes its members.

    Raises NotFound for content the actor may not use, Conflict for an upload that is not complete, Rejected for bad
    paths and archives.
    """
    if not 1 <= len(files) <= MAX_FILES:
        raise ClientError(f"a version has 1 to {MAX_FILES} files")
    check_paths(file.get("path", "") for file in files)
    digests = [*_of_uploads(actor, files), *_of_digests(actor, files)]
    sizes = dict(Blob.objects.filter(sha256__in={digest for _, digest in digests}).values_list("sha256", "size_bytes"))
    refs = []
    for path, digest in digests:
        if digest not in sizes or not store().has(digest):
            raise NotFound(f"the content of {path} is no longer stored: upload it again")
        refs.append(FileRef(path=path, size_bytes=sizes[digest], sha256=digest))
    if len(refs) == 1 and archive.kind_of(store().path(refs[0].sha256)) is not None:
        refs = archive.unpack_into(store(), store().path(refs[0].sha256))
        if not refs:
            raise ClientError("the archive holds no file")
    return sorted(refs, key=lambda ref: ref.path)


def _of_uploads(actor: Actor, files: Sequence[NamedFile]) -> list[tuple[str, str]]:
    wanted = {file["path"]: _upload_id(file["upload"]) for file in files if "upload" in file}
    rows = visible(actor, Upload.objects.filter(id__in=set(wanted.values())), verb=Verb.UPLOAD).in_bulk()
    found = []
    for path, upload_id in wanted.items():
        row = rows.get(upload_id)
        if row is None:
            raise NotFound(f"there is no upload {upload_id}: it may have expired")
        if not row.sha256:
            raise Conflict(f"the upload of {path} is not complete yet")
        found.append((path, row.sha256))
    return found


def _upload_id(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text.rstrip("/").rsplit("/", 1)[-1])
    except ValueError:
        raise ClientError("an upload is named by its id or its URL") from None


def _of_digests(actor: Actor, files: Sequence[NamedFile]) -> list[tuple[str, str]]:
    wanted = [(file["path"], file["sha256"]) for file in files if "upload" not in file]
    known = usable(actor, [digest for _, digest in wanted])
    for path, digest in wanted:
        if digest not in known:
            raise NotFound(f"the content of {path} ({digest[:12]}...) is not known here: upload it")
    return wanted


def usable(actor: Actor, digests: Iterable[str]) -> set[str]:
    """Those of `digests` whose content the actor may use: that of versions and finished uploads of the teams for which
    they may upload.

    Knowing a digest is no proof of having the content, so what only others have looks like what nobody has; and who
    may only look at a team's models must not carry their weights to another team.
    """
    listed = [digest for digest in digests if SHA256.fullmatch(digest)]
    if not listed:
        return set()
    rows = VersionFile.objects.filter(blob_id__in=listed)
    owned = visible(actor, rows, "version__model__team", verb=Verb.UPLOAD).values_list("blob_id", flat=True)
    sent = visible(actor, Upload.objects.filter(sha256__in=listed), verb=Verb.UPLOAD).values_list("sha256", flat=True)
    return set(owned) | set(sent)


def unused() -> Q:
    """Blobs that no version and no upload needs."""
    return Q(file_rows__isnull=True) & ~Q(sha256__in=Upload.objects.exclude(sha256="").values("sha256"))


def runtime_settings(mapping: dict[str, object]) -> RuntimeSettings:
    """Raises ClientError naming the field that is not valid."""
    if not is_storable(json.dumps(mapping, ensure_ascii=False, default=str).replace("\\u0000", "\0")):
        raise ClientError("runtime: text must hold no NUL character")
    try:
        return settings_from(mapping)
    except msgspec.ValidationError as error:
        raise ClientError(f"runtime: {error}") from error
