"""One pass of the host agent: read what is wanted, tell the supervisor, write back what it sees.

The agent owns no process and decides nothing. It never acts on what it read too long ago, and never writes what it
saw too long ago: an agent that was frozen in between starts over. When the database is away nothing is sent, so the
supervisor keeps the last wanted state.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from django.db import DatabaseError, InterfaceError

from fleet import actions as fleet
from fleet.models import Host
from inference.errors import SerinusError
from inference.protocol.status import ReplicaPhase
from inference.protocol.supervision import ReplicaSeen, ReplicaSpec, Seen, ValidationSeen, ValidationSpec
from registry.models import ValidationRun
from registry.validation import claim_validations, finish_validation, running_validations, validation_progress
from worker.specs import replica_specs, validation_specs

AT_ONCE_S = 0.0
BUSY_S = 0.5
IDLE_S = 2.0
FRESH_S = 5.0
# A supervisor runs one at a time; whoever is idle takes the next.
VALIDATIONS_AT_ONCE = 1
SETTLED = frozenset({ReplicaPhase.READY, ReplicaPhase.FAILED})

log = logging.getLogger(__name__)


class Supervisor(Protocol):
    """What the agent needs of inference.host.client.SupervisorClient."""

    def converge(self, replicas: Sequence[ReplicaSpec], validations: Sequence[ValidationSpec] = ()) -> Seen: ...


def converge_once(host: str, supervisor: Supervisor, clock: Callable[[], float] = time.monotonic) -> float:
    """One pass; answers after how many seconds the next one is due.

    1. Reads wanted replicas and the validations that this host holds. 2. Sends them as one message. 3. Renews the
    host's lease, writes what was seen, hands in results of validations. 4. Claims more validations, if there is room.
    Raises django.db.Error when the database is away, OSError or SerinusError when the supervisor is.
    """
    started = clock()
    replicas = replica_specs(host)
    held = running_validations(host)
    if clock() - started > FRESH_S:
        return AT_ONCE_S
    seen = supervisor.converge(replicas, validation_specs(held))
    if clock() - started > FRESH_S:
        return AT_ONCE_S
    fleet.heartbeat_host(host, seen, cpus=len(os.sched_getaffinity(0)))
    fleet.record_seen(host, seen)
    open_runs = _hand_in(held, seen.validations)
    if seen.standby_ready and _claim(host, VALIDATIONS_AT_ONCE - open_runs):
        return AT_ONCE_S
    unsettled = len(replicas) != len(seen.replicas) or not all(map(_is_settled, seen.replicas))
    return BUSY_S if unsettled or open_runs else IDLE_S


def _is_settled(replica: ReplicaSeen) -> bool:
    return replica.phase in SETTLED and all(adapter.state != "waiting" for adapter in replica.adapters)


def _hand_in(held: list[ValidationRun], seen: list[ValidationSeen]) -> int:
    """Reports progress and results; answers how many runs are still open."""
    reports = {report.run: report for report in seen}
    still_open = 0
    for run in held:
        report = reports.get(str(run.id))
        if report is None or report.lease != run.lease:
            still_open += validation_progress(run.id, run.lease)
        elif report.state == "running":
            still_open += validation_progress(run.id, run.lease, report.checks)
        else:
            finish_validation(run.id, run.lease, report)
    return still_open


def _claim(host: str, room: int) -> bool:
    if room <= 0 or Host.objects.filter(name=host, draining=True).exists():
        return False
    return bool(claim_validations(host, room))


class Agent:
    """Passes of one host, one at a time, whoever asks for them: its own thread or a Celery message."""

    def __init__(self, host: str, supervisor: Supervisor) -> None:
        self.host = host
        self.supervisor = supervisor
        self._one_at_a_time = threading.Lock()
        self._trouble = ""

    def pass_once(self) -> float:
        """One pass that fails with nothing but a line in the log; answers after how many seconds the next is due."""
        with self._one_at_a_time:
            try:
                due_s = converge_once(self.host, self.supervisor)
            except (DatabaseError, InterfaceError) as error:
                self._note("the database is away, the supervisor keeps the last wanted state", error)
            except (OSError, SerinusError) as error:
                self._note("the supervisor does not answer", error)
                self._tell(f"The supervisor of this host does not answer: {error}")
            else:
                self._trouble = ""
                return due_s
        return BUSY_S

    def _note(self, trouble: str, error: Exception) -> None:
        if trouble != self._trouble:
            log.warning("%s: %s", trouble, error)
        self._trouble = trouble

    def _tell(self, problem: str) -> None:
        try:
            fleet.record_problem(self.host, problem)
        except (DatabaseError, InterfaceError) as error:
            self._note("the database is away too", error)
