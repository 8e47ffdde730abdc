"""Content in the store, by the same actions as a real upload."""

from __future__ import annotations

import io
import zipfile
from typing import Any

from accounts.models import Team
from accounts.permissions import Actor
from inference.protocol.oip import Signature, TensorSpec
from inference.protocol.supervision import CheckSeen, FileRef, ValidationSeen
from registry import actions, uploads
from registry.models import Upload, ValidationRun, Version

SIGNATURE = Signature(
    inputs=[TensorSpec("x", "FP32", [-1, 4])],
    outputs=[TensorSpec("y", "FP32", [-1, 4])],
    max_batch_size=8,
    platform="echo",
)


def sent(actor: Actor, team: Team, data: bytes, filename: str = "echo.json") -> Upload:
    """A finished upload."""
    upload = actions.begin_upload(actor=actor, team=team, filename=filename, length=len(data))
    uploads.file_of(upload.id).write_bytes(data)
    return actions.complete_upload(actor=actor, upload=upload)


def new_version(actor: Actor, team: Team, data: bytes = b"{}", name: str = "digits", **options: Any) -> Version:
    upload = sent(actor, team, data)
    files = [{"path": "echo.json", "upload": str(upload.id)}]
    return actions.create_version(actor=actor, model_name=name, files=files, team=team, **options)  # type: ignore[arg-type]


def seen(run: ValidationRun, state: str = "ready", **changes: Any) -> ValidationSeen:
    given: dict[str, Any] = {
        "checks": [CheckSeen("hashes", "passed"), CheckSeen("load", "passed", ms=3.0)],
        "format": "echo",
        "tier": "data",
        "signature": SIGNATURE if state == "ready" else None,
    }
    return ValidationSeen(run=str(run.id), lease=run.lease, state=state, **(given | changes))


def validated(version: Version, state: str = "ready", **changes: Any) -> Version:
    """Runs the wish of this version to its end, as a host would."""
    run = next(run for run in actions.claim_validations("host-a", 50) if run.version_id == version.pk)
    assert actions.finish_validation(run.id, run.lease, seen(run, state, **changes))
    version.refresh_from_db()
    return version


def ready_version(actor: Actor, team: Team, data: bytes = b"{}", name: str = "digits", **options: Any) -> Version:
    return validated(new_version(actor, team, data, name, **options))


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


__all__ = ["SIGNATURE", "FileRef", "new_version", "ready_version", "seen", "sent", "validated", "zipped"]
