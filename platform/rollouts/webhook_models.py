"""Rows of webhooks and what was sent to them. Written by rollouts.webhooks and rollouts.webhook_delivery only."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.db import models

from accounts.models import Team


class Webhook(models.Model):
    """An address of a team's that is told of events. events: their names, ["*"] for all. secret: signs what is sent;
    shown once, when it is made.
    """

    team = models.ForeignKey(Team, models.CASCADE, related_name="webhooks")
    url = models.CharField(max_length=1000)
    secret = models.CharField(max_length=100)
    events = models.JSONField(default=list)
    enabled = models.BooleanField(default=True)
    creator = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"webhook {self.pk} of {self.team.name}"


class WebhookDelivery(models.Model):
    """One event for one webhook: what is sent, byte for byte, and how far it has come.

    attempt: how many were begun; status: of the newest answer, null without one; response: the beginning of what it
    said, or why there was none. next_at: when it is due, or, while it is being sent, when it counts as lost.
    """

    class State(models.TextChoices):
        PENDING = "pending", "Pending"
        DELIVERED = "delivered", "Delivered"
        GIVEN_UP = "given_up", "Given up"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    webhook = models.ForeignKey(Webhook, models.CASCADE, related_name="deliveries")
    event = models.CharField(max_length=64)
    body = models.TextField()
    attempt = models.PositiveIntegerField(default=0)
    status = models.PositiveIntegerField(null=True)
    response = models.CharField(max_length=500, blank=True)
    took_ms = models.FloatField(null=True)
    state = models.CharField(max_length=12, choices=State.choices, default=State.PENDING)
    at = models.DateTimeField(auto_now_add=True)
    next_at = models.DateTimeField()
    done_at = models.DateTimeField(null=True)

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["next_at"], condition=models.Q(state="pending"), name="deliveries_that_are_due"),
            models.Index(fields=["webhook", "-at"]),
        ]
        ordering: ClassVar = ["-at", "id"]
        verbose_name_plural = "webhook deliveries"

    def __str__(self) -> str:
        return f"{self.event} for webhook {self.webhook_id}"
