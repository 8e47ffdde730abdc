"""Wake-ups for other processes, sent when the transaction is safe. They may be lost: rows are the truth."""

from __future__ import annotations

import logging

from celery import current_app
from django.db import transaction
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

log = logging.getLogger(__name__)


def send(task: str, *args: str | int, queue: str = "control") -> None:
    """Sends the task now; a dead broker is a line in the log, never an error."""
    try:
        current_app.send_task(task, args=list(args), queue=queue, expires=10, ignore_result=True)
    except (KombuError, RedisError, OSError) as error:
        log.warning("wake-up %s was not sent: %s", task, error)


def send_on_commit(task: str, *args: str | int, queue: str = "control") -> None:
    """Sends the task when, and only when, the running transaction is committed."""
    transaction.on_commit(lambda: send(task, *args, queue=queue), robust=True)
