"""Rows of people, teams, keys and the audit trail. Written by accounts.actions only."""

from __future__ import annotations

from typing import ClassVar

from django.contrib.auth.models import AbstractUser
from django.db import models
from django.db.models.functions import Now


class Role(models.TextChoices):
    """What a member may do in a team; each role may do all that the ones before it may."""

    VIEWER = "viewer", "Viewer"
    DEVELOPER = "developer", "Developer"
    OPERATOR = "operator", "Operator"
    ADMIN = "admin", "Admin"


class User(AbstractUser):
    """A person who logs in. A superuser is admin of every team."""


class Team(models.Model):
    """Owner of models, endpoints and keys."""

    name = models.SlugField(max_length=64, unique=True)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.name


class Membership(models.Model):
    """A person's role in a team."""

    user = models.ForeignKey(User, models.CASCADE, related_name="memberships")
    team = models.ForeignKey(Team, models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=16, choices=Role.choices, default=Role.VIEWER)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["user", "team"], name="one_role_per_team")]

    def __str__(self) -> str:
        return f"{self.user} is {self.role} of {self.team}"


class ApiKey(models.Model):
    """A service's key. Only the digest of the secret is kept.

    role: what it may do at the control API, within its team; `platform_admin` keys act as a superuser.
    endpoints: names that it may call for predictions; ["*"] is all endpoints of its team (of every team for
    `platform_admin`). requests_per_s, rows_per_s: what each gateway lets through for it, 0 for no bound.
    """

    id = models.CharField(max_length=12, primary_key=True)
    digest = models.CharField(max_length=64)
    name = models.CharField(max_length=100)
    team = models.ForeignKey(Team, models.CASCADE, related_name="keys")
    role = models.CharField(max_length=16, choices=Role.choices, default=Role.VIEWER)
    platform_admin = models.BooleanField(default=False)
    endpoints = models.JSONField(default=list)
    created_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    requests_per_s = models.FloatField(default=0)
    rows_per_s = models.FloatField(default=0)

    class Meta:
        verbose_name = "API key"

    def __str__(self) -> str:
        return f"{self.name} (ser_{self.id})"


class AuditEntry(models.Model):
    """Who did what, when, to what. Append-only: a database trigger refuses UPDATE and DELETE."""

    at = models.DateTimeField(auto_now_add=True, db_index=True)
    actor_kind = models.CharField(max_length=16)
    actor = models.CharField(max_length=200)
    request_id = models.CharField(max_length=64, blank=True)
    verb = models.CharField(max_length=64, db_index=True)
    object_kind = models.CharField(max_length=32)
    object_name = models.CharField(max_length=200, db_index=True)
    team = models.ForeignKey(Team, models.SET_NULL, null=True, related_name="+")
    before = models.JSONField(null=True)
    after = models.JSONField(null=True)
    reason = models.CharField(max_length=500, blank=True)

    class Meta:
        ordering: ClassVar = ["-id"]
        verbose_name_plural = "audit entries"

    def __str__(self) -> str:
        return f"{self.actor} {self.verb} {self.object_name}"


class LoginFailure(models.Model):
    """A login that did not succeed (yet). Counted by accounts.login, forgotten after a success or a while."""

    username = models.CharField(max_length=150)
    address = models.CharField(max_length=45)
    at = models.DateTimeField(db_default=Now(), db_index=True)

    class Meta:
        indexes: ClassVar = [models.Index(fields=["username", "at"]), models.Index(fields=["address", "at"])]

    def __str__(self) -> str:
        return f"{self.username} from {self.address}"
