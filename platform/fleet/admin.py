"""Rows of the fleet in Django's admin: to be looked at."""

from __future__ import annotations

from django.contrib import admin

from accounts.admin import ReadOnly
from fleet.models import Deployment, Device, Host, Replica


@admin.register(Host)
class HostAdmin(ReadOnly):
    list_display = ("name", "lease_until", "draining", "standby_ready", "problem")


@admin.register(Device)
class DeviceAdmin(ReadOnly):
    list_display = ("host", "name", "memory_free_bytes", "memory_total_bytes", "utilisation", "seen_at")


@admin.register(Deployment)
class DeploymentAdmin(ReadOnly):
    list_display = ("version", "replicas", "device", "reason")
    list_select_related = ("version__model",)


@admin.register(Replica)
class ReplicaAdmin(ReadOnly):
    list_display = ("id", "deployment", "host", "device", "generation", "wanted", "phase", "restarts")
    list_select_related = ("deployment__version__model",)
    list_filter = ("phase", "wanted")
