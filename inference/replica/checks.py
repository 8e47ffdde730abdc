"""Requests against the signature: frames in, arrays out, errors in the words that Open Inference Protocol clients match."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from inference.errors import InvalidInput, Malformed
from inference.protocol import generation
from inference.protocol.messages import Infer, TensorHeader
from inference.protocol.oip import MAX_TENSORS, Signature, TensorSpec
from inference.runtime import tensors
from inference.runtime.tensors import Arrays


def read(signature: Signature, model: str, request: Infer, body: memoryview) -> tuple[Arrays, int]:
    """The request's arrays (views of `body`) and how many rows it has. Raises InvalidInput or Malformed."""
    check_outputs(signature, model, request.outputs)
    specs = {spec.name: spec for spec in signature.inputs}
    if signature.platform == generation.PLATFORM:
        specs = _one_way_in(specs, request.tensors)
    _check_names(specs, model, request.tensors)
    inputs: Arrays = {}
    at = 0
    for header in request.tensors:
        if header.size_bytes < 0 or at + header.size_bytes > len(body):
            raise Malformed(f"the data of input '{header.name}' is not all there")
        inputs[header.name] = _array(specs[header.name], model, header, body[at : at + header.size_bytes])
        at += header.size_bytes
    if at != len(body):
        raise Malformed(f"the body has {len(body) - at} bytes that belong to no input")
    return inputs, tensors.rows_of(signature, inputs)


class Requests:
    """Reads the requests of one model. The usual one, a single input of fixed row shape, takes a shorter way to the
    same arrays; whatever is not exactly that is read by `read`.
    """

    def __init__(self, signature: Signature, model: str) -> None:
        self._signature = signature
        self._model = model
        self._name = self._datatype = ""
        if len(signature.inputs) == 1 and signature.max_batch_size and _is_fixed(signature.inputs[0]):
            spec = signature.inputs[0]
            self._name, self._datatype, self._tail = spec.name, spec.datatype, spec.shape[1:]
            self._dtype = tensors.numpy_dtype(spec.datatype)
            self._row_bytes = prod(self._tail) * self._dtype.itemsize

    def read(self, request: Infer, body: memoryview) -> tuple[Arrays, int]:
        """As `read`."""
        if self._name and len(request.tensors) == 1 and not request.outputs:
            header = request.tensors[0]
            shape = header.shape
            if header.name == self._name and header.datatype == self._datatype and shape[1:] == self._tail:
                rows, size = shape[0], header.size_bytes
                if 1 <= rows <= self._signature.max_batch_size and size == rows * self._row_bytes == len(body):
                    return {self._name: np.frombuffer(body, self._dtype).reshape(shape)}, rows
        return read(self._signature, self._model, request, body)


def _is_fixed(spec: TensorSpec) -> bool:
    return spec.datatype not in {"BYTES", "BOOL"} and len(spec.shape) > 0 and -1 not in spec.shape[1:]


def check_outputs(signature: Signature, model: str, wanted: Sequence[str]) -> None:
    """Raises InvalidInput for an output that the model does not have."""
    known = {spec.name for spec in signature.outputs}
    for name in wanted:
        if name not in known:
            raise InvalidInput(f"unexpected inference output '{name}' for model '{model}'")


def _one_way_in(specs: dict[str, TensorSpec], given: Sequence[TensorHeader]) -> dict[str, TensorSpec]:
    """A language model is asked by one of its inputs: by the OpenAI doors' own one where that is given."""
    asked = generation.REQUEST if any(header.name == generation.REQUEST for header in given) else generation.TEXT_INPUT
    return {asked: specs[asked]}


def _check_names(specs: dict[str, TensorSpec], model: str, headers: Sequence[TensorHeader]) -> None:
    names = [header.name for header in headers]
    for name in names:
        if name not in specs:
            raise InvalidInput(f"unexpected inference input '{name}' for model '{model}'")
    if len(names) > MAX_TENSORS or len(set(names)) != len(names):
        raise InvalidInput(f"an input was given twice for model '{model}'")
    missing = sorted(name for name in set(specs) - set(names) if not specs[name].optional)
    if missing:
        raise InvalidInput(
            f"expected {len(specs)} inputs but got {len(names)} inputs for model '{model}'. Missing: {missing}"
        )


def _array(spec: TensorSpec, model: str, header: TensorHeader, data: memoryview) -> tensors.Array:
    if header.datatype != spec.datatype:
        raise InvalidInput(
            f"inference input '{spec.name}' data-type is '{header.datatype}', "
            f"but model '{model}' expects '{spec.datatype}'"
        )
    array = tensors.from_bytes(header.datatype, header.shape, data)
    try:
        return tensors.fit(array, spec)
    except InvalidInput:
        raise InvalidInput(
            f"unexpected shape for input '{spec.name}' for model '{model}'. "
            f"Expected {_shape(spec.shape)}, got {_shape(header.shape)}"
        ) from None


def _shape(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"
