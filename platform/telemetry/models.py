"""Rows of stored samples. Written by telemetry.actions only."""

from __future__ import annotations

from typing import ClassVar

from django.db import models


class StoredSample(models.Model):
    """One inference.protocol.samples.Sample: sums over one second. Unique by source and sequence number."""

    source = models.CharField(max_length=64)
    sequence = models.BigIntegerField()
    at = models.DateTimeField(db_index=True)
    endpoint = models.CharField(max_length=64)
    version = models.PositiveIntegerField()
    arm = models.CharField(max_length=16)
    requests = models.PositiveIntegerField(default=0)
    errors = models.PositiveIntegerField(default=0)
    retries = models.PositiveIntegerField(default=0)
    latency_sum_ms = models.FloatField(default=0)
    queue_sum_ms = models.FloatField(default=0)
    compute_sum_ms = models.FloatField(default=0)
    batch_sum = models.PositiveIntegerField(default=0)
    latency_counts = models.JSONField(default=dict)
    error_counts = models.JSONField(default=dict)
    input_sum_ms = models.FloatField(default=0)
    output_sum_ms = models.FloatField(default=0)
    batch_counts = models.JSONField(default=dict)
    queue_counts = models.JSONField(default=dict)
    first_counts = models.JSONField(default=dict)
    next_counts = models.JSONField(default=dict)
    invalid = models.PositiveIntegerField(default=0)
    rescued = models.PositiveIntegerField(default=0)
    drawn = models.PositiveIntegerField(default=0)
    scores = models.PositiveIntegerField(default=0)
    score_sum = models.FloatField(default=0)
    score_sq = models.FloatField(default=0)
    compared = models.PositiveIntegerField(default=0)
    drifted = models.PositiveIntegerField(default=0)
    drift_sum = models.FloatField(default=0)
    drift_sq = models.FloatField(default=0)
    dropped = models.PositiveIntegerField(default=0)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["source", "sequence"], name="sample_once")]
        indexes: ClassVar = [models.Index(fields=["endpoint", "at"])]

    def __str__(self) -> str:
        return f"{self.endpoint} {self.at}"


class ShadowDiff(models.Model):
    """One inference.protocol.shadows.Diff: a copied request whose two answers differ. The newest of each endpoint."""

    source = models.CharField(max_length=64)
    sequence = models.BigIntegerField()
    at = models.DateTimeField()
    endpoint = models.CharField(max_length=64)
    stable = models.PositiveIntegerField()
    candidate = models.PositiveIntegerField()
    distance = models.FloatField()
    is_drift = models.BooleanField()
    output = models.CharField(max_length=256, blank=True)
    kind = models.CharField(max_length=16)
    detail = models.CharField(max_length=200, blank=True)
    request = models.CharField(max_length=500, blank=True)
    stable_ms = models.FloatField()
    candidate_ms = models.FloatField()

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["source", "sequence"], name="diff_once")]
        indexes: ClassVar = [models.Index(fields=["endpoint", "-at"])]

    def __str__(self) -> str:
        return f"{self.endpoint} {self.at} {self.distance:.3f}"


class RecordedRequest(models.Model):
    """One inference.protocol.records.Record (`record`, msgpack), kept to be replayed. It names nobody who asked."""

    source = models.CharField(max_length=64)
    sequence = models.BigIntegerField()
    at = models.DateTimeField()
    endpoint = models.CharField(max_length=64)
    version = models.PositiveIntegerField()
    kind = models.CharField(max_length=16)
    is_repeatable = models.BooleanField()
    latency_ms = models.FloatField()
    size_bytes = models.PositiveIntegerField()
    record = models.BinaryField()

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["source", "sequence"], name="record_once")]
        indexes: ClassVar = [models.Index(fields=["endpoint", "-at"])]

    def __str__(self) -> str:
        return f"{self.endpoint} {self.at}"
