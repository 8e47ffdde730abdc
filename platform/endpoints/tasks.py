"""What runs again and again or is woken by name; each is idempotent."""

from __future__ import annotations

from celery import shared_task

from endpoints import publish as publishing
from endpoints.pulse import Duty, beside_control_worker
from fleet import actions as fleet
from fleet import messages


@shared_task(name=messages.PUBLISH)  # type: ignore[untyped-decorator]  # celery brings no types
def publish() -> int:
    """Every second, and whenever rows changed: the newest routing table into Valkey. Answers its generation."""
    return publishing.publish()


beside_control_worker({messages.RECONCILE: Duty(3.0, fleet.reconcile), messages.PUBLISH: Duty(1.5, publishing.publish)})
