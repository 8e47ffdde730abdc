"""What a stateful model gets beside a request's own inputs: controls, and the state that its sequence left behind.

State is kept as host arrays, one row a sequence. It is an opaque value to all but this file, so that a feeder that
leaves it on the device can take this one's place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inference.errors import InvalidInput
from inference.models.shaped import State
from inference.protocol.oip import Signature
from inference.protocol.settings import ControlInput
from inference.runtime import tensors
from inference.runtime.work import Arrays

LONGEST_ID_BYTES = 128


CorrelationId = int | str


@dataclass(frozen=True, slots=True)
class Flags:
    """Of one row: the control values."""

    id: CorrelationId = 0
    start: bool = False
    end: bool = False
    ready: bool = True


class Feeder:
    """Makes the model's inputs out of requests, and takes the state out of its outputs."""

    def __init__(self, signature: Signature, controls: Sequence[ControlInput], states: Sequence[State]) -> None:
        specs = {spec.name: spec for spec in signature.inputs}
        rows = bool(signature.max_batch_size)
        self._states = states
        self._controls = [
            (control, [1 if size == -1 else size for size in (specs[control.name].shape if rows else [1])])
            for control in controls
        ]
        self._switches = {
            control.kind: (_filled(control, shape, control.off), _filled(control, shape, control.on))
            for control, shape in self._controls
            if control.kind != "correlation_id"
        }
        self.has_ready = "ready" in self._switches
        self.has_states = bool(states)

    def check(self, model: str, name: CorrelationId) -> None:
        """Raises InvalidInput for a correlation id that this model cannot be given."""
        if isinstance(name, str) and len(name.encode("utf-8", "replace")) > LONGEST_ID_BYTES:
            raise InvalidInput(f"a correlation ID has at most {LONGEST_ID_BYTES} bytes")
        for control, _ in self._controls:
            if control.kind != "correlation_id" or control.datatype == "BYTES":
                continue
            if isinstance(name, str):
                raise InvalidInput(f"model '{model}' takes correlation IDs that are numbers, not '{name}'")
            bounds = np.iinfo(tensors.numpy_dtype(control.datatype))
            if not bounds.min <= name <= bounds.max:
                raise InvalidInput(f"model '{model}' takes correlation IDs of type {control.datatype}, not {name}")

    def row(self, inputs: Arrays, memory: Arrays | None, flags: Flags) -> Arrays:
        """One row for the model. Without `memory`, or at a start, the state is the initial one."""
        given = inputs.copy()
        for control, shape in self._controls:
            if control.kind == "correlation_id":
                given[control.name] = _named(control, shape, flags.id)
            else:
                given[control.name] = self._switches[control.kind][getattr(flags, control.kind)]
        for state in self._states:
            given[state.input] = state.initial if memory is None or flags.start else memory[state.input]
        return given

    def kept(self, outputs: Arrays) -> tuple[Arrays, Arrays]:
        """(what the client gets, the state to keep). The state is a copy, so that no batch is kept alive by it."""
        hidden = {state.output for state in self._states}
        memory = {state.input: outputs[state.output].copy() for state in self._states}
        return {name: array for name, array in outputs.items() if name not in hidden}, memory


def _filled(control: ControlInput, shape: list[int], value: float) -> np.ndarray[Any, Any]:
    return np.full(shape, value).astype(tensors.numpy_dtype(control.datatype))


def _named(control: ControlInput, shape: list[int], name: CorrelationId) -> np.ndarray[Any, Any]:
    if control.datatype == "BYTES":
        found = np.empty(shape, dtype=object)
        found[...] = str(name).encode() if name else b""
        return found
    return np.full(shape, name, tensors.numpy_dtype(control.datatype))
