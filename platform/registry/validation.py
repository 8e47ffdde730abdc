"""Validation as hosts see it: claim a run, report progress, hand in the result.

A claim is a lease by the database's clock with a growing number, the fencing token: whoever holds an older one has
lost the run, and what they report is ignored.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import msgspec
from django.db import transaction
from django.db.models import F, Q
from django.db.models.functions import Now

from accounts.audit import record
from accounts.permissions import SYSTEM
from inference.artifacts.manifest import Tier
from inference.protocol.supervision import CheckSeen, FileRef, ValidationSeen
from registry.aliases import set_alias
from registry.conversions import CONVERT, fail_conversion, finish_conversion
from registry.models import ValidationRun, Version, VersionFile, VersionStatus
from registry.moves import move
from registry.versions import lock_blobs

LEASE = timedelta(seconds=20)
MAX_ATTEMPTS = 3
# What a conversion replaces: never served, and so not laid out beside its safetensors.
CONVERTED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


@transaction.atomic
def claim_validations(host: str, limit: int = 1) -> list[ValidationRun]:
    """Runs that nobody works on (wanted, or with a lapsed lease) now leased to `host`; oldest first."""
    free = Q(state=ValidationRun.State.WANTED) | Q(state=ValidationRun.State.RUNNING, lease_until__lt=Now())
    rows = (
        ValidationRun.objects.select_for_update(skip_locked=True, of=("self",))
        .select_related("version__model__team")
        .filter(free, Q(purpose=CONVERT) | Q(version__status=VersionStatus.VALIDATING))
        .order_by("created_at", "pk")[:limit]
    )
    claimed = []
    for run in rows:
        if run.attempts >= MAX_ATTEMPTS:
            _give_up(run)
            continue
        ValidationRun.objects.filter(pk=run.pk).update(
            state=ValidationRun.State.RUNNING,
            host=host,
            lease=F("lease") + 1,
            attempts=F("attempts") + 1,
            lease_until=Now() + LEASE,
            checks=[],
        )
        run.refresh_from_db(fields=["state", "host", "lease", "attempts", "lease_until", "checks"])
        claimed.append(run)
    return claimed


def running_validations(host: str) -> list[ValidationRun]:
    """The runs that `host` holds: what its agent goes on with after a restart."""
    rows = ValidationRun.objects.filter(state=ValidationRun.State.RUNNING, host=host, lease_until__gte=Now())
    return list(rows.select_related("version__model__team").order_by("created_at", "pk"))


def validation_progress(run_id: uuid.UUID | str, lease: int, checks: Sequence[CheckSeen] | None = None) -> bool:
    """Renews the lease, and shows the checklist as it stands. False: the run is somebody else's by now."""
    changes: dict[str, Any] = {"lease_until": Now() + LEASE}
    if checks is not None:
        changes["checks"] = storable(msgspec.to_builtins(list(checks)))
    held = ValidationRun.objects.filter(pk=run_id, lease=lease, state=ValidationRun.State.RUNNING)
    return bool(held.update(**changes))


@transaction.atomic
def finish_validation(run_id: uuid.UUID | str, lease: int, seen: ValidationSeen) -> bool:
    """Takes the result of a run; False when its lease is an old one, and nothing has changed.

    1. Locks the run and compares the lease. 2. "lost": the run is wanted again. 3. A conversion ends here. 4. Code that
    nobody approved: awaits approval, or is rejected when its uploader had no right to it. 5. Else ready or rejected,
    with the report.
    """
    run = (
        ValidationRun.objects.select_for_update(of=("self",))
        .select_related("version__model__team")
        .filter(pk=run_id, lease=lease, state=ValidationRun.State.RUNNING)
        .first()
    )
    if run is None:
        return False
    if seen.state == "lost":
        _want_again(run)
        return True
    run.checks = storable(msgspec.to_builtins(seen.checks))
    run.state = ValidationRun.State.DONE
    run.save(update_fields=["checks", "state"])
    if run.purpose == CONVERT:
        finish_conversion(run, _cleaned(seen))
        return True
    version = run.version
    if version.status != VersionStatus.VALIDATING:
        return True
    if seen.tier == Tier.CODE and not version.approved_by and not _failed(seen):
        _hold_code(version, seen, run)
    elif seen.state == "ready" and seen.signature is not None:
        _accept(version, seen, run)
    else:
        _reject(version, seen.reason or "Validation ended without a reason.", seen.remedy, seen, run)
    return True


def _failed(seen: ValidationSeen) -> bool:
    return seen.state == "rejected" and any(check.state == "failed" for check in seen.checks)


