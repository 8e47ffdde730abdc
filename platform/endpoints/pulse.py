"""The control worker's own pulse: reconciling and publishing go on while the broker is away or slow to come back.

Celery's beat and messages do this work as long as they arrive. A permanent thread in the control worker looks twice
a second what is overdue, and does that itself. Both ways are idempotent, so doing something twice changes nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from celery.signals import task_postrun, worker_init, worker_shutting_down
from django.db import DatabaseError, InterfaceError, close_old_connections

TICK_S = 0.5
CONTROL_QUEUE = "control"
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Duty:
    """What must be done at least every `every_s` seconds; `last_s`: when it was last done, on the pulse's clock."""

    every_s: float
    do: Callable[[], object]
    last_s: float = 0.0


class Pulse:
    """Does those duties, named like their tasks, that nobody has done in time."""

    def __init__(self, duties: Mapping[str, Duty], clock: Callable[[], float] = time.monotonic) -> None:
        self._duties = duties
        self._clock = clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control-pulse", daemon=True)
        self._away = False

    def done(self, task: str) -> None:
        """A task of this name has just run in this process."""
        if task in self._duties:
            self._duties[task].last_s = self._clock()

    def beat(self) -> list[str]:
        """Does what is overdue; answers its names."""
        overdue = [name for name, duty in self._duties.items() if self._clock() - duty.last_s > duty.every_s]
        for name in overdue:
            self.done(name)
            self._do(name)
        return overdue

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        self._stop.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stop.wait(TICK_S):
            self.beat()

    def _do(self, name: str) -> None:
        try:
            self._duties[name].do()
            self._away = False
        except (DatabaseError, InterfaceError) as error:
            if not self._away:
                log.warning("the database is away: %s", error)
            self._away = True
        except Exception:  # the thread outlives any defect of one duty
            log.exception("%s failed", name)
        finally:
            close_old_connections()


def beside_control_worker(duties: Mapping[str, Duty]) -> None:
    """Has a pulse with these duties, by their tasks' names, beat in this process for as long as it is a control worker."""
    pulses: list[Pulse] = []

    # Not worker_ready: that one waits for the broker, and this is for when there is none.
    @worker_init.connect(weak=False)  # type: ignore[untyped-decorator]  # celery brings no types
    def start(sender: Any = None, **_: object) -> None:
        if not pulses and CONTROL_QUEUE in sender.app.amqp.queues.consume_from:
            pulses.append(Pulse(duties))
            pulses[0].start()

    @task_postrun.connect(weak=False)  # type: ignore[untyped-decorator]
    def done(task: Any = None, **_: object) -> None:
        for pulse in pulses:
            pulse.done(task.name)

    @worker_shutting_down.connect(weak=False)  # type: ignore[untyped-decorator]
    def stop(**_: object) -> None:
        while pulses:
            pulses.pop().stop()
