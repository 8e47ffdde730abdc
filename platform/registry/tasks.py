"""Housekeeping of uploads and content, on beat's schedule. Safe to run twice, or at once on two workers."""

from __future__ import annotations

from celery import shared_task

from accounts.login import forget_old_failures
from registry import actions


@shared_task(name="registry.tasks.expire_uploads")  # type: ignore[untyped-decorator]  # Celery has no types
def expire_uploads() -> None:
    actions.expire_uploads()
    actions.collect_blobs()
    forget_old_failures()
