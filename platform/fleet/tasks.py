"""What runs again and again or is woken by name; each is idempotent."""

from __future__ import annotations

from celery import shared_task
from django.db.models.functions import Now

from accounts.wakeups import send
from fleet import actions, messages
from fleet.models import Host


@shared_task(name="fleet.tasks.reconcile")  # type: ignore[untyped-decorator]  # celery brings no types
def reconcile() -> int:
    """Every 2 s: wanted against seen. Answers how many decisions were carried out."""
    return actions.reconcile()


@shared_task(name="fleet.tasks.wake")  # type: ignore[untyped-decorator]  # celery brings no types
def wake(host: str = "") -> int:
    """Wakes one host's agent, or every living host's; answers how many."""
    living = Host.objects.filter(lease_until__gt=Now())
    names = list((living.filter(name=host) if host else living).values_list("name", flat=True))
    for name in names:
        send(messages.CONVERGE, name, queue=messages.queue_of(name))
    return len(names)
