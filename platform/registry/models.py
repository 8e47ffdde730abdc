"""Rows of models, versions, aliases and uploads. Written by registry.actions only."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.db import models

from accounts.models import Team, User


class Model(models.Model):
    """A named line of versions, owned by a team."""

    name = models.SlugField(max_length=64, unique=True)
    team = models.ForeignKey(Team, models.PROTECT, related_name="models")
    task = models.CharField(max_length=64, blank=True)
    description = models.TextField(blank=True, max_length=20_000)
    next_number = models.PositiveIntegerField(default=1)
    created_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.name


class VersionStatus(models.TextChoices):
    AWAITING_APPROVAL = "awaiting_approval", "Awaiting approval"
    VALIDATING = "validating", "Validating"
    READY = "ready", "Ready"
    REJECTED = "rejected", "Rejected"
    ARCHIVED = "archived", "Archived"


VERSION_MOVES: dict[str, frozenset[str]] = {
    VersionStatus.AWAITING_APPROVAL: frozenset({VersionStatus.VALIDATING, VersionStatus.REJECTED}),
    VersionStatus.VALIDATING: frozenset({VersionStatus.READY, VersionStatus.REJECTED, VersionStatus.AWAITING_APPROVAL}),
    VersionStatus.READY: frozenset({VersionStatus.ARCHIVED}),
    VersionStatus.REJECTED: frozenset({VersionStatus.ARCHIVED}),
    VersionStatus.ARCHIVED: frozenset(),
}


class Version(models.Model):
    """An immutable, numbered version. Numbers are never used again.

    manifest: inference.artifacts.manifest.Manifest as JSON; digest: its sha256. signature, format, tier, settings and
    report are written once, by validation; afterwards a database trigger refuses to change what the version is.
    code_allowed: its uploader had the right to upload code; wanted_alias: the alias to set when it is ready.
    """

    model = models.ForeignKey(Model, models.PROTECT, related_name="versions")
    number = models.PositiveIntegerField()
    status = models.CharField(max_length=20, choices=VersionStatus.choices, default=VersionStatus.VALIDATING)
    digest = models.CharField(max_length=64)
    manifest = models.JSONField()
    size_bytes = models.BigIntegerField(default=0)
    format = models.CharField(max_length=32, blank=True)
    tier = models.CharField(max_length=16, blank=True)
    signature = models.JSONField(null=True)
    settings = models.JSONField(default=dict)
    served_files = models.JSONField(null=True)
    report = models.JSONField(null=True)
    reason = models.TextField(blank=True)
    remedy = models.TextField(blank=True)
    created_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
    creator = models.CharField(max_length=200, blank=True)
    approved_by = models.CharField(max_length=200, blank=True)
    code_allowed = models.BooleanField(default=False)
    wanted_alias = models.CharField(max_length=64, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["model", "number"], name="number_once_per_model"),
            models.UniqueConstraint(
                fields=["model", "digest"],
                condition=~models.Q(status__in=["rejected", "archived"]),
                name="content_once_per_model",
            ),
        ]
        ordering: ClassVar = ["-number"]

    def __str__(self) -> str:
        return f"{self.model.name}:{self.number}"


class PipelineStep(models.Model):
    """One step of a ready pipeline: which version runs there, and how its tensors are named in the graph.

    input_map: the step's input -> the graph's tensor; output_map: the step's output -> the graph's tensor.
    """

    pipeline = models.ForeignKey(Version, models.CASCADE, related_name="steps")
    position = models.PositiveIntegerField()
    name = models.CharField(max_length=64)
    version = models.ForeignKey(Version, models.PROTECT, related_name="used_in")
    input_map = models.JSONField()
    output_map = models.JSONField()
    max_inflight = models.PositiveIntegerField(default=0)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["pipeline", "name"], name="step_once_per_pipeline")]
        ordering: ClassVar = ["pipeline_id", "position"]

    def __str__(self) -> str:
        return f"{self.pipeline}, step {self.name}"


class GoldenInput(models.Model):
    """A request to a model whose right answer is known: what every candidate must answer before it gets traffic.

    inputs, outputs: tensors as Open Inference Protocol JSON with flat data; parameters: of the request. comparison,
    tolerance, k: inference.protocol.routes.Comparison. source_version: the number of the version that answered so, null
    when a person wrote the answer. Append-only but for removal.
    """

    model = models.ForeignKey(Model, models.CASCADE, related_name="golden_inputs")
    name = models.SlugField(max_length=64)
    inputs = models.JSONField()
    parameters = models.JSONField(default=dict)
    outputs = models.JSONField()
    comparison = models.CharField(max_length=16, default="auto")
    tolerance = models.FloatField(default=0.01)
    k = models.PositiveIntegerField(default=5)
    source_version = models.PositiveIntegerField(null=True)
    created_by = models.CharField(max_length=200)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["model", "name"], name="golden_name_once_per_model")]
        ordering: ClassVar = ["model_id", "name"]

    def __str__(self) -> str:
        return f"{self.model.name}, golden input {self.name}"


class Alias(models.Model):
    """A movable name for a version of a model."""

    model = models.ForeignKey(Model, models.CASCADE, related_name="aliases")
    name = models.SlugField(max_length=64)
    version = models.ForeignKey(Version, models.PROTECT, related_name="aliases")

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["model", "name"], name="alias_once_per_model")]
        verbose_name_plural = "aliases"

    def __str__(self) -> str:
        return f"{self.model.name}@{self.name}"


class AliasChange(models.Model):
    """History of an alias: append-only."""

    model = models.ForeignKey(Model, models.CASCADE, related_name="alias_changes")
    name = models.CharField(max_length=64)
    from_version = models.ForeignKey(Version, models.PROTECT, null=True, related_name="+")
    to_version = models.ForeignKey(Version, models.PROTECT, null=True, related_name="+")
    actor = models.CharField(max_length=200)
    reason = models.CharField(max_length=500, blank=True)
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["-id"]

    def __str__(self) -> str:
        return f"{self.model.name}@{self.name} -> {self.to_version_id}"


class Blob(models.Model):
    """A file in the content-addressed store."""

    sha256 = models.CharField(max_length=64, primary_key=True)
    size_bytes = models.BigIntegerField()
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.sha256


class VersionFile(models.Model):
    """Which blob a version needs, as an index of its manifest: for "who may use this content?" and "is it unused?"."""

    version = models.ForeignKey(Version, models.CASCADE, related_name="file_rows")
    blob = models.ForeignKey(Blob, models.PROTECT, related_name="file_rows")
    path = models.CharField(max_length=600)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["version", "path"], name="path_once_per_version")]

    def __str__(self) -> str:
        return f"{self.version}/{self.path}"


class Upload(models.Model):
    """A file on its way in, by tus 1.0. Its offset is the size of its quarantine file, so a crash loses nothing.

    When the last byte is there, the file moves into the store under its digest and `sha256` is set.
    declared_sha256: what the client said the whole file's digest will be.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    filename = models.CharField(max_length=500)
    length = models.BigIntegerField()
    sha256 = models.CharField(max_length=64, blank=True, db_index=True)
    declared_sha256 = models.CharField(max_length=64, blank=True)
    team = models.ForeignKey(Team, models.CASCADE, related_name="+")
    owner = models.CharField(max_length=200)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.filename} ({self.id})"


class ValidationRun(models.Model):
    """The wish that a host validates a version. Leased: a lapsed lease is run again under a higher `lease`.

    purpose CONVERT: the version is a rejected torch pickle, and `result` says what was made of it (see conversions.py).
    """

    class Purpose(models.TextChoices):
        VALIDATE = "validate", "Validate"
        CONVERT = "convert", "Convert"

    class State(models.TextChoices):
        WANTED = "wanted", "Wanted"
        RUNNING = "running", "Running"
        DONE = "done", "Done"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    version = models.ForeignKey(Version, models.CASCADE, related_name="validation_runs")
    purpose = models.CharField(max_length=16, choices=Purpose.choices, default=Purpose.VALIDATE)
    state = models.CharField(max_length=16, choices=State.choices, default=State.WANTED)
    host = models.CharField(max_length=64, blank=True)
    lease = models.PositiveIntegerField(default=0)
    lease_until = models.DateTimeField(null=True)
    attempts = models.PositiveIntegerField(default=0)
    checks = models.JSONField(default=list)
    result = models.JSONField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"validation of {self.version}"
