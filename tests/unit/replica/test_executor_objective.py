"""A latency objective as the only setting of a version, and what the running batcher makes of it."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from inference.batching.batcher import Batcher
from inference.protocol.oip import Signature
from inference.protocol.settings import RuntimeSettings
from inference.replica.executors import bounds_of
from inference.runtime.runner import Ran
from inference.runtime.work import Arrays

LARGEST = Signature([], [], max_batch_size=64)
PER_ROW_S = 0.002
OBJECTIVE_MS = 120.0


def paced(requests: list[Arrays]) -> Ran:
    """A model whose pass takes 2 ms a row."""
    time.sleep(PER_ROW_S * len(requests))
    return Ran([{"y": request["x"]} for request in requests])


async def after_bursts(settings: RuntimeSettings) -> Batcher:
    """The batcher of a version with these settings, after so many bursts that it knows its steps and latencies."""
    batcher = Batcher(paced, bounds_of(settings, LARGEST), on_hang=lambda: None)
    x = {"x": np.zeros((1, 1), "f4")}
    for rows in (1, 2, 4, 8) * 10:
        await asyncio.gather(*(batcher.predict(x, 1, deadline=time.monotonic() + 10) for _ in range(rows)))
    return batcher


async def test_window_and_size_are_found_from_the_objective_alone() -> None:
    batcher = await after_bursts(RuntimeSettings(latency_objective_ms=OBJECTIVE_MS))
    found = batcher.rules
    batcher.stop()
    assert found.window_s != bounds_of(RuntimeSettings(), LARGEST).rules.window_s
    # two passes and the window fit into the objective, so a batch of 64, which takes 128 ms, is not formed
    step = batcher.step.value
    assert 1 < found.max_batch_size < 64
    assert 2 * step.of(found.max_batch_size) + found.window_s <= OBJECTIVE_MS / 1e3


@pytest.mark.parametrize(
    "own",
    [{"window_ms": 2.0}, {"window_ms": 5.0}, {"max_queue_delay_us": 3000}],
    ids=["window", "as_the_default", "delay"],
)
async def test_what_the_version_sets_itself_wins(own: dict[str, float]) -> None:
    settings = RuntimeSettings(latency_objective_ms=OBJECTIVE_MS, **own)  # type: ignore[arg-type]
    batcher = await after_bursts(settings)
    found, asked = batcher.rules, bounds_of(settings, LARGEST).rules
    batcher.stop()
    assert (found.window_s, found.max_delay_s) == (asked.window_s, asked.max_delay_s)
    assert found.max_batch_size < 64


async def test_without_an_objective_nothing_moves() -> None:
    batcher = await after_bursts(RuntimeSettings())
    found = batcher.rules
    batcher.stop()
    assert found == bounds_of(RuntimeSettings(), LARGEST).rules
