"""Which executor runs a version's requests: chosen once, by its settings, when the model is warm."""

from __future__ import annotations

import signal
from collections.abc import Callable

from inference.artifacts.manifest import RuntimeSettings
from inference.batching.batcher import Batcher, Bounds
from inference.batching.window import Rules
from inference.batching.work import Arrays, Executor
from inference.replica import kinds
from inference.runtime.runner import Ran, Runner
from inference.runtime.warmup import WarmUp

ALARM_GRACE_S = 5.0


def make(
    runner: Runner, settings: RuntimeSettings, warm: WarmUp, *, on_hang: Callable[[], None], model: str = ""
) -> Executor:
    """The executor for this version. Called in the event loop that it will belong to."""
    if settings.sequence:
        return kinds.stateful([runner, *getattr(runner, "twins", [])], settings, model, on_hang)
    if settings.decoupled:
        return kinds.decoupled(runner, settings, on_hang)
    rules = Rules(runner.signature.max_batch_size or 1, settings.window_ms / 1e3)
    bounds = Bounds(rules, settings.queue_limit, settings.hang_timeout_s)
    batcher = Batcher(watched(runner, settings.hang_timeout_s + ALARM_GRACE_S), bounds, on_hang=on_hang)
    for rows, ms in warm.latency_ms.items():
        batcher.step.observe(rows, ms / 1e3)
    return kinds.cached(batcher, settings)


def watched(runner: Runner, alarm_s: float) -> Callable[[list[Arrays]], Ran]:
    """Runs batches under the kernel's alarm clock."""

    # The event loop's own watchdog cannot run while native code holds the interpreter's lock; the kernel's can.
    def run(requests: list[Arrays]) -> Ran:
        signal.setitimer(signal.ITIMER_REAL, alarm_s)
        try:
            return runner.run_requests(requests)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    return run
