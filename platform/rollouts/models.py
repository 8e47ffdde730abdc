"""Rows of plans, rollouts, their events and readings. Written by rollouts.actions and rollouts.controller only."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.db import models

from accounts.models import Team
from endpoints.models import Endpoint
from registry.models import Version
from rollouts.phases import ACTIVE, Phase
from rollouts.replay_models import Replay
from rollouts.webhook_models import Webhook, WebhookDelivery

__all__ = ["Reading", "Replay", "Rollout", "RolloutEvent", "SavedPlan", "Webhook", "WebhookDelivery"]


class SavedPlan(models.Model):
    """A team's own plan. Every change is a new number; rollouts keep a copy of what they began with."""

    team = models.ForeignKey(Team, models.CASCADE, related_name="plans")
    name = models.SlugField(max_length=64)
    number = models.PositiveIntegerField(default=1)
    plan = models.JSONField()
    creator = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["team", "name", "number"], name="plan_number_once"),
        ]
        ordering: ClassVar = ["name", "-number"]

    def __str__(self) -> str:
        return f"{self.name} v{self.number}"


class Rollout(models.Model):
    """Moving an endpoint's traffic from its stable version to a candidate, by a plan.

    step: place in the plan; step_at, phase_at: since when. weight_bp: the candidate's share as last written. capacity:
    replicas that carry all of the endpoint's traffic, as the stable version had them at the start. candidate_before:
    how many the candidate had then. judged_from: since when there is traffic to judge. held: a person paused it.
    smoke: the report of the golden inputs; smoke_asked_at: when it was last asked for. judgement: the newest
    (rollouts.judge). old_stage: where the version that was replaced stands, "" while it is in use.
    revision grows with each change; fence is the token of the newest lease (only its holder writes as controller).
    """

    class OldStage(models.TextChoices):
        WARM = "warm", "Warm"
        PARKED = "parked", "Parked"
        UNLOADED = "unloaded", "Unloaded"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    endpoint = models.ForeignKey(Endpoint, models.SET_NULL, null=True, related_name="rollouts")
    endpoint_name = models.CharField(max_length=64)
    team = models.ForeignKey(Team, models.PROTECT, related_name="rollouts")
    stable = models.ForeignKey(Version, models.PROTECT, related_name="rollouts_from")
    candidate = models.ForeignKey(Version, models.PROTECT, related_name="rollouts_to")
    plan = models.JSONField()
    plan_name = models.CharField(max_length=64)
    plan_number = models.PositiveIntegerField(default=0)
    phase = models.CharField(
        max_length=20, choices=[(p.value, p.value.replace("_", " ")) for p in Phase], default=Phase.PENDING
    )
    reason = models.CharField(max_length=32, default="started")
    words = models.CharField(max_length=1000, blank=True)
    step = models.PositiveIntegerField(default=0)
    step_at = models.DateTimeField()
    phase_at = models.DateTimeField()
    weight_bp = models.PositiveIntegerField(default=0)
    mirror_bp = models.PositiveIntegerField(default=0)
    capacity = models.PositiveIntegerField(default=1)
    candidate_before = models.PositiveIntegerField(default=0)
    crashes_before = models.PositiveIntegerField(default=0)
    device = models.CharField(max_length=16, default="any")
    judged_from = models.DateTimeField(null=True)
    held = models.BooleanField(default=False)
    smoke = models.JSONField(null=True)
    smoke_asked_at = models.DateTimeField(null=True)
    approvals = models.JSONField(default=list)
    preflight = models.JSONField(null=True)
    override = models.CharField(max_length=500, blank=True)
    judgement = models.JSONField(null=True)
    judged_at = models.DateTimeField(null=True)
    is_rollback = models.BooleanField(default=False)
    old_stage = models.CharField(max_length=10, choices=OldStage.choices, blank=True)
    old_until = models.DateTimeField(null=True)
    creator = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True)
    revision = models.PositiveIntegerField(default=1)
    events_count = models.PositiveIntegerField(default=0)
    fence = models.BigIntegerField(default=0)
    lease_owner = models.CharField(max_length=100, blank=True)
    lease_until = models.DateTimeField(null=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["endpoint"],
                condition=models.Q(phase__in=sorted(ACTIVE)),
                name="one_active_rollout_per_endpoint",
            ),
        ]
        indexes: ClassVar = [models.Index(fields=["phase"]), models.Index(fields=["team", "-created_at"])]
        ordering: ClassVar = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.endpoint_name}: {self.stable.number} -> {self.candidate.number}"

    @property
    def is_active(self) -> bool:
        return Phase(self.phase) in ACTIVE


class RolloutEvent(models.Model):
    """One transition. Append-only; a database trigger refuses to change or delete what has been written.

    weights_before, weights_after: version number -> basis points, and "mirror". evidence: the figures that decided.
    """

    rollout = models.ForeignKey(Rollout, models.PROTECT, related_name="events")
    seq = models.PositiveIntegerField()
    at = models.DateTimeField()
    actor_kind = models.CharField(max_length=12)
    actor = models.CharField(max_length=200)
    kind = models.CharField(max_length=32)
    reason = models.CharField(max_length=32)
    words = models.CharField(max_length=1000)
    phase_before = models.CharField(max_length=20)
    phase_after = models.CharField(max_length=20)
    step = models.PositiveIntegerField(default=0)
    weights_before = models.JSONField(default=dict)
    weights_after = models.JSONField(default=dict)
    evidence = models.JSONField(default=dict)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["rollout", "seq"], name="event_once_per_rollout")]
        ordering: ClassVar = ["rollout_id", "seq"]

    def __str__(self) -> str:
        return f"{self.rollout_id} {self.seq} {self.kind}"


class Reading(models.Model):
    """What the judge found at one moment, for plots: a judgement's findings, every few seconds, bounded per rollout."""

    rollout = models.ForeignKey(Rollout, models.CASCADE, related_name="readings")
    at = models.DateTimeField()
    weight_bp = models.PositiveIntegerField(default=0)
    verdict = models.CharField(max_length=12)
    findings = models.JSONField()

    class Meta:
        indexes: ClassVar = [models.Index(fields=["rollout", "at"])]
        ordering: ClassVar = ["at"]

    def __str__(self) -> str:
        return f"{self.rollout_id} {self.at} {self.verdict}"
