"""A model as the batcher needs it: constants filled in, and the batch first in every tensor, state included.

So nothing above has to know where a model keeps the batch in its state, or that it wants a scalar beside the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np

from inference.errors import Rejected, SerinusError
from inference.models import batch
from inference.models.contract import LoadContext, Model, RequestModel, Scalar, StreamingModel
from inference.protocol.oip import DATATYPES, Signature, TensorSpec
from inference.protocol.settings import RuntimeSettings, SequenceSettings, StateTensor
from inference.protocol.signatures import hidden_outputs

if TYPE_CHECKING:
    from pathlib import Path

    from inference.models.contract import Arrays

CONTROL_DATATYPES = {
    "start": {"FP32", "INT32", "BOOL"},
    "end": {"FP32", "INT32", "BOOL"},
    "ready": {"FP32", "INT32", "BOOL"},
    "correlation_id": {"UINT64", "INT64", "UINT32", "INT32", "BYTES"},
}


@dataclass(frozen=True, slots=True)
class State:
    """A state tensor with the value that a sequence begins with, [1, *shape] (or [*shape] where nothing is batched)."""

    input: str
    output: str
    initial: np.ndarray[Any, Any]


def shaped(model: Model, context: LoadContext) -> Model:
    """`model` itself where its settings ask for nothing of the kind. Raises Rejected for settings that do not fit it."""
    settings = context.settings
    _refuse_mixtures(settings)
    if settings.decoupled and not callable(getattr(model, "stream", None)):
        raise _unfit("decoupled", "this model has no stream(inputs, parameters)")
    if settings.sequence is None and not settings.constants:
        return model
    return ShapedModel(model, settings, context.folder)


class ShapedModel:
    """`states` are empty for a model without implicit state."""

    def __init__(self, model: Model, settings: RuntimeSettings, folder: Path) -> None:
        sequence = settings.sequence or SequenceSettings()
        _check_names(model.signature, sequence, settings.constants)
        self._model = model
        self._axes = {}
        self._moved = {}
        self.signature = model.signature
        if not model.signature.max_batch_size and _has_rows(model.signature, settings, sequence):
            self.signature = _with_rows(model.signature, settings, sequence)
            self._axes = {state.input: state.batch_axis for state in sequence.states if state.batch_axis}
            self._moved = {state.output: state.batch_axis for state in sequence.states if state.batch_axis}
        rows = bool(self.signature.max_batch_size)
        self.signature = _settled(self.signature, sequence, rows=rows)
        self.states = [State(s.input, s.output, _initial(s, folder, rows=rows)) for s in sequence.states]
        specs = {spec.name: spec for spec in model.signature.inputs}
        self._constants = {name: _constant(specs[name], value) for name, value in settings.constants.items()}
        self._repeated = {name for name in self._constants if rows and specs[name].shape[:1] == [-1]}
        self.signature = msgspec.structs.replace(
            self.signature, inputs=[s for s in self.signature.inputs if s.name not in self._constants]
        )

    @property
    def is_shareable(self) -> bool:
        return bool(getattr(self._model, "is_shareable", False))

    @property
    def compiles(self) -> int:
        return int(getattr(self._model, "compiles", 0))

    @property
    def device_memory_bytes(self) -> int:
        return int(getattr(self._model, "device_memory_bytes", 0))

    @property
    def runs_requests(self) -> bool:
        return bool(getattr(self._model, "runs_requests", False))

    @property
    def answers_anything(self) -> bool:
        return bool(getattr(self._model, "answers_anything", False))

    @property
    def asked_in_vain(self) -> int:
        return int(getattr(self._model, "asked_in_vain", 0))

    def run(self, inputs: Arrays) -> Arrays:
        return self._taken(self._model.run(self._given(inputs)))

    def run_requests(self, requests: list[Arrays]) -> list[Arrays | SerinusError]:
        found = cast("RequestModel", self._model).run_requests([self._given(request) for request in requests])
        return [self._taken(one) if isinstance(one, dict) else one for one in found]

    def stream(self, inputs: Arrays, parameters: Mapping[str, Scalar]) -> Iterator[Arrays]:
        return cast("StreamingModel", self._model).stream(self._given(inputs), parameters)

    def close(self) -> None:
        self._model.close()

    def _taken(self, outputs: Arrays) -> Arrays:
        for name, axis in self._moved.items():
            outputs[name] = np.moveaxis(outputs[name], axis, 0)
        return outputs

    def _given(self, inputs: Arrays) -> Arrays:
        given = inputs.copy()
        given.update(self._constants)
        for name in self._repeated:
            given[name] = np.repeat(given[name], len(next(iter(inputs.values()))), axis=0)
        for name, axis in self._axes.items():
            given[name] = np.ascontiguousarray(np.moveaxis(given[name], 0, axis))
        return given


def _refuse_mixtures(settings: RuntimeSettings) -> None:
    if settings.decoupled and settings.sequence:
        raise _unfit("decoupled", "a stateful model (sequence) gives one answer a request")
    if settings.response_cache_bytes and (settings.decoupled or settings.sequence):
        raise _unfit("response_cache_bytes", "answers of stateful and of decoupled models cannot be cached")


def _check_names(signature: Signature, sequence: SequenceSettings, constants: Mapping[str, Scalar]) -> None:
    """Every tensor that the settings name must be there, with the datatype they say, and be named once."""
    inputs = {spec.name: spec.datatype for spec in signature.inputs}
    outputs = {spec.name: spec.datatype for spec in signature.outputs}
    for control in sequence.controls:
        _check_there(inputs, control.name, control.datatype, "control input")
        if control.datatype not in CONTROL_DATATYPES[control.kind]:
            allowed = ", ".join(sorted(CONTROL_DATATYPES[control.kind]))
            raise _unfit(control.name, f"a {control.kind} control is one of {allowed}, not {control.datatype}")
    for state in sequence.states:
        _check_there(inputs, state.input, state.datatype, "state input")
        _check_there(outputs, state.output, state.datatype, "state output")
    for name in constants:
        _check_there(inputs, name, "", "constant")
    named = [c.name for c in sequence.controls] + [s.input for s in sequence.states] + list(constants)
    twice = {name for name in named if named.count(name) > 1}
    if twice or len({c.kind for c in sequence.controls}) != len(sequence.controls):
        raise _unfit(", ".join(sorted(twice)) or "controls", "an input or a control is named twice")
    if len({s.output for s in sequence.states}) != len(sequence.states):
        raise _unfit("states", "two states are read from one output")
    if len(named) == len(inputs):
        raise _unfit("sequence", "no input is left for clients to give")


def _check_there(known: Mapping[str, str], name: str, datatype: str, role: str) -> None:
    if name not in known:
        raise _unfit(name, f"the model has no such {role}; it has {', '.join(sorted(known))}")
    if datatype and known[name] != datatype:
        raise _unfit(name, f"the {role} is {datatype} in the settings and {known[name]} in the model")


def _has_rows(signature: Signature, settings: RuntimeSettings, sequence: SequenceSettings) -> bool:
    """Whether all tensors but constants and state begin with a free dimension, and the states have one for the batch."""
    kept = {state.input for state in sequence.states} | settings.constants.keys()
    rest = [spec for spec in signature.inputs if spec.name not in kept]
    rest += [spec for spec in signature.outputs if spec.name not in hidden_outputs(settings)]
    specs = {spec.name: spec.shape for spec in signature.inputs}
    return all(spec.shape[:1] == [-1] for spec in rest) and all(
        len(specs[state.input]) == len(state.shape) + 1 and specs[state.input][state.batch_axis] == -1
        for state in sequence.states
    )


def _with_rows(signature: Signature, settings: RuntimeSettings, sequence: SequenceSettings) -> Signature:
    axes = {s.input: s.batch_axis for s in sequence.states} | {s.output: s.batch_axis for s in sequence.states}

    def first(spec: TensorSpec) -> TensorSpec:
        axis = axes.get(spec.name, 0)
        rest = spec.shape[:axis] + spec.shape[axis + 1 :]
        return msgspec.structs.replace(spec, shape=[-1, *rest]) if axis else spec

    return msgspec.structs.replace(
        signature,
        inputs=[first(spec) for spec in signature.inputs],
        outputs=[first(spec) for spec in signature.outputs],
        max_batch_size=batch.max_batch(settings, None),
    )


def _settled(signature: Signature, sequence: SequenceSettings, *, rows: bool) -> Signature:
    """States in the shape that the settings say, which must fit the model's."""
    shapes = {s.input: s for s in sequence.states} | {s.output: s for s in sequence.states}

    def settle(spec: TensorSpec) -> TensorSpec:
        state = shapes.get(spec.name)
        if state is None:
            return spec
        wanted = [-1, *state.shape] if rows else state.shape
        fits = len(wanted) == len(spec.shape) and all(
            have in (-1, want) for want, have in zip(wanted, spec.shape, strict=True)
        )
        if not fits:
            raise _unfit(spec.name, f"the state's shape {state.shape} does not fit the model's {spec.shape}")
        return msgspec.structs.replace(spec, shape=wanted)

    return msgspec.structs.replace(
        signature,
        inputs=[settle(spec) for spec in signature.inputs],
        outputs=[settle(spec) for spec in signature.outputs],
    )


