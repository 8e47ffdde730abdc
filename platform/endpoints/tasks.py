"""What runs again and again or is woken by name; each is idempotent."""

from __future__ import annotations

from typing import Any

from celery import shared_task
from celery.signals import task_postrun, worker_init, worker_shutting_down

from endpoints import publish as publishing
from endpoints.pulse import Duty, Pulse
from fleet import actions as fleet
from fleet import messages

CONTROL_QUEUE = "control"
_pulses: list[Pulse] = []


@shared_task(name=messages.PUBLISH)  # type: ignore[untyped-decorator]  # celery brings no types
def publish() -> int:
    """Every second, and whenever rows changed: the newest routing table into Valkey. Answers its generation."""
    return publishing.publish()


# Not worker_ready: that one waits for the broker, and this is for when there is none.
@worker_init.connect(weak=False)  # type: ignore[untyped-decorator]
def start_pulse(sender: Any = None, **_: object) -> None:
    if not _pulses and CONTROL_QUEUE in sender.app.amqp.queues.consume_from:
        duties = {messages.RECONCILE: Duty(3.0, fleet.reconcile), messages.PUBLISH: Duty(1.5, publishing.publish)}
        _pulses.append(Pulse(duties))
        _pulses[0].start()


@task_postrun.connect(weak=False)  # type: ignore[untyped-decorator]
def note_done(task: Any = None, **_: object) -> None:
    for pulse in _pulses:
        pulse.done(task.name)


@worker_shutting_down.connect(weak=False)  # type: ignore[untyped-decorator]
def stop_pulse(**_: object) -> None:
    while _pulses:
        _pulses.pop().stop()
