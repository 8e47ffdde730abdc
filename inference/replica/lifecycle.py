"""Where a replica stands, told to its supervisor at every move and as a heartbeat."""

from __future__ import annotations

import os
from pathlib import Path

from inference.protocol.child import PhaseReport
from inference.protocol.status import ReplicaPhase, check_move
from inference.replica.control import Control

# Exit statuses of a child, beside 0 (drained, or its supervisor is gone).
EXIT_NOT_LOADED = 81
EXIT_HUNG = 86


class Lifecycle:
    """The phase of this process; it moves only as the table of `protocol.status` allows."""

    def __init__(self, control: Control) -> None:
        self.phase = ReplicaPhase.STARTING
        self._control = control

    def move(self, phase: ReplicaPhase, message: str = "") -> None:
        """Raises ValueError for an illegal move."""
        self.phase = check_move(self.phase, phase)
        self._control.tell(PhaseReport(phase, message, memory_bytes()))

    def fail(self, message: str) -> None:
        """Says why this process is about to end."""
        if self.phase not in (ReplicaPhase.DRAINING, ReplicaPhase.STOPPED):
            self.move(ReplicaPhase.FAILED, message)

    def beat(self, *, queue_depth: int, busy_s: float, device_memory_bytes: int, compiles_after_ready: int) -> None:
        own = memory_bytes()
        report = PhaseReport(self.phase, "", own, queue_depth, busy_s, device_memory_bytes, compiles_after_ready)
        self._control.beat(report)


def memory_bytes() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