def _initial(state: StateTensor, folder: Path, *, rows: bool) -> np.ndarray[Any, Any]:
    dtype = np.dtype("<u2") if state.datatype == "BF16" else _dtype(state.input, state.datatype)
    if any(size < 0 for size in state.shape):
        raise _unfit(state.input, f"a state's shape has no free dimensions, not {state.shape}")
    shape = [1, *state.shape] if rows else state.shape
    if not state.initial_file:
        return np.zeros(shape, dtype)
    path = folder / state.initial_file
    if path.is_absolute() != folder.is_absolute() or ".." in path.parts or folder not in path.parents:
        raise _unfit(state.input, "initial_file must lie inside the artifact")
    data = path.read_bytes() if path.is_file() else b""
    wanted = int(np.prod(shape)) * dtype.itemsize
    if len(data) != wanted:
        raise _unfit(state.input, f"initial_file {state.initial_file} has {len(data)} bytes, not {wanted}")
    return np.frombuffer(data, dtype).reshape(shape)


def _constant(spec: TensorSpec, value: Scalar) -> np.ndarray[Any, Any]:
    shape = [1 if at == 0 and size == -1 else size for at, size in enumerate(spec.shape)]
    if -1 in shape:
        raise _unfit(spec.name, f"a constant's shape must be fixed, not {spec.shape}")
    return np.full(shape, value, _dtype(spec.name, spec.datatype))


def _dtype(name: str, datatype: str) -> np.dtype[Any]:
    kind = DATATYPES.get(datatype, (0, None))[1]
    if kind is None:
        raise _unfit(name, f"the server cannot fill in {datatype or 'such'} tensors")
    return np.dtype(kind).newbyteorder("<")


def _unfit(what: str, why: str) -> Rejected:
    return Rejected(f"{what}: {why}", remedy="correct the version's settings; see docs/sequences.md", check="signature")
