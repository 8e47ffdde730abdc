"""Once a second: alive, so much memory, so many waiting. Silence tells the supervisor that the event loop stands still."""

from __future__ import annotations

import asyncio

from inference.batching.batcher import Batcher
from inference.replica.lifecycle import Lifecycle

PERIOD_S = 1.0


async def beat(life: Lifecycle, batcher: Batcher, period_s: float = PERIOD_S) -> None:
    """Until cancelled."""
    while True:
        life.beat(queue_depth=batcher.queue_depth, busy_s=batcher.statistics.compute_ns / 1e9)
        await asyncio.sleep(period_s)
