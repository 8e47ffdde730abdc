"""Which executor runs a version's requests: chosen once, by its settings, when the model is warm."""

from __future__ import annotations

import time
from collections.abc import Callable

from inference.artifacts.manifest import RuntimeSettings
from inference.batching import policies
from inference.batching.batcher import Batcher
from inference.batching.bounds import Bounds, Lengths
from inference.batching.window import Rules
from inference.protocol.oip import Signature
from inference.protocol.settings import DEFAULT_WINDOW_MS
from inference.replica import kinds
from inference.replica.alarm import Alarm
from inference.runtime.runner import Ran, Runner
from inference.runtime.warmup import WarmUp
from inference.runtime.work import Arrays, Executor

ALARM_GRACE_S = 5.0
INLINE_BELOW_S = 1e-3  # handing a shorter pass to another thread costs as much as running it


def make(
    runner: Runner, settings: RuntimeSettings, warm: WarmUp, *, on_hang: Callable[[], None], model: str = ""
) -> Executor:
    """The executor for this version. Called in the event loop that it will belong to."""
    if settings.sequence:
        return kinds.stateful([runner, *runner.twins], settings, model, on_hang)
    if settings.decoupled:
        return kinds.decoupled(runner, settings, on_hang)
    return kinds.cached(_batcher(runner, settings, warm, on_hang=on_hang), settings)


def forgets_inputs(runner: Runner, settings: RuntimeSettings) -> bool:
    """Whether nobody reads a request's inputs once it was answered, so that their memory may be used again: no state,
    no cache, and a model that says so of itself.
    """
    keeps = settings.sequence or settings.decoupled or settings.response_cache_bytes
    return not keeps and bool(getattr(runner.model, "forgets_inputs", False))


def _batcher(runner: Runner, settings: RuntimeSettings, warm: WarmUp, *, on_hang: Callable[[], None]) -> Batcher:
    alarm = Alarm(settings.hang_timeout_s + ALARM_GRACE_S)
    is_inline = not runner.twins and getattr(runner.model, "is_straight", False)
    is_timed = is_inline and getattr(runner.model, "is_own_work", False)
    runs = [watched(one, alarm, lane, is_timed=is_timed) for lane, one in enumerate([runner, *runner.twins])]
    bounds = bounds_of(settings, runner.signature, INLINE_BELOW_S if is_inline else 0.0)
    batcher = Batcher(runs, bounds, on_hang=on_hang, lengths=_lengths(runner))
    for rows, ms in warm.latency_ms.items():
        batcher.step.observe(rows, ms / 1e3)
        batcher.compute.observe(rows, ms / 1e3)
    return batcher


def bounds_of(settings: RuntimeSettings, signature: Signature, inline_below_s: float = 0.0) -> Bounds:
    """What the settings say about the batcher, within what the model can do."""
    largest = signature.max_batch_size or 1
    delay_us = settings.max_queue_delay_us
    rules = Rules(
        largest,
        (DEFAULT_WINDOW_MS if settings.window_ms is None else settings.window_ms) / 1e3,
        tuple(sorted({size for size in settings.preferred_batch_sizes if size <= largest})),
        None if delay_us is None else delay_us / 1e6,
    )
    return Bounds(
        rules,
        settings.queue_limit,
        settings.hang_timeout_s,
        policies.of(settings),
        settings.delay_until,
        settings.preserve_ordering,
        settings.latency_objective_ms / 1e3,
        keeps_window=settings.window_ms is not None,
        inline_below_s=inline_below_s,
    )


def watched(runner: Runner, alarm: Alarm, lane: int, *, is_timed: bool = False) -> Callable[[list[Arrays]], Ran]:
    """Runs batches under the kernel's alarm clock; is_timed: and tells the processor time of each."""

    def run(requests: list[Arrays]) -> Ran:
        alarm.began(lane)
        try:
            return runner.run_requests(requests)
        finally:
            alarm.ended(lane)

    def timed(requests: list[Arrays]) -> Ran:
        began = time.thread_time_ns()
        ran = run(requests)
        ran.thread_ns = time.thread_time_ns() - began
        return ran

    return timed if is_timed else run


def _lengths(runner: Runner) -> Lengths | None:
    model = runner.model
    prepare = getattr(model, "prepare", None)
    if prepare is None:
        return None
    return Lengths(prepare, getattr(model, "restore", None), bool(getattr(model, "pads", False)))