def _want_again(run: ValidationRun) -> None:
    if run.attempts >= MAX_ATTEMPTS:
        _give_up(run)
        return
    ValidationRun.objects.filter(pk=run.pk).update(state=ValidationRun.State.WANTED, lease_until=None)


def _give_up(run: ValidationRun) -> None:
    if run.purpose == CONVERT:
        reason = f"No host could finish the conversion in {run.attempts} attempts."
        fail_conversion(run, reason, "Look at the hosts page for what is wrong there, then convert it again.")
        return
    ValidationRun.objects.filter(pk=run.pk).update(state=ValidationRun.State.DONE)
    if run.version.status == VersionStatus.VALIDATING:
        reason = f"No host could finish the validation in {run.attempts} attempts."
        remedy = "Look at the hosts page for what is wrong there, then upload the version again."
        _reject(run.version, reason, remedy, None, run)


def _hold_code(version: Version, seen: ValidationSeen, run: ValidationRun) -> None:
    if not version.code_allowed:
        reason = f"This version holds code ({seen.format}), and {version.creator} had no right to upload code."
        remedy = "Ask an operator of the team to upload it, or export it as torch.export, ONNX or safetensors."
        _reject(version, reason, remedy, seen, run)
        return
    changes = {"format": seen.format, "tier": seen.tier, "report": report_of(seen, run)}
    move(version, VersionStatus.AWAITING_APPROVAL, **changes)
    _record(version, VersionStatus.VALIDATING, {"tier": seen.tier, "format": seen.format})


def _accept(version: Version, seen: ValidationSeen, run: ValidationRun) -> None:
    changes: dict[str, object] = {
        "format": seen.format,
        "tier": seen.tier,
        "signature": storable(msgspec.to_builtins(seen.signature)),
        "report": report_of(seen, run),
        "reason": "",
        "remedy": "",
    }
    if seen.settings:
        changes["settings"] = storable(dict(seen.settings))
    if seen.converted:
        changes["served_files"] = _serve_converted(version, seen.converted)
    move(version, VersionStatus.READY, **changes)
    _record(version, VersionStatus.VALIDATING, {"format": seen.format, "tier": seen.tier, "host": run.host})
    if version.wanted_alias:
        set_alias(
            actor=SYSTEM, model=version.model, name=version.wanted_alias, version=version, reason="asked for at upload"
        )


def _serve_converted(version: Version, converted: Sequence[FileRef]) -> list[dict[str, Any]]:
    """What is served instead of the uploaded files: those without the pickles, and what was made of them."""
    kept = [msgspec.convert(file, FileRef) for file in version.manifest["files"]]
    made = {file.path for file in converted}
    kept = [file for file in kept if not file.path.endswith(CONVERTED_SUFFIXES) and file.path not in made]
    lock_blobs(converted)
    # A colon cannot stand in an uploaded path, so these never meet the rows of the uploaded files.
    VersionFile.objects.bulk_create(
        [VersionFile(version=version, blob_id=file.sha256, path=f"converted:{file.path}") for file in converted]
    )
    served: list[dict[str, Any]] = msgspec.to_builtins(sorted([*kept, *converted], key=lambda file: file.path))
    return served


def _reject(version: Version, reason: str, remedy: str, seen: ValidationSeen | None, run: ValidationRun) -> None:
    changes: dict[str, object] = {"reason": storable(reason)[:2000], "remedy": storable(remedy)[:2000]}
    if seen is not None:
        changes |= {"format": seen.format, "tier": seen.tier, "report": report_of(seen, run)}
    move(version, VersionStatus.REJECTED, **changes)
    _record(version, VersionStatus.VALIDATING, {"host": run.host}, reason=str(changes["reason"]))


def _record(version: Version, before: str, after: dict[str, Any], reason: str = "") -> None:
    record(
        SYSTEM,
        "validate_version",
        "version",
        str(version),
        team=version.model.team,
        before={"status": before},
        after={"status": version.status, **after},
        reason=reason,
    )


def _cleaned(seen: ValidationSeen) -> ValidationSeen:
    return msgspec.convert(storable(msgspec.to_builtins(seen)), ValidationSeen)


def report_of(seen: ValidationSeen, run: ValidationRun) -> dict[str, Any]:
    """What the version's page shows: the checklist, what was measured, where."""
    report: dict[str, Any] = {
        "checks": storable(msgspec.to_builtins(seen.checks)),
        "measurements": msgspec.to_builtins(seen.measurements),
        "host": run.host,
        "attempts": run.attempts,
    }
    return report


def storable(value: Any) -> Any:
    """`value` (strings, lists, mappings) without the characters that PostgreSQL cannot keep: it comes from a sandbox."""
    if isinstance(value, str):
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}")
    if isinstance(value, list):
        return [storable(item) for item in value]
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    return value
