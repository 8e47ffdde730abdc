"""Proves a model on inputs made from its signature: every batch size it will be run at, before anybody waits for it.

Used by validation (verdict, latency by batch size) and by each replica at its start (nothing compiles after READY).
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from inference.errors import InvalidInput, ModelFailed, OutOfMemory, Rejected, SerinusError
from inference.models.contract import StreamingModel
from inference.protocol.oip import Signature, TensorSpec
from inference.runtime import tensors
from inference.runtime.runner import Runner
from inference.runtime.samples import Sample
from inference.runtime.tensors import Arrays

# Sizes tried for free dimensions that are no batch: a sequence, none, a small image, a large one.
FREE_SIZES = (16, 1, 64, 224)
TEXT = "a serinus sings at batch row"
CHECK = "warm-up"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WarmUp:
    """latency_ms: batch size -> median of one forward pass in ms. sample: an input the model answered, batch 1."""

    latency_ms: dict[int, float]
    sample: Arrays


def synthetic(signature: Signature, rows: int, free_size: int = FREE_SIZES[0]) -> Arrays:
    """Inputs that fit: readable text for BYTES, ones for floats, 0 or 1 for integers (a token id in any vocabulary)."""
    return {
        spec.name: _values(spec, _shape(spec, rows if signature.max_batch_size else 0, free_size))
        for spec in signature.inputs
    }


def sizes(signature: Signature) -> list[int]:
    """The batch sizes to warm: every bucket, else 1 and the largest; [1] where nothing is batched."""
    if signature.buckets:
        return list(signature.buckets)
    return sorted({1, max(1, signature.max_batch_size)})


def warm_up(
    runner: Runner,
    *,
    repeats: int = 3,
    told: Callable[[int], None] | None = None,
    samples: Sequence[Sample] = (),
) -> WarmUp:
    """Runs every size once unmeasured and `repeats` times measured, checks the outputs, marks the runner ready.

    1. The author's own `samples`. 2. Find sizes for free dimensions that the model takes. 3. Each batch size, `told`
    before each, and each of them at each of the model's own lengths. 4. Mark ready.
    Raises Rejected when the model fails or answers other than its signature says; OutOfMemory passes through. A model
    that may refuse made-up inputs (`answers_anything`) is proved by its samples alone; where it answers made-up ones,
    they are measured.
    """
    good = [sample for sample in samples if _runs_sample(runner, sample)]
    if not getattr(runner.model, "answers_anything", False):
        return _proved(runner, repeats, told)
    known_good = good[0].inputs if good else None
    try:
        return _proved(runner, repeats, told)
    except (Rejected, InvalidInput) as error:
        log.warning("the model refuses inputs that are made from its signature: %s", error.message)
    runner.mark_ready(known_good)
    return WarmUp({}, known_good or synthetic(runner.signature, 1))


def _runs_sample(runner: Runner, sample: Sample) -> bool:
    """False for one that asks other models, which cannot be asked before requests come: it proves nothing. Raises Rejected
    for one that fails.
    """
    before = _asked_in_vain(runner)
    try:
        for _ in range(sample.count):
            runner.run(sample.inputs)
    except OutOfMemory:
        raise
    except SerinusError as error:
        if _asked_in_vain(runner) > before:
            log.warning("the warm-up sample '%s' asks other models, which cannot be asked yet", sample.name)
            return False
        raise _rejected(f"the model fails on its own warm-up sample '{sample.name}': {_cause(error)}") from error
    return True


def _asked_in_vain(runner: Runner) -> int:
    return int(getattr(runner.model, "asked_in_vain", 0))


def _proved(runner: Runner, repeats: int, told: Callable[[int], None] | None) -> WarmUp:
    free_size = _accepted_size(runner)
    latency_ms: dict[int, float] = {}
    for size in sizes(runner.signature):
        if told:
            told(size)
        inputs = synthetic(runner.signature, size, free_size)
        verify(runner.signature, _run(runner, inputs, size), size)
        latency_ms[size] = _median_ms(runner, inputs, repeats)
    for length in getattr(runner.model, "warm_lengths", ()):
        for size in sizes(runner.signature):
            _run(runner, synthetic(runner.signature, size, length), size)
    sample = synthetic(runner.signature, 1, free_size)
    runner.mark_ready(sample)
    return WarmUp(latency_ms, sample)


def warm_up_stream(runner: Runner, *, samples: Sequence[Sample] = ()) -> WarmUp:
    """Asks a decoupled model for the first answer of a request of one row. latency_ms: until that came.

    Raises Rejected when it fails, or answers with outputs or datatypes that its signature does not have. A model may
    answer nothing.
    """
    for sample in samples:
        _runs_sample(runner, sample)
    last: Exception | None = None
    for free_size in FREE_SIZES:
        inputs = synthetic(runner.signature, 1, free_size)
        started = time.perf_counter()
        try:
            first = _first_answer(cast("StreamingModel", runner.model), inputs)
        except Exception as error:  # noqa: BLE001 (whatever the framework raised, another size may do)
            last = error
            continue
        _verify_some(runner.signature, first)
        runner.mark_ready()
        return WarmUp({1: round((time.perf_counter() - started) * 1000, 3)}, inputs)
    if getattr(runner.model, "answers_anything", False):
        runner.mark_ready()
        return WarmUp({}, synthetic(runner.signature, 1))
    reason = f"{type(last).__name__}: {str(last)[:300]}"
    raise _rejected(f"the model fails on an input made from its signature: {reason}") from last


def _first_answer(model: StreamingModel, inputs: Arrays) -> Arrays:
    answers = iter(model.stream(inputs, {}))
    try:
        return next(answers, {})
    finally:
        closer = getattr(answers, "close", None)
        if callable(closer):
            closer()


def _verify_some(signature: Signature, answer: Arrays) -> None:
    specs = {spec.name: spec for spec in signature.outputs}
    if unknown := answer.keys() - specs.keys():
        raise _rejected(f"the model answers {sorted(unknown)}, which its signature does not have")
    for name, array in answer.items():
        if array.dtype != tensors.numpy_dtype(specs[name].datatype):
            raise _rejected(f"output {name} is {array.dtype}, its signature says {specs[name].datatype}")


def verify(signature: Signature, outputs: Arrays, rows: int) -> None:
    """Raises Rejected unless `outputs` are those of the signature in name, datatype and shape for a batch of `rows`."""
    names = {spec.name for spec in signature.outputs}
    if outputs.keys() != names:
        raise _rejected(f"the model answers {sorted(outputs)}, its signature says {sorted(names)}")
    for spec in signature.outputs:
        array = outputs[spec.name]
        if array.dtype != tensors.numpy_dtype(spec.datatype):
            raise _rejected(f"output {spec.name} is {array.dtype}, its signature says {spec.datatype}")
        wanted = [rows, *spec.shape[1:]] if signature.max_batch_size else spec.shape
        if len(wanted) != array.ndim or any(w not in (-1, h) for w, h in zip(wanted, array.shape, strict=True)):
            raise _rejected(f"output {spec.name} has shape {list(array.shape)} at batch {rows}, not {wanted}")


def _accepted_size(runner: Runner) -> int:
    if lengths := getattr(runner.model, "warm_lengths", ()):
        return int(lengths[0])
    start = 1 if runner.signature.max_batch_size else 0
    free = any(-1 in spec.shape[start:] for spec in runner.signature.inputs)
    last: SerinusError | None = None
    for size in FREE_SIZES if free else FREE_SIZES[:1]:
        try:
            runner.run(synthetic(runner.signature, 1, size))
        except ModelFailed as error:
            last = error
        else:
            return size
    raise _rejected(f"the model fails on an input made from its signature: {_cause(last)}") from last


def _run(runner: Runner, inputs: Arrays, size: int) -> Arrays:
    try:
        return runner.run(inputs)
    except ModelFailed as error:
        raise _rejected(f"the model fails at batch {size}: {_cause(error)}") from error


def _median_ms(runner: Runner, inputs: Arrays, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        runner.run(inputs)
        times.append((time.perf_counter() - started) * 1000)
    return round(statistics.median(times), 3) if times else 0.0


def _shape(spec: TensorSpec, rows: int, free_size: int) -> list[int]:
    shape = [free_size if size == -1 else size for size in spec.shape]
    return [rows, *shape[1:]] if rows else shape


def _values(spec: TensorSpec, shape: list[int]) -> np.ndarray[Any, Any]:
    if spec.datatype == "BYTES":
        texts = np.empty(int(np.prod(shape)), dtype=object)
        texts[:] = [f"{TEXT} {index}".encode() for index in range(texts.size)]
        return texts.reshape(shape)
    if spec.datatype == "BF16":
        return np.full(shape, 0x3F80, dtype="<u2")  # 1.0
    return np.ones(shape, dtype=tensors.numpy_dtype(spec.datatype))


def _cause(error: BaseException | None) -> str:
    cause = error.__cause__ if error else None
    text = str(cause).strip().splitlines() if cause else []
    return f"{type(cause).__name__}: {text[0][:300]}" if text else type(cause or error).__name__


def _rejected(reason: str) -> Rejected:
    remedy = "run the exported file on the same shapes yourself; see docs/formats.md for what each format needs"
    return Rejected(reason, remedy=remedy, check=CHECK)
