"""What runs again and again; each is idempotent."""

from __future__ import annotations

import logging

from celery import shared_task
from redis.exceptions import RedisError

from telemetry import actions, shadows

log = logging.getLogger(__name__)


@shared_task(name="telemetry.tasks.drain")  # type: ignore[untyped-decorator]  # celery brings no types
def drain() -> int:
    """Every second: the streams' samples, diffs and recorded requests into PostgreSQL. Answers how many samples."""
    try:
        moved = actions.drain()
        shadows.drain()
        return moved
    except RedisError as error:
        log.warning("samples wait in their gateways: %s", error)
        return 0


@shared_task(name="telemetry.tasks.expire")  # type: ignore[untyped-decorator]  # celery brings no types
def expire() -> int:
    """Every ten minutes: samples older than a day."""
    return actions.expire()
