"""Executors for the models that the batcher does not run: those with sequences, and those with many answers a request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import cast

from inference.artifacts.manifest import RuntimeSettings
from inference.batching.cache import Cached
from inference.batching.sequences import Instance, SequenceBatcher, SequenceBounds
from inference.batching.slots import SlotRules
from inference.batching.states import Feeder
from inference.batching.streams import StartStream, StreamBounds, Streamer
from inference.batching.whole import run_whole
from inference.errors import InvalidOutput
from inference.models.contract import StreamingModel
from inference.protocol.oip import Signature
from inference.protocol.settings import SequenceSettings
from inference.replica.alarm import Alarm
from inference.runtime.runner import Ran, Runner
from inference.runtime.work import Arrays, Executor, Scalar

ALARM_GRACE_S = 5.0


def stateful(runners: list[Runner], settings: RuntimeSettings, model: str, on_hang: Callable[[], None]) -> Executor:
    """For a version with `sequence`: each runner is an instance with slots of its own."""
    sequence, first = settings.sequence or SequenceSettings(), runners[0]
    alarm = Alarm(settings.hang_timeout_s + ALARM_GRACE_S)
    # A model that is given requests one by one keeps its state by their correlation ids, and knows no slots.
    by_request = bool(getattr(first.model, "runs_requests", False))
    wholes = [runner.run_requests if by_request else partial(run_whole, runner) for runner in runners]
    instances = [
        Instance(_under(alarm, lane, runner.run_requests), _under(alarm, lane, whole))
        for lane, (runner, whole) in enumerate(zip(runners, wholes, strict=True))
    ]
    feeder = Feeder(first.signature, sequence.controls, getattr(first.model, "states", []))
    bounds = SequenceBounds(
        _slot_rules(sequence, first.signature, len(instances)),
        settings.queue_limit,
        settings.hang_timeout_s,
        tuple(first.signature.buckets),
        fills_slots=not by_request,
    )
    return SequenceBatcher(model, instances, feeder, bounds, on_hang=on_hang)


def decoupled(runner: Runner, settings: RuntimeSettings, on_hang: Callable[[], None]) -> Executor:
    """For a version with `decoupled`: its `instances` are places for generators of one model, or for several of them where
    the model says that most of what it does is waiting.
    """
    alarm = Alarm(settings.hang_timeout_s + ALARM_GRACE_S)

    def busy(seconds: float) -> None:
        runner.measures.runs += 1
        runner.measures.busy_s += seconds

    @contextmanager
    def step(place: int) -> Iterator[None]:
        alarm.began(place)
        try:
            yield
        finally:
            alarm.ended(place)

    outputs = frozenset(spec.name for spec in runner.signature.outputs)
    places = settings.instances * int(getattr(runner.model, "streams_per_instance", 1))
    start = cast("StreamingModel", runner.model).stream
    return Streamer(
        _finite(start, runner) if runner.rejects_nonfinite else start,
        StreamBounds(outputs, places, settings.queue_limit, settings.hang_timeout_s),
        on_hang=on_hang,
        on_busy=busy,
        step_guard=step,
        doubts=None if runner.rejects_nonfinite or not runner.minds_nonfinite else runner.is_nonfinite,
    )


def _finite(start: StartStream, runner: Runner) -> StartStream:
    """The same generator, which ends with InvalidOutput at an answer that holds NaN or infinity."""

    def checked(inputs: Arrays, parameters: Mapping[str, Scalar]) -> Iterator[Arrays]:
        for answer in start(inputs, parameters):
            if runner.is_nonfinite(answer):
                raise InvalidOutput
            yield answer

    return checked


def cached(executor: Executor, settings: RuntimeSettings) -> Executor:
    """`executor` behind the version's response cache, if it has one."""
    return Cached(executor, settings.response_cache_bytes) if settings.response_cache_bytes else executor


def _slot_rules(sequence: SequenceSettings, signature: Signature, instances: int) -> SlotRules:
    return SlotRules(
        is_direct=sequence.strategy == "direct",
        instances=instances,
        max_batch_size=signature.max_batch_size or 1,
        max_candidates=sequence.max_candidates,
        max_idle_s=sequence.max_idle_us / 1e6,
        delay_s=sequence.max_queue_delay_us / 1e6,
        preferred=tuple(sequence.preferred_batch_sizes),
        min_utilization=sequence.minimum_slot_utilization,
    )


def _under(alarm: Alarm, lane: int, run: Callable[[list[Arrays]], Ran]) -> Callable[[list[Arrays]], Ran]:
    def watched(requests: list[Arrays]) -> Ran:
        alarm.began(lane)
        try:
            return run(requests)
        finally:
            alarm.ended(lane)

    return watched
