"""Conversion of a lone torch pickle: offered when validation refused one, done in the sandbox when a person asks.

The version stays what it is, rejected. What was made is a blob of the store that the version holds, so it can be
downloaded, or named by its sha256 as a file of the next version.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from django.db import transaction

from accounts.audit import record
from accounts.permissions import SYSTEM, Actor, Verb
from inference.artifacts.manifest import Format
from inference.errors import Conflict, NotFound
from inference.protocol.supervision import FileRef, ValidationSeen
from registry.models import ValidationRun, Version, VersionFile, VersionStatus
from registry.rights import require_seen
from registry.storage import store
from registry.versions import lock_blobs, want_validation

CONVERT = ValidationRun.Purpose.CONVERT
FILE_NAME = "model.safetensors"
# A colon cannot stand in an uploaded path, so this never meets the rows of the uploaded files.
HELD_AS = f"converted:{FILE_NAME}"
MAX_TENSORS_SHOWN, MAX_NAME_CHARS = 1000, 200
NEXT = (
    "A Hugging Face model: make the next version of this file (by its sha256) beside config.json and tokenizer.json.",
    "Any other: load it into your module (safetensors.torch.load_model) and export that with torch.export.save(...).",
)


@dataclass(frozen=True, slots=True)
class Converted:
    """A file that a conversion made, and where it lies."""

    path: Path
    size_bytes: int
    sha256: str


@transaction.atomic
def convert_version(*, actor: Actor, version: Version) -> ValidationRun:
    """Wishes that a host converts this rejected torch pickle. Raises Conflict where there is nothing to convert, or it
    is under way or done already.
    """
    require_seen(actor, Verb.UPLOAD, version.model)
    version = Version.objects.select_for_update(of=("self",)).select_related("model__team").get(pk=version.pk)
    if not _is_convertible(version):
        raise Conflict(f"{version} is no rejected torch pickle: there is nothing to convert")
    held = _latest(version)
    if held is not None and not _has_failed(held):
        raise Conflict(f"{version} is converted already, or is just being converted")
    run = want_validation(version, CONVERT)
    record(actor, "convert_version", "version", str(version), team=version.model.team)
    return run


def converted_file(*, actor: Actor, version: Version) -> Converted:
    """What conversion made of this version. Only who may upload to the team may carry its weights away."""
    require_seen(actor, Verb.UPLOAD, version.model)
    row = version.file_rows.filter(path=HELD_AS).select_related("blob").first()
    if row is None or not store().has(row.blob_id):
        raise NotFound(f"nothing was converted from {version}")
    return Converted(store().path(row.blob_id), row.blob.size_bytes, row.blob_id)


def conversion_of(version: Version) -> dict[str, Any] | None:
    """What is shown about it: state "offered", "wanted", "running", "done" or "failed"; None where none is offered."""
    if version.format != Format.TORCH_PICKLE:
        return None
    run = _latest(version)
    if run is None:
        return {"state": "offered"} if _is_convertible(version) else None
    if run.state != ValidationRun.State.DONE:
        return {"state": run.state.lower(), "checks": run.checks}
    result: dict[str, Any] = run.result or {}
    return {**result, "checks": run.checks}


def finish_conversion(run: ValidationRun, seen: ValidationSeen) -> None:
    """Takes the result of a run whose lease was compared, in the caller's transaction."""
    made = next((file for file in seen.converted if file.path == FILE_NAME), None)
    if seen.state != "ready" or made is None:
        end_conversion(run, _failed(seen.reason or "The conversion ended without a reason.", seen.remedy))
        return
    lock_blobs([made])
    VersionFile.objects.get_or_create(version=run.version, path=HELD_AS, defaults={"blob_id": made.sha256})
    end_conversion(run, _done(made, seen))


def fail_conversion(run: ValidationRun, reason: str, remedy: str) -> None:
    """Ends a run that no host could do."""
    end_conversion(run, _failed(reason, remedy))


def end_conversion(run: ValidationRun, result: dict[str, Any]) -> None:
    run.state, run.result = ValidationRun.State.DONE, result
    run.save(update_fields=["state", "result"])
    after = {name: result[name] for name in ("state", "file", "reason") if result.get(name)}
    record(SYSTEM, "convert_version", "version", str(run.version), team=run.version.model.team, after=after)


def _done(made: FileRef, seen: ValidationSeen) -> dict[str, Any]:
    tensors = [
        {"name": tensor.name[:MAX_NAME_CHARS], "dtype": tensor.dtype[:16], "shape": tensor.shape[:16]}
        for tensor in seen.tensors[:MAX_TENSORS_SHOWN]
    ]
    return {
        "state": "done",
        "file": msgspec.to_builtins(made),
        "tensors": tensors,
        "tensor_count": seen.tensor_count,
        "next": list(NEXT),
    }


def _failed(reason: str, remedy: str) -> dict[str, Any]:
    return {"state": "failed", "reason": reason[:2000], "remedy": remedy[:2000]}


def _is_convertible(version: Version) -> bool:
    return version.status == VersionStatus.REJECTED and version.format == Format.TORCH_PICKLE


def _latest(version: Version) -> ValidationRun | None:
    return version.validation_runs.filter(purpose=CONVERT).order_by("-created_at").first()


def _has_failed(run: ValidationRun) -> bool:
    return run.state == ValidationRun.State.DONE and (run.result or {}).get("state") == "failed"
