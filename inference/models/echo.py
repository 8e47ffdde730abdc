"""A real model that one can calculate by hand: output = input * factor + offset, and faults on magic values.

It ships with the product and is what the fault matrix is tested with. `echo.json` is data: it can ask for a fault by
name when a value turns up in the input, and for nothing that is not written here.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np

from inference.errors import Rejected
from inference.protocol.oip import DATATYPES, Signature, TensorSpec

if TYPE_CHECKING:
    from inference.models.contract import Arrays, LoadContext

FILE = "echo.json"
FaultKind = Literal["raise", "abort", "exit", "interrupt", "hang", "nan", "allocate", "busy"]


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When any element of the input equals `value`, do `kind`.

    raise: RuntimeError; abort: the process dies by SIGABRT; exit: SystemExit; interrupt: KeyboardInterrupt; hang:
    sleep for ever; busy: compute for ever; nan: NaN in the rows that hold the value; allocate: take memory for ever.
    """

    value: float
    kind: FaultKind


class EchoPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`echo.json`. `at_load` is a fault of the loading itself; `buckets` makes the model insist on those sizes."""

    format: Literal["echo"] = "echo"
    input: str = "input"
    output: str = "output"
    datatype: str = "FP32"
    shape: list[int] = msgspec.field(default_factory=lambda: [-1, 4])
    factor: float = 1.0
    offset: float = 0.0
    sleep_ms: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    sleep_ms_per_row: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    max_batch_size: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 32
    buckets: list[int] = msgspec.field(default_factory=list)
    faults: list[Fault] = msgspec.field(default_factory=list)
    at_load: FaultKind | None = None


def load(context: LoadContext) -> EchoModel:
    """The model that `echo.json` describes. Raises Rejected when it cannot be read."""
    plan = _read(context.folder / FILE)
    if plan.at_load:
        strike(plan.at_load)
    largest = plan.max_batch_size
    if largest and context.settings.max_batch_size:
        largest = min(largest, context.settings.max_batch_size)
    return EchoModel(plan, largest)


class EchoModel:
    """Elementwise, so batching cannot change an answer. BYTES come back as they are."""

    def __init__(self, plan: EchoPlan, largest: int) -> None:
        self._plan = plan
        self.signature = Signature(
            inputs=[TensorSpec(plan.input, plan.datatype, plan.shape)],
            outputs=[TensorSpec(plan.output, plan.datatype, plan.shape)],
            max_batch_size=largest,
            buckets=plan.buckets,
            platform="echo",
        )

    def run(self, inputs: Arrays) -> Arrays:
        array = inputs[self._plan.input]
        rows = array.shape[0] if array.ndim else 1
        self._insist(rows)
        time.sleep((self._plan.sleep_ms + self._plan.sleep_ms_per_row * rows) / 1000)
        answer = self._answer(array)
        for fault in self._plan.faults:
            hit = _where(array, fault.value)
            if not hit.any():
                continue
            if fault.kind == "nan":
                answer[hit.reshape(rows, -1).any(axis=1)] = np.nan
            else:
                strike(fault.kind)
        return {self._plan.output: answer}

    def close(self) -> None:
        """Nothing is held."""

    def _insist(self, rows: int) -> None:
        if self.signature.buckets and rows not in self.signature.buckets:
            raise ValueError(f"a batch of {rows}; this program has {self.signature.buckets}")

    def _answer(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if self._plan.datatype in {"BYTES", "BOOL", "BF16"}:
            return array.copy()
        return np.asarray(array * self._plan.factor + self._plan.offset, dtype=array.dtype)


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
    if plan.datatype not in DATATYPES:
        raise Rejected(
            f"{FILE} names the datatype {plan.datatype!r}", remedy="use one of OIP's datatypes", check="load"
        )
    return plan
