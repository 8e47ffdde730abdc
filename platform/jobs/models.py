"""Rows of files, batches and their segments. Written by jobs.files, jobs.actions and jobs.leases only."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models.functions import Now

from accounts.models import ApiKey, Team, User
from jobs.statuses import Status


class Owned(models.Model):
    """Whose it is. key or person: who made it; owner: their name then, for when they are gone."""

    team = models.ForeignKey(Team, models.CASCADE, related_name="+")
    key = models.ForeignKey(ApiKey, models.SET_NULL, null=True, related_name="+")
    person = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
    owner = models.CharField(max_length=200)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        abstract = True


class File(Owned):
    """A file as OpenAI's clients know it; its bytes lie in the folder of jobs.store under `public_id`."""

    class Purpose(models.TextChoices):
        BATCH = "batch", "Batch"
        BATCH_OUTPUT = "batch_output", "Batch output"

    public_id = models.CharField(max_length=40, unique=True)
    purpose = models.CharField(max_length=16, choices=Purpose.choices)
    filename = models.CharField(max_length=255)
    size_bytes = models.BigIntegerField()
    sha256 = models.CharField(max_length=64)
    expires_at = models.DateTimeField(null=True, db_index=True)

    class Meta:
        indexes: ClassVar = [models.Index(fields=["team", "-id"], name="files_of_team")]

    def __str__(self) -> str:
        return self.public_id


class Batch(Owned):
    """Lines of one file, run through one endpoint of the gateway.

    cursor: lines that are committed, all before it; offset: where in the file the line at the cursor begins; fence,
    lease_until: see jobs.slices; resume_at: not before, because the gateway refused; window: lines at once, see
    jobs.pace; troubles: steps in a row that failed for reasons of our own.
    """

    public_id = models.CharField(max_length=40, unique=True)
    endpoint = models.CharField(max_length=32)
    input_file = models.ForeignKey(File, models.SET_NULL, null=True, related_name="batches")
    input_file_name = models.CharField(max_length=40)
    output_file = models.ForeignKey(File, models.SET_NULL, null=True, related_name="+")
    error_file = models.ForeignKey(File, models.SET_NULL, null=True, related_name="+")
    completion_window = models.CharField(max_length=8)
    metadata = models.JSONField(null=True)
    output_life_s = models.PositiveIntegerField(default=0)
    model = models.CharField(max_length=200, blank=True)
    status = models.CharField(max_length=12, choices=Status.choices, default=Status.VALIDATING, db_index=True)
    errors = models.JSONField(default=list)
    total = models.PositiveIntegerField(default=0)
    completed = models.PositiveIntegerField(default=0)
    failed = models.PositiveIntegerField(default=0)
    cursor = models.PositiveIntegerField(default=0)
    offset = models.BigIntegerField(default=0)
    fence = models.PositiveIntegerField(default=0)
    lease_until = models.DateTimeField(null=True)
    resume_at = models.DateTimeField(null=True)
    window = models.FloatField(default=0)
    troubles = models.PositiveIntegerField(default=0)
    expires_at = models.DateTimeField()
    in_progress_at = models.DateTimeField(null=True)
    finalizing_at = models.DateTimeField(null=True)
    cancelling_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)

    class Meta:
        indexes: ClassVar = [models.Index(fields=["team", "-id"], name="batches_of_team")]
        constraints: ClassVar = [
            models.CheckConstraint(condition=models.Q(cursor__lte=models.F("total")), name="cursor_within_total")
        ]
        verbose_name_plural = "batches"

    def __str__(self) -> str:
        return self.public_id


class SegmentRow(models.Model):
    """jobs.slices.Segment, kept. A fence has one segment and a line one place: the constraints hold what the law says."""

    batch = models.ForeignKey(Batch, models.CASCADE, related_name="segments")
    fence = models.PositiveIntegerField()
    first = models.PositiveIntegerField()
    count = models.PositiveIntegerField()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["batch", "fence"], name="one_segment_per_fence"),
            models.UniqueConstraint(fields=["batch", "first"], name="one_segment_per_line"),
        ]

    def __str__(self) -> str:
        return f"{self.batch} [{self.first}, {self.first + self.count})"
