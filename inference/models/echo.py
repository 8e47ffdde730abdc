"""A real model that one can calculate by hand: output = input * factor + offset, and faults on magic values.

It ships with the product and is what the fault matrix is tested with. `echo.json` is data: it can ask for a fault by
name when a value turns up in the input, and for nothing that is not written here.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np

from inference.errors import Rejected
from inference.models import batch
from inference.models.entry import checked
from inference.protocol.oip import DATATYPES, Signature, TensorSpec

if TYPE_CHECKING:
    from inference.models.contract import Arrays, LoadContext, Scalar

FILE = "echo.json"
DEFAULT_SIGNATURE = Signature(
    inputs=[TensorSpec("input", "FP32", [-1, 4])],
    outputs=[TensorSpec("output", "FP32", [-1, 4])],
    max_batch_size=32,
)
FaultKind = Literal["raise", "abort", "exit", "interrupt", "hang", "nan", "allocate", "busy"]


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When any element of the input equals `value`, do `kind`.

    raise: RuntimeError; abort: the process dies by SIGABRT; exit: SystemExit; interrupt: KeyboardInterrupt; hang:
    sleep for ever; busy: compute for ever; nan: NaN in the rows that hold the value; allocate: take memory for ever.
    """

    value: float
    kind: FaultKind


class EchoPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`echo.json`; `{}` is enough: FP32 `input` [-1, 4] comes back as `output`, in batches of up to 32.

    The i-th output of `signature` is its i-th input * factor + offset, computed in float64 and given back in the
    output's datatype; BYTES, BOOL and BF16 come back as they are. With `signature.buckets` the model insists on those
    batch sizes. `at_load` is a fault of the loading itself. As a decoupled model it answers `repeat` times, or as often
    as the request's parameter `repeat` says; answer i (from 0) of numbers has i added, and each takes `sleep_ms`.
    """

    signature: Signature = DEFAULT_SIGNATURE
    factor: float = 1.0
    offset: float = 0.0
    sleep_ms: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    sleep_ms_per_row: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    faults: list[Fault] = msgspec.field(default_factory=list)
    at_load: FaultKind | None = None
    repeat: Annotated[int, msgspec.Meta(ge=0)] = 1


def load(context: LoadContext) -> EchoModel:
    """The model that `echo.json` describes. Raises Rejected when it cannot be read."""
    plan = _read(context.folder / FILE)
    if plan.at_load:
        strike(plan.at_load)
    return EchoModel(plan, batch.limited(plan.signature, context.settings))


class EchoModel:
    """Elementwise, so batching cannot change an answer."""

    is_shareable = True
    forgets_inputs = True

    def __init__(self, plan: EchoPlan, signature: Signature) -> None:
        self._plan = plan
        self.signature = msgspec.structs.replace(signature, platform="echo")

    def run(self, inputs: Arrays) -> Arrays:
        first = inputs[self.signature.inputs[0].name]
        rows = first.shape[0] if first.ndim else 1
        self._insist(rows)
        time.sleep((self._plan.sleep_ms + self._plan.sleep_ms_per_row * rows) / 1000)
        pairs = zip(self.signature.inputs, self.signature.outputs, strict=True)
        return {there.name: self._answer(inputs[here.name], there.datatype) for here, there in pairs}

    def stream(self, inputs: Arrays, parameters: Mapping[str, Scalar]) -> Iterator[Arrays]:
        for at in range(int(parameters.get("repeat", self._plan.repeat))):
            answer = self.run(inputs)
            yield {
                name: array if array.dtype.kind in "Ob" else array + array.dtype.type(at)
                for name, array in answer.items()
            }

    def close(self) -> None:
        """Nothing is held."""

    def _insist(self, rows: int) -> None:
        if self.signature.buckets and rows not in self.signature.buckets:
            raise ValueError(f"a batch of {rows}; this program has {self.signature.buckets}")

    def _answer(self, array: np.ndarray[Any, Any], datatype: str) -> np.ndarray[Any, Any]:
        if datatype in {"BYTES", "BOOL", "BF16"}:
            answer = array.copy()
        else:
            answer = np.asarray(array * self._plan.factor + self._plan.offset).astype(DATATYPES[datatype][1])
        for fault in self._plan.faults:
            hit = _where(array, fault.value)
            if hit.any() and fault.kind == "nan":
                answer[hit.reshape(len(hit), -1).any(axis=1)] = np.nan
            elif hit.any():
                strike(fault.kind)
        return answer


def strike(kind: FaultKind) -> None:
    """Does what the fault's name says; `nan` is none of its business."""
    STRIKES[kind]()


def _raise() -> None:
    raise RuntimeError("echo: asked to raise")


def _exit() -> None:
    sys.exit(3)


def _interrupt() -> None:
    raise KeyboardInterrupt


def _hang() -> None:
    while True:
        time.sleep(3600)


def _busy() -> None:
    while True:
        np.ones((512, 512)) @ np.ones((512, 512))


def _allocate() -> None:
    held = []
    while True:
        held.append(np.ones(8 << 20, dtype="<f8"))


STRIKES: dict[str, Callable[[], None]] = {
    "raise": _raise,
    "abort": os.abort,
    "exit": _exit,
    "interrupt": _interrupt,
    "hang": _hang,
    "busy": _busy,
    "allocate": _allocate,
    "nan": lambda: None,
}


def _where(array: np.ndarray[Any, Any], value: float) -> np.ndarray[Any, Any]:
    if array.dtype == object:
        wanted = f"{value:g}".encode()
        return np.array([item == wanted for item in array.ravel()], dtype=bool).reshape(array.shape)
    return np.asarray(array == array.dtype.type(value) if array.dtype.kind in "fb" else array == int(value))


def _read(path: Path) -> EchoPlan:
    try:
        plan = msgspec.json.decode(path.read_bytes(), type=EchoPlan)
    except (OSError, msgspec.MsgspecError) as error:
        raise Rejected(
            f"{FILE} cannot be read: {error}", remedy="see docs/formats.md for its fields", check="load"
        ) from error
    if len(plan.signature.inputs) != len(plan.signature.outputs):
        raise Rejected(
            f"{FILE}: as many outputs as inputs are needed", remedy="name one output per input", check="load"
        )
    checked(plan.signature)
    return plan
