"""Rows of endpoints, their variants and the published routing table. Written by endpoints.actions and publish only."""

from __future__ import annotations

from typing import ClassVar

from django.db import models

from accounts.models import Team, User
from registry.models import Model, Version


class Endpoint(models.Model):
    """A public name behind which versions of one model answer.

    access: "key" (an API key is needed) or "public". salt: seed of the stable hash that assigns callers to variants.
    revision grows with every change, for optimistic locking. may_pin: callers may choose a version by a header.
    steering, recording: inference.protocol.routes.Steering and Recording as JSON, null without.
    """

    class Access(models.TextChoices):
        KEY = "key", "API key"
        PUBLIC = "public", "Public"

    name = models.SlugField(max_length=64, unique=True)
    team = models.ForeignKey(Team, models.PROTECT, related_name="endpoints")
    model = models.ForeignKey(Model, models.PROTECT, related_name="endpoints")
    access = models.CharField(max_length=8, choices=Access.choices, default=Access.KEY)
    salt = models.CharField(max_length=32)
    timeout_ms = models.PositiveIntegerField(default=30_000)
    queue_limit = models.PositiveIntegerField(default=1024)
    may_pin = models.BooleanField(default=True)
    steering = models.JSONField(null=True)
    recording = models.JSONField(null=True)
    revision = models.PositiveIntegerField(default=1)
    created_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.name


class Variant(models.Model):
    """A version behind an endpoint, with its share of the traffic in basis points; the shares sum to 10,000.

    resting_replicas: how many were wished for when it was unloaded, for the next load; 0 when it was not.
    """

    class VariantRole(models.TextChoices):
        PRIMARY = "primary", "Primary"
        CANARY = "canary", "Canary"
        SHADOW = "shadow", "Shadow"

    endpoint = models.ForeignKey(Endpoint, models.CASCADE, related_name="variants")
    version = models.ForeignKey(Version, models.PROTECT, related_name="variants")
    weight_bp = models.PositiveIntegerField(default=0)
    resting_replicas = models.PositiveIntegerField(default=0)
    role = models.CharField(max_length=8, choices=VariantRole.choices, default=VariantRole.PRIMARY)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["endpoint", "version"], name="version_once_per_endpoint"),
            models.CheckConstraint(condition=models.Q(weight_bp__lte=10_000), name="weight_at_most_all"),
        ]
        ordering: ClassVar = ["version__number"]

    def __str__(self) -> str:
        return f"{self.endpoint} -> {self.version} ({self.weight_bp} bp)"


class Adapter(models.Model):
    """A LoRA adapter that the replicas of a variant's version hold, for requests to ENDPOINT:NAME. version: its own."""

    variant = models.ForeignKey(Variant, models.CASCADE, related_name="adapters")
    version = models.ForeignKey(Version, models.PROTECT, related_name="adapter_of")
    name = models.SlugField(max_length=64)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["variant", "name"], name="adapter_once_per_variant")]
        ordering: ClassVar = ["name", "id"]

    def __str__(self) -> str:
        return f"{self.variant.endpoint}:{self.name}"


class RepositoryModel(models.Model):
    """A model in the folder that `serinus up --model-repository` was given, imported or not.

    asked: how many loads were asked for; done: the newest that the folder's process has answered; reason: why that one
    failed. config: JSON of a ModelConfig that a load gave in place of the folder's, until the model is unloaded. team:
    whose the model is, or will be.
    """

    name = models.SlugField(max_length=64, unique=True)
    team = models.ForeignKey(Team, models.CASCADE, related_name="+")
    asked = models.PositiveIntegerField(default=0)
    done = models.PositiveIntegerField(default=0)
    reason = models.CharField(max_length=1000, blank=True)
    config = models.TextField(blank=True, default="")

    def __str__(self) -> str:
        return self.name


class PublishedTable(models.Model):
    """The one row (id 1) that holds the routing table's generation number and its content's digest."""

    generation = models.BigIntegerField(default=0)
    digest = models.CharField(max_length=64, blank=True)
    table = models.BinaryField(default=b"")
    token_secret = models.CharField(max_length=64, blank=True)
    at = models.DateTimeField(auto_now=True)

    def __str__(self) -> str:
        return f"generation {self.generation}"
