"""What runs again and again or is woken by name; each is idempotent."""

from __future__ import annotations

from typing import Any

from celery import shared_task
from celery.signals import task_postrun, worker_init, worker_shutting_down

from endpoints.pulse import Duty, Pulse
from endpoints.tasks import CONTROL_QUEUE
from rollouts.actions import TICK
from rollouts.controller import Controller
from rollouts.judging import judge_rollout

controller = Controller(judge_rollout)
_pulses: list[Pulse] = []


@shared_task(name=TICK)  # type: ignore[untyped-decorator]  # celery brings no types
def tick() -> int:
    """Every second, and whenever somebody did something: every active rollout as far as it may go."""
    return controller.tick()


# As the endpoints' pulse does for publishing: rollouts go on, and roll back, while there is no broker.
@worker_init.connect(weak=False)  # type: ignore[untyped-decorator]
def start_pulse(sender: Any = None, **_: object) -> None:
    if not _pulses and CONTROL_QUEUE in sender.app.amqp.queues.consume_from:
        _pulses.append(Pulse({TICK: Duty(1.5, controller.tick)}))
        _pulses[0].start()


@task_postrun.connect(weak=False)  # type: ignore[untyped-decorator]
def note_done(task: Any = None, **_: object) -> None:
    for pulse in _pulses:
        pulse.done(task.name)


@worker_shutting_down.connect(weak=False)  # type: ignore[untyped-decorator]
def stop_pulse(**_: object) -> None:
    while _pulses:
        _pulses.pop().stop()
