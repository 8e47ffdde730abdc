"""Once a second: alive, so much memory, so many waiting. Silence tells the supervisor that the event loop stands still."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from inference.replica.lifecycle import Lifecycle, memory_bytes
from inference.runtime import devices
from inference.runtime.runner import Runner
from inference.runtime.work import Executor

PERIOD_S = 1.0
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Meter:
    """What the model itself can tell. device: as `devices.select` named it."""

    runner: Runner
    device: str
    compiles_told: int = 0

    def device_memory_bytes(self) -> int:
        return max(self.runner.device_memory_bytes, devices.torch_bytes(self.device))

    def memory(self, device: str) -> dict[str, int]:
        """Bytes that this process holds of the host's memory, and of `device`, as the host names it."""
        own = {"cpu": memory_bytes()}
        return own if device == "cpu" else own | {device: self.device_memory_bytes()}

    def busy_s(self) -> float:
        return self.runner.busy_s

    def compiles(self) -> int:
        """Programs compiled since the replica was ready; a line in the log when there is a new one."""
        found = self.runner.compiles_after_ready
        if found > self.compiles_told:
            log.warning("%d programs were compiled after ready: callers waited for them", found - self.compiles_told)
            self.compiles_told = found
        return found


async def beat(life: Lifecycle, executor: Executor, meter: Meter, period_s: float = PERIOD_S) -> None:
    """Until cancelled."""
    while True:
        life.beat(
            queue_depth=executor.queue_depth,
            busy_s=meter.busy_s(),
            device_memory_bytes=meter.device_memory_bytes(),
            compiles_after_ready=meter.compiles(),
        )
        await asyncio.sleep(period_s)
