"""What runs again and again or is woken by name; each is idempotent."""

from __future__ import annotations

from celery import shared_task

from endpoints import publish as publishing


@shared_task(name="endpoints.tasks.publish")  # type: ignore[untyped-decorator]  # celery brings no types
def publish() -> int:
    """Every second, and whenever rows changed: the newest routing table into Valkey. Answers its generation."""
    return publishing.publish()
