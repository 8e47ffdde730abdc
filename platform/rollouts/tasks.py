"""What runs again and again or is woken by name; each is idempotent."""

from __future__ import annotations

from celery import shared_task

from accounts.wakeups import send
from endpoints.pulse import Duty, beside_control_worker
from rollouts import first_requests, replay
from rollouts.actions import TICK, ask_smoke_again, record_smoke, to_be_smoked
from rollouts.controller import SMOKE, Controller
from rollouts.judging import judge_rollout
from rollouts.webhook_delivery import deliver_due, expire_deliveries
from rollouts.webhooks import DELIVER
from telemetry.tasks import drain

controller = Controller(judge_rollout)


@shared_task(name=TICK)  # type: ignore[untyped-decorator]  # celery brings no types
def tick() -> int:
    """Every second, and whenever somebody did something: every active rollout as far as it may go."""
    return controller.tick()


@shared_task(name=SMOKE)  # type: ignore[untyped-decorator]
def smoke(pk: str) -> bool:
    """Asks a rollout's candidate the golden inputs, up to a minute long; answers whether it was due."""
    rollout = to_be_smoked(pk)
    if rollout is None or rollout.endpoint is None:
        return False
    report = first_requests.ask(rollout, rollout.endpoint)
    if report is None:
        ask_smoke_again(pk)
        return True
    record_smoke(pk, report)
    send(TICK)
    return True


# Rollouts go on, and roll back, by what they have seen while no message comes.
beside_control_worker({TICK: Duty(1.5, controller.tick), drain.name: Duty(3.0, drain)})


@shared_task(name=DELIVER)  # type: ignore[untyped-decorator]  # celery brings no types
def deliver_webhooks() -> int:
    """Every few seconds, and whenever an event was written: what is due is sent."""
    return deliver_due()


@shared_task(name="rollouts.tasks.expire_deliveries")  # type: ignore[untyped-decorator]  # celery brings no types
def expire() -> int:
    """Every ten minutes: deliveries that are two weeks old."""
    return expire_deliveries()


@shared_task(name=replay.ADVANCE)  # type: ignore[untyped-decorator]  # celery brings no types
def advance_replay(key: str) -> bool:
    """One slice of one replay; answers whether it was this message that did it."""
    return replay.advance(key)


@shared_task(name="rollouts.tasks.sweep_replays")  # type: ignore[untyped-decorator]
def sweep_replays() -> int:
    """Every two seconds: wakes every replay that goes on but that nobody holds. Answers how many."""
    found = replay.waiting()
    for key in found:
        send(replay.ADVANCE, key, queue=replay.QUEUE)
    return len(found)
