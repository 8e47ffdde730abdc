"""The only writer of this app's rows, behind one door: transaction, compare-and-swap, audit entry, on_commit.

Every action of a person takes the actor, checks the right first, and raises only inference.errors.
"""

from __future__ import annotations

from registry.aliases import delete_alias, set_alias
from registry.conversions import convert_version, converted_file
from registry.golden import remove_golden, save_golden
from registry.uploads import (
    begin_upload,
    cancel_upload,
    collect_blobs,
    complete_upload,
    expire_uploads,
    renew_upload,
)
from registry.validation import claim_validations, finish_validation, running_validations, validation_progress
from registry.versions import (
    approve_version,
    archive_version,
    create_model,
    create_pipeline,
    create_version,
    describe_model,
    reject_version,
)

__all__ = [
    "approve_version",
    "archive_version",
    "begin_upload",
    "cancel_upload",
    "claim_validations",
    "collect_blobs",
    "complete_upload",
    "convert_version",
    "converted_file",
    "create_model",
    "create_pipeline",
    "create_version",
    "delete_alias",
    "describe_model",
    "expire_uploads",
    "finish_validation",
    "reject_version",
    "remove_golden",
    "renew_upload",
    "running_validations",
    "save_golden",
    "set_alias",
    "validation_progress",
]
