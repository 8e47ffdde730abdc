"""Rows of files and batches in Django's admin: to be looked at."""

from __future__ import annotations

from django.contrib import admin

from accounts.admin import ReadOnly
from jobs.models import Batch, File


@admin.register(File)
class FileAdmin(ReadOnly):
    list_display = ("public_id", "team", "purpose", "filename", "size_bytes", "owner")
    list_select_related = ("team",)


@admin.register(Batch)
class BatchAdmin(ReadOnly):
    list_display = ("public_id", "team", "endpoint", "status", "completed", "failed", "total", "owner")
    list_select_related = ("team",)
