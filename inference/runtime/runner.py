"""Runs a model and lets nothing but this house's errors out, BaseException of native code included.

A batch that fails is bisected, so that one poisonous request costs its neighbours a few milliseconds and not their
answer. A model is blamed only when a known-good input fails too; an input only when others go through.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar, cast

from inference.errors import InvalidOutput, ModelFailed, OutOfMemory, PoisonInput, SerinusError
from inference.models.contract import Model, RequestModel
from inference.protocol.oip import Signature
from inference.runtime import tensors
from inference.runtime.tensors import Arrays

T = TypeVar("T")
log = logging.getLogger(__name__)
_MEMORY_SIGNS = (
    "out of memory",
    "resource_exhausted",
    "can't allocate memory",
    "not enough memory",
    "failed to allocate memory",
    "bad_alloc",
)


@dataclass(slots=True)
class Measures:
    """Sums since the start. busy_s: seconds inside the model; nonfinite: rows with a NaN or an infinity."""

    runs: int = 0
    rows: int = 0
    padded_rows: int = 0
    failures: int = 0
    nonfinite: int = 0
    busy_s: float = 0.0


@dataclass(slots=True)
class Ran:
    """What one pass gave: each request's outputs or error, and the time (ns) to put the batch together, run it and
    take it apart. padded_rows: rows that were run for nothing; elements, padding_elements: the same in elements where
    rows have lengths. thread_ns: the processor time that it took of its thread, where somebody asked for that. doubts:
    where some output of the pass was not finite, says of one request's whether they are.
    """

    results: Sequence[Arrays | SerinusError]
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0
    padded_rows: int = 0
    elements: int = 0
    padding_elements: int = 0
    thread_ns: int | None = None
    doubts: Callable[[Arrays], bool] | None = None


class Runner:
    """One model, one forward pass at a time. `busy_since` (monotonic s) is for a watchdog; None when idle.

    `twins` run beside it, each in a thread of its own: the same model where it may be shared, else another copy.
    rejects_nonfinite: a request whose answer holds NaN or infinity gets InvalidOutput, and its neighbours their answers.
    minds_nonfinite: such an answer is told from others; False where the model gives infinity to say something.
    """

    def __init__(self, model: Model, *, rejects_nonfinite: bool = False, minds_nonfinite: bool = True) -> None:
        self.model = model
        self.rejects_nonfinite = rejects_nonfinite
        self.minds_nonfinite = minds_nonfinite
        self.twins: list[Runner] = []
        self.measures = Measures()
        self.busy_since: float | None = None
        self._work = getattr(model, "work", None)
        self._ran = Ran([])
        self._known_good: Arrays | None = None
        self._compiles_when_ready = 0

    @property
    def signature(self) -> Signature:
        return self.model.signature

    @cached_property
    def _bf16(self) -> frozenset[str]:
        return frozenset(spec.name for spec in self.signature.outputs if spec.datatype == "BF16")

    @property
    def compiles_after_ready(self) -> int:
        """How often the model compiled since `mark_ready`: must stay 0, or a request paid for it."""
        own = self._compiles() - self._compiles_when_ready
        return own + sum(twin.compiles_after_ready for twin in self.twins if twin.model is not self.model)

    @property
    def busy_s(self) -> float:
        """Seconds inside the model, on the average of this and its twins: rises by a second a second at most."""
        return (self.measures.busy_s + sum(twin.busy_s for twin in self.twins)) / (1 + len(self.twins))

    @property
    def device_memory_bytes(self) -> int:
        """What the model says that it holds of its accelerator; 0 where it cannot tell."""
        return int(getattr(self.model, "device_memory_bytes", 0))

    def mark_ready(self, known_good: Arrays | None = None) -> None:
        """Called after the warm-up; `known_good` is an input of which the model is known to answer."""
        self._known_good = known_good
        self._compiles_when_ready = self._compiles()

    def grow(self, count: int, load_again: Callable[[], Model], warm: Callable[[Runner], object]) -> None:
        """Makes it `count` runners in all, each able to run while the others do.

        A model that says `is_shareable` is shared; any other is loaded and warmed again for each.
        """
        for _ in range(count - 1):
            if getattr(self.model, "is_shareable", False):
                twin = self._like(self.model)
                twin.mark_ready(self._known_good)
            else:
                twin = self._like(load_again())
                warm(twin)
            self.twins.append(twin)

    def _like(self, model: Model) -> Runner:
        return Runner(model, rejects_nonfinite=self.rejects_nonfinite, minds_nonfinite=self.minds_nonfinite)

    def is_nonfinite(self, outputs: Arrays) -> bool:
        """Whether an output holds NaN or infinity, and whether that matters here."""
        return self.minds_nonfinite and tensors.nonfinite_rows(outputs, self._bf16) > 0

    def run(self, inputs: Arrays) -> Arrays:
        """Outputs for a batch of any size up to the largest; it is padded to the next bucket and cut back here.

        Raises InvalidInput, OutOfMemory or ModelFailed, and nothing else.
        """
        batched = bool(self.signature.max_batch_size)
        rows = tensors.rows_of(self.signature, inputs)
        size = tensors.bucket_for(self.signature, rows) if batched else rows
        outputs = self._forward(tensors.pad(inputs, size) if size > rows else inputs)
        if batched:
            self._check_rows(outputs, size)
        if size > rows:
            outputs = tensors.split(outputs, [rows])[0]
        self._count(outputs, rows, size - rows)
        if self._work:
            elements, padding = self._work(inputs)
            self._ran.elements += elements
            self._ran.padding_elements += padding
        return outputs

    def run_requests(self, requests: Sequence[Arrays]) -> Ran:
        """`run_isolated`, and where the time went."""
        ran = self._ran = Ran([])
        nonfinite = self.measures.nonfinite
        ran.results = self.run_isolated(requests)
        if self.measures.nonfinite > nonfinite:
            ran.doubts = self.is_nonfinite
        return ran

    def run_isolated(self, requests: Sequence[Arrays]) -> list[Arrays | SerinusError]:
        """One forward pass for all; when it fails, each request's own answer or its own error.

        1. All together. 2. Failed: both halves, down to single requests. 3. A single failure is PoisonInput when any
        other request, or failing that the known-good input, goes through; else the model's failure. A model that takes
        its requests one by one answers for each itself. 4. Answers that are not finite are
        refused where the version says so.
        """
        nonfinite = self.measures.nonfinite
        if getattr(self.model, "runs_requests", False):
            found = self._unmerged(requests)
            return [self.refused(one) for one in found] if self.rejects_nonfinite else found
        found = self._bisected(requests)
        if self.rejects_nonfinite and self.measures.nonfinite > nonfinite:
            found = [self.refused(one) for one in found]
        return self._blamed(found) if any(isinstance(one, ModelFailed) for one in found) else found

    def close(self) -> None:
        self.model.close()
        for twin in self.twins:
            twin.close()

    def _bisected(self, requests: Sequence[Arrays]) -> list[Arrays | SerinusError]:
        try:
            began = time.perf_counter_ns()
            rows = [tensors.rows_of(self.signature, request) for request in requests]
            stacked = tensors.stack(requests)
            self._ran.input_ns += time.perf_counter_ns() - began
            outputs = self.run(stacked)
        except SerinusError as error:
            if len(requests) == 1:
                return [error]
            middle = len(requests) // 2
            return self._bisected(requests[:middle]) + self._bisected(requests[middle:])
        except Exception as error:  # noqa: BLE001 (requests that cannot be stacked)
            if len(requests) == 1:
                return [_translated(error)]
            return [answer for request in requests for answer in self._bisected([request])]
        if len(requests) == 1:
            return [outputs]
        began = time.perf_counter_ns()
        found: list[Arrays | SerinusError] = list(tensors.split(outputs, rows))
        self._ran.output_ns += time.perf_counter_ns() - began
        return found

    def _unmerged(self, requests: Sequence[Arrays]) -> list[Arrays | SerinusError]:
        model = cast("RequestModel", self.model)
        try:
            rows = [tensors.rows_of(self.signature, request) for request in requests]
            found = self._timed(lambda: model.run_requests(list(requests)))
        except SerinusError as error:
            return [error] * len(requests)
        for index, (answer, size) in enumerate(zip(found, rows, strict=True)):
            if isinstance(answer, SerinusError):
                self.measures.failures += 1
                continue
            try:
                if self.signature.max_batch_size:
                    self._check_rows(answer, size)
                self._count(answer, size, 0)
            except SerinusError as error:
                found[index] = error
        return found

    def _blamed(self, found: list[Arrays | SerinusError]) -> list[Arrays | SerinusError]:
        works = any(isinstance(one, dict) for one in found) or self._control_passes()
        return [PoisonInput() if works and isinstance(one, ModelFailed) else one for one in found]

    def _control_passes(self) -> bool:
        if self._known_good is None:
            return False
        try:
            self.run(self._known_good)
        except SerinusError:
            return False
        return True

    def _forward(self, inputs: Arrays) -> Arrays:
        return self._timed(lambda: self.model.run(inputs))

    def _timed(self, act: Callable[[], T]) -> T:
        """What `act` gives, under the watchdog's clock; raises this house's errors only."""
        self.busy_since = time.monotonic()
        started = time.perf_counter_ns()
        try:
            return act()
        except BaseException as error:
            self.measures.failures += 1
            raise _translated(error) from error
        finally:
            self.busy_since = None
            took_ns = time.perf_counter_ns() - started
            self._ran.infer_ns += took_ns
            self.measures.busy_s += took_ns / 1e9

    def _check_rows(self, outputs: Arrays, rows: int) -> None:
        """A model that gives back other rows than it was given would hand one caller's answer to another."""
        for name, array in outputs.items():
            if not array.ndim or array.shape[0] != rows:
                self.measures.failures += 1
                log.error("output %s has shape %s for a batch of %d", name, array.shape, rows)
                raise ModelFailed

    def _count(self, outputs: Arrays, rows: int, padded: int) -> None:
        self.measures.runs += 1
        self.measures.rows += rows
        self.measures.padded_rows += padded
        self._ran.padded_rows += padded
        if self.minds_nonfinite:
            self.measures.nonfinite += tensors.nonfinite_rows(outputs, self._bf16)

    def refused(self, found: Arrays | SerinusError) -> Arrays | SerinusError:
        """InvalidOutput in the place of an answer with NaN or infinity; anything else as it is."""
        return InvalidOutput() if isinstance(found, dict) and self.is_nonfinite(found) else found

    def _compiles(self) -> int:
        return int(getattr(self.model, "compiles", 0))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a framework's exception says that memory ran out, on the host or on the device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(sign in str(error).lower() for sign in _MEMORY_SIGNS)


def _translated(error: BaseException) -> SerinusError:
    if isinstance(error, SerinusError):
        return error
    log.error("the model raised %s", type(error).__name__, exc_info=error)
    return OutOfMemory() if is_out_of_memory(error) else ModelFailed()
