"""Celery's part: one short step of one batch a message, and a sweep that finds what lost its worker or its message.

`advance` claims a batch, does one step (check the file, one slice of lines, write the files), gives it back and sends
the next message. Lost or doubled messages change nothing: rows are the truth, and a claim is one holder's.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from celery import shared_task
from celery.signals import worker_shutting_down
from django.db import DatabaseError
from django.db.models.functions import Now

from accounts.wakeups import send
from inference.errors import Conflict, StorageFull
from jobs import files, leases
from jobs.actions import ADVANCE, QUEUE
from jobs.finalizing import finalize
from jobs.leases import Held
from jobs.limits import MAX_TROUBLES
from jobs.running import run_slice
from jobs.slices import LeaseLost
from jobs.statuses import Status
from jobs.validating import validate

TROUBLE_S = 5.0
_stopping = threading.Event()
log = logging.getLogger(__name__)


@worker_shutting_down.connect(weak=False)  # type: ignore[untyped-decorator]  # celery brings no types
def stop(**_: object) -> None:
    """A running slice starts no more lines, commits what is done and gives its batch back."""
    _stopping.set()


@shared_task(name=ADVANCE)  # type: ignore[untyped-decorator]
def advance(pk: int) -> bool:
    """One step of the batch; answers whether it was this message that did it."""
    held = leases.claim(pk)
    if held is None:
        return False
    rest_s, trouble = 0.0, False
    try:
        rest_s = _step(held)
    except LeaseLost:
        return False
    except Conflict:  # cancelled meanwhile: the next step ends it
        pass
    except (StorageFull, DatabaseError, OSError) as error:
        log.warning("%s waits: %s", held.batch, error)
        rest_s, trouble = TROUBLE_S, True
    except Exception:
        log.exception("a step of %s failed", held.batch)
        rest_s, trouble = TROUBLE_S, True
    if trouble and held.batch.troubles + 1 >= MAX_TROUBLES:
        _fail(held)
    elif leases.release(held, rest_s=rest_s, trouble=trouble) and not rest_s and not _stopping.is_set():
        send(ADVANCE, pk, queue=QUEUE)
    return True


def _step(held: Held) -> float:
    """Answers for how many seconds the batch shall rest."""
    batch = held.batch
    if batch.status in {Status.VALIDATING, Status.IN_PROGRESS} and _is_over(held):
        leases.move(held, Status.FINALIZING, finalizing_at=Now())
    elif batch.status == Status.IN_PROGRESS:
        return run_slice(held, _stopping.is_set)
    else:
        STEPS[batch.status](held)
    return 0.0


def _is_over(held: Held) -> bool:
    done = held.batch.status == Status.IN_PROGRESS and held.batch.cursor >= held.batch.total
    return done or held.left_s <= 0


def _fail(held: Held) -> None:
    message = "The server could not go on with this batch; its log has more. Start it again."
    told = [{"code": "server_error", "message": message, "line": None, "param": None}]
    try:
        leases.move(held, Status.FAILED, errors=told)
    except (LeaseLost, Conflict):
        log.warning("%s could not be failed: somebody else goes on with it", held.batch)


STEPS: dict[str, Callable[[Held], None]] = {
    Status.VALIDATING: validate,
    Status.FINALIZING: finalize,
    Status.CANCELLING: finalize,
}


@shared_task(name="jobs.tasks.sweep")  # type: ignore[untyped-decorator]
def sweep() -> int:
    """Every two seconds: wakes every batch that goes on but that nobody holds. Answers how many."""
    found = leases.waiting()
    for pk in found:
        send(ADVANCE, pk, queue=QUEUE)
    return len(found)


@shared_task(name="jobs.tasks.expire")  # type: ignore[untyped-decorator]
def expire() -> int:
    """Files past their time, and what a kill has left behind. Answers how many files."""
    return files.expire_files()
