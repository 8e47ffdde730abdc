"""Inputs by their names and plain JSON values, outputs likewise: the generate form of a request.

A value is a scalar or an array; where it says no shape of its own it takes the model's, as a batch of one.
Source: Triton's generate extension.
"""

from __future__ import annotations

from math import prod
from typing import Any

import msgspec

from inference.errors import InvalidInput, NotReady
from inference.gateway import calls, codec
from inference.gateway.calls import Call, InferBody, InputBody
from inference.protocol.messages import TensorHeader
from inference.protocol.oip import Signature, TensorSpec

_decode = msgspec.json.Decoder(list[Any]).decode
_EMPTY = memoryview(b"")


def read(given: dict[str, msgspec.Raw], body: InferBody, model: str, signature: Signature) -> Call:
    """A call from values by input name; what is no input becomes a parameter. `body`: the request's other parts.

    Raises Malformed or InvalidInput.
    """
    known = {spec.name: spec for spec in signature.inputs}
    parameters: dict[str, calls.Scalar] = dict(body.parameters or {})
    inputs: list[InputBody] = []
    for name, raw in given.items():
        if name in known:
            inputs.append(_input(known[name], raw, signature))
        else:
            parameters[name] = _parameter(name, raw)
    whole = InferBody(inputs, body.id, parameters, body.outputs)
    return calls.read(whole, _EMPTY, model, signature)


def _input(spec: TensorSpec, raw: msgspec.Raw, signature: Signature) -> InputBody:
    text = bytes(raw).strip()
    if not text.startswith(b"["):
        text = b"[" + text + b"]"
    try:
        values = _decode(text)
    except codec.JSON_ERRORS as error:
        raise InvalidInput(f"input '{spec.name}' is neither a value nor an array: {error}") from error
    shape = _own_shape(values)
    if len(shape) != len(spec.shape) or len(shape) == 1:
        shape = _fitted(spec, signature, prod(shape))
    return InputBody(spec.name, shape, spec.datatype, msgspec.Raw(text))


def _own_shape(values: list[Any]) -> list[int]:
    shape: list[int] = []
    at: Any = values
    while isinstance(at, list):
        shape.append(len(at))
        at = at[0] if at else None
    return shape


def _fitted(spec: TensorSpec, signature: Signature, count: int) -> list[int]:
    shape = list(spec.shape)
    if signature.max_batch_size and shape:
        shape[0] = 1
    free = [index for index, size in enumerate(shape) if size < 0]
    known = prod(size for size in shape if size >= 0)
    if len(free) > 1 or not known or count % known or (not free and count != known):
        raise InvalidInput(f"{count} values do not fit input '{spec.name}': its shape is {spec.shape}")
    if free:
        shape[free[0]] = count // known
    return shape


def _parameter(name: str, raw: msgspec.Raw) -> calls.Scalar:
    try:
        found: calls.Scalar = msgspec.json.decode(raw, type=str | int | float | bool)
    except codec.JSON_ERRORS as error:
        raise InvalidInput(f"'{name}' is no input of this model, and a parameter must be a scalar") from error
    return found


def write(tensors: list[TensorHeader], body: memoryview) -> dict[str, Any]:
    """An answer's outputs by name: one value as itself, several as a flat array. Raises NotReady."""
    found: dict[str, Any] = {}
    at = 0
    for tensor in tensors:
        data = body[at : at + tensor.size_bytes]
        if len(data) != tensor.size_bytes:
            raise NotReady("the replica sent an unreadable answer")
        values = codec.to_json(data, tensor.datatype, tensor.name)
        found[tensor.name] = values[0] if len(values) == 1 else values
        at += tensor.size_bytes
    return found
