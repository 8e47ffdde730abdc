"""What runs again and again or is woken by name; each is idempotent."""

from __future__ import annotations

import logging

from celery import shared_task

from rollouts.actions import TICK
from rollouts.controller import Controller
from rollouts.judging import judge_rollout

log = logging.getLogger(__name__)
controller = Controller(judge_rollout)


@shared_task(name=TICK)  # type: ignore[untyped-decorator]  # celery brings no types
def tick() -> int:
    """Every second, and whenever somebody did something: every active rollout as far as it may go."""
    return controller.tick()
