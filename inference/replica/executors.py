"""Which executor runs a version's requests: chosen once, by its settings, when the model is warm."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from typing import cast

from inference.artifacts.manifest import RuntimeSettings
from inference.batching.batcher import Batcher, Bounds
from inference.batching.cache import Cached
from inference.batching.sequences import Instance, SequenceBatcher, SequenceBounds
from inference.batching.slots import SlotRules
from inference.batching.states import Feeder
from inference.batching.streams import StreamBounds, Streamer
from inference.batching.whole import run_whole
from inference.batching.window import Rules
from inference.batching.work import Arrays, Executor
from inference.models.contract import StreamingModel
from inference.protocol.oip import Signature
from inference.protocol.settings import SequenceSettings
from inference.replica.alarm import Alarm
from inference.runtime.runner import Ran, Runner
from inference.runtime.warmup import WarmUp

ALARM_GRACE_S = 5.0


def make(
    runner: Runner, settings: RuntimeSettings, warm: WarmUp, *, on_hang: Callable[[], None], model: str = ""
) -> Executor:
    """The executor for this version. Called in the event loop that it will belong to."""
    if settings.sequence:
        return stateful(runner, settings, settings.sequence, on_hang=on_hang, model=model)
    if settings.decoupled:
        return decoupled(runner, settings, on_hang=on_hang)
    rules = Rules(runner.signature.max_batch_size or 1, settings.window_ms / 1e3)
    bounds = Bounds(rules, settings.queue_limit, settings.hang_timeout_s)
    batcher = Batcher(watched(runner, settings.hang_timeout_s + ALARM_GRACE_S), bounds, on_hang=on_hang)
    for rows, ms in warm.latency_ms.items():
        batcher.step.observe(rows, ms / 1e3)
    return Cached(batcher, settings.response_cache_bytes) if settings.response_cache_bytes else batcher


def stateful(
    runner: Runner, settings: RuntimeSettings, sequence: SequenceSettings, *, on_hang: Callable[[], None], model: str
) -> SequenceBatcher:
    """For models with sequences."""
    alarm = Alarm(settings.hang_timeout_s + ALARM_GRACE_S)
    instance = Instance(_under(alarm, runner.run_requests), _under(alarm, partial(run_whole, runner)))
    feeder = Feeder(runner.signature, sequence.controls, getattr(runner.model, "states", []))
    bounds = SequenceBounds(
        _slot_rules(sequence, runner.signature),
        settings.queue_limit,
        settings.hang_timeout_s,
        tuple(runner.signature.buckets),
    )
    return SequenceBatcher(model, [instance], feeder, bounds, on_hang=on_hang)


def decoupled(runner: Runner, settings: RuntimeSettings, *, on_hang: Callable[[], None]) -> Streamer:
    """For models that answer a request any number of times."""

    def busy(seconds: float) -> None:
        runner.measures.runs += 1
        runner.measures.busy_s += seconds

    outputs = frozenset(spec.name for spec in runner.signature.outputs)
    return Streamer(
        cast("StreamingModel", runner.model).stream,
        StreamBounds(outputs, settings.instances, settings.queue_limit, settings.hang_timeout_s),
        on_hang=on_hang,
        on_busy=busy,
        step_guard=Alarm(settings.hang_timeout_s + ALARM_GRACE_S).over,
    )


def _slot_rules(sequence: SequenceSettings, signature: Signature) -> SlotRules:
    return SlotRules(
        is_direct=sequence.strategy == "direct",
        instances=1,
        max_batch_size=signature.max_batch_size or 1,
        max_candidates=sequence.max_candidates,
        max_idle_s=sequence.max_idle_us / 1e6,
        delay_s=sequence.max_queue_delay_us / 1e6,
        preferred=tuple(sequence.preferred_batch_sizes),
        min_utilization=sequence.minimum_slot_utilization,
    )


def _under(alarm: Alarm, run: Callable[[list[Arrays]], Ran]) -> Callable[[list[Arrays]], Ran]:
    def watched_run(requests: list[Arrays]) -> Ran:
        with alarm.over():
            return run(requests)

    return watched_run


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
