"""Rows of replays: recorded requests asked again of a candidate. Written by rollouts.replay only."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.db import models

from accounts.models import Team
from endpoints.models import Endpoint
from registry.models import Version


class Replay(models.Model):
    """One replay and its report so far.

    records: ids of the recorded requests, in order, of which `cursor` have been asked. comparison: as in the routing
    table. skipped: records that are gone or that cannot be asked again. latencies: "recorded" and "replayed", bucket of
    LATENCY_EDGES_MS -> count. worst: the answers furthest apart. max_drift_share: of the compared, what still passes.
    fence: the token of the newest lease; only its holder writes.
    """

    class Status(models.TextChoices):
        WAITING = "waiting", "Waiting"
        RUNNING = "running", "Running"
        DONE = "done", "Done"
        FAILED = "failed", "Failed"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    endpoint = models.ForeignKey(Endpoint, models.SET_NULL, null=True, related_name="replays")
    endpoint_name = models.CharField(max_length=64)
    team = models.ForeignKey(Team, models.PROTECT, related_name="replays")
    candidate = models.ForeignKey(Version, models.PROTECT, related_name="replays")
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.WAITING)
    words = models.CharField(max_length=500, blank=True)
    comparison = models.JSONField()
    max_drift_share = models.FloatField(default=0.01)
    rate_per_s = models.FloatField(default=20)
    records = models.JSONField()
    total = models.PositiveIntegerField()
    cursor = models.PositiveIntegerField(default=0)
    requests = models.PositiveIntegerField(default=0)
    skipped = models.PositiveIntegerField(default=0)
    errors = models.PositiveIntegerField(default=0)
    error_counts = models.JSONField(default=dict)
    compared = models.PositiveIntegerField(default=0)
    drifted = models.PositiveIntegerField(default=0)
    drift_sum = models.FloatField(default=0)
    latencies = models.JSONField(default=dict)
    worst = models.JSONField(default=list)
    creator = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField()
    deadline_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True)
    fence = models.BigIntegerField(default=0)
    lease_until = models.DateTimeField(null=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["endpoint", "candidate"],
                condition=models.Q(status__in=["waiting", "running"]),
                name="one_active_replay_per_candidate",
            ),
        ]
        indexes: ClassVar = [models.Index(fields=["status"]), models.Index(fields=["team", "-created_at"])]
        ordering: ClassVar = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.endpoint_name} v{self.candidate.number}: {self.cursor}/{self.total}"
