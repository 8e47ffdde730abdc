"""Rows of hosts, devices, deployments and replicas. Written by fleet.actions only. All times are the database's."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.db import models

from registry.models import Version


class Host(models.Model):
    """A machine that serves replicas. It is alive while its lease, renewed by its agent, has not lapsed."""

    name = models.CharField(max_length=64, primary_key=True)
    lease_until = models.DateTimeField(null=True)
    boot = models.CharField(max_length=32, blank=True)
    agent_pid = models.IntegerField(default=0)
    supervisor_pid = models.IntegerField(default=0)
    standby_ready = models.BooleanField(default=False)
    draining = models.BooleanField(default=False)
    allow_code = models.BooleanField(default=True)
    cpus = models.IntegerField(default=1)
    problem = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.name


class Device(models.Model):
    """What a replica can be placed on: "cpu", "cuda:N", "tpu:N" of a host."""

    host = models.ForeignKey(Host, models.CASCADE, related_name="devices")
    name = models.CharField(max_length=16)
    kind = models.CharField(max_length=8)
    description = models.CharField(max_length=200, blank=True)
    memory_total_bytes = models.BigIntegerField(default=0)
    memory_free_bytes = models.BigIntegerField(default=0)
    utilisation = models.FloatField(default=-1.0)
    seen_at = models.DateTimeField(null=True)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["host", "name"], name="device_once_per_host")]
        ordering: ClassVar = ["host_id", "name"]

    def __str__(self) -> str:
        return f"{self.host_id}/{self.name}"


class Deployment(models.Model):
    """The wish: this version, so many replicas, on such a device. `reason` says in words why it is not met."""

    version = models.OneToOneField(Version, models.PROTECT, related_name="deployment")
    replicas = models.PositiveIntegerField(default=1)
    device = models.CharField(max_length=16, default="any")
    reason = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.version} x {self.replicas}"


class Replica(models.Model):
    """One wanted process. `generation` is the fencing token: a host that holds an older one has lost the replica.

    wanted: "run" or "stop" (for good). phase: inference.protocol.status.ReplicaPhase as last seen, "pending" before
    that, "lost" when its host's lease lapsed. route_address and route_generation: what gateways are told, that is
    where it was last ready; they stay while it restarts, is lost or moves, until a newer generation is ready.
    device_memory_share: the part (0..1) of its accelerator that its framework may take, 0 where nothing is bound;
    device_memory_bytes: what it holds of it. adapters: where each of its LoRA adapters stands, as the supervisor sees it
    (inference.protocol.supervision.AdapterSeen).
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    deployment = models.ForeignKey(Deployment, models.CASCADE, related_name="replica_set")
    host = models.ForeignKey(Host, models.SET_NULL, null=True, related_name="replicas")
    device = models.CharField(max_length=16, default="cpu")
    generation = models.PositiveIntegerField(default=1)
    wanted = models.CharField(max_length=8, default="run")
    phase = models.CharField(max_length=16, default="pending")
    seen_generation = models.PositiveIntegerField(default=0)
    address = models.CharField(max_length=200, blank=True)
    route_address = models.CharField(max_length=200, blank=True)
    route_generation = models.PositiveIntegerField(default=0)
    pid = models.IntegerField(default=0)
    restarts = models.IntegerField(default=0)
    message = models.CharField(max_length=1000, blank=True)
    memory_bytes = models.BigIntegerField(default=0)
    device_memory_share = models.FloatField(default=0.0)
    device_memory_bytes = models.BigIntegerField(default=0)
    compiles_after_ready = models.IntegerField(default=0)
    queue_depth = models.IntegerField(default=0)
    adapters = models.JSONField(default=list)
    lease_until = models.DateTimeField(null=True)
    ready_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["created_at", "id"]

    def __str__(self) -> str:
        return str(self.id)


class Reconciliation(models.Model):
    """The one row (id 1) that says when the reconciler last saw this database, and until when no host is declared
    lost: leases that lapsed while nobody could renew them say nothing about their hosts.
    """

    at = models.DateTimeField(null=True)
    grace_until = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"reconciled at {self.at}"
