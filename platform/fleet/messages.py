"""Celery messages by name, as wake-ups: one that is lost changes nothing, so a dead broker fails nobody."""

from __future__ import annotations

import logging

from celery import current_app
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

RECONCILE = "fleet.tasks.reconcile"
PUBLISH = "endpoints.tasks.publish"
CONVERGE = "worker.converge"
WAKE_EXPIRES_S = 10

log = logging.getLogger(__name__)


def send(task: str, *args: str, queue: str = "control") -> bool:
    """Sends a wake-up; False when the broker is away. Whatever it would have woken looks by itself within 2 s."""
    try:
        current_app.send_task(
            task, args=args, queue=queue, expires=WAKE_EXPIRES_S, retry=False, ignore_result=True, argsrepr="()"
        )
    except (OperationalError, RedisError, OSError) as error:
        log.warning("no wake-up for %s: %s", task, error)
        return False
    return True


def wake_host(name: str) -> bool:
    """Asks the agent of this host to converge now."""
    return send(CONVERGE, name, queue=f"host.{name}")
