"""An infer request as every door hands it over, read from JSON, from JSON + binary tensors, or from one raw tensor.

Reading checks the request against the model's signature, so that what reaches a replica fits it. Each function raises
only ClientErrors, whatever bytes it is given. Source of shapes and texts: Open Inference Protocol v2, Triton's
extensions `binary_tensor_data` and raw binary requests.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Annotated, Any

import msgspec

from inference.errors import InvalidInput, Malformed, Unsupported
from inference.gateway import classification, codec, parameters
from inference.gateway.classification import Ranking
from inference.gateway.parameters import Scalar
from inference.gateway.shared_memory import Shared, Target
from inference.protocol.messages import SequenceControl, TensorHeader
from inference.protocol.oip import DATATYPES, MAX_TENSORS, Signature, TensorSpec

Parameters = Annotated[dict[str, Scalar], msgspec.Meta(max_length=64)]
MAX_ID_CHARS = 256
SHARED_MEMORY = "shared_memory_region"
NO_SHARED_MEMORY = "shared memory is not supported here: send tensors in the request, or have the server started with --allow-client-shm"
_NO_RAW = msgspec.Raw()


class InputBody(msgspec.Struct):
    """One element of "inputs"."""

    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw = _NO_RAW
    parameters: Parameters | None = None


class OutputBody(msgspec.Struct):
    """One element of "outputs"."""

    name: str
    parameters: Parameters | None = None


class InferBody(msgspec.Struct):
    """The JSON of an infer request. Fields that nobody knows are ignored, as Triton does."""

    inputs: Annotated[list[InputBody], msgspec.Meta(max_length=MAX_TENSORS)] = []
    id: str = ""
    parameters: Parameters | None = None
    outputs: Annotated[list[OutputBody], msgspec.Meta(max_length=MAX_TENSORS)] | None = None


class Call(msgspec.Struct, eq=False):
    """A request that fits the signature it was read with: headers and bytes of its tensors, in the signature's order.

    outputs: wanted output names, empty for all. rows: of the batch dimension, 1 without one. binary: names of the
    outputs that go back as bytes; None means all. special: outputs that are ranked or go to shared memory. timeline:
    its answer shall tell where the time went. forwarded: parameters that were headers.
    """

    id: str
    tensors: list[TensorHeader]
    body: list[bytes | memoryview]
    outputs: list[str] = []
    binary: frozenset[str] | None = frozenset()
    parameters: dict[str, Scalar] = {}
    timeout_us: int = 0
    priority: int = 0
    sequence: SequenceControl | None = None
    traceparent: str = ""
    tracestate: str = ""
    rows: int = 1
    timeline: bool = False
    special: dict[str, Ranking | Target] | None = None
    forwarded: frozenset[str] = frozenset()


_decode = msgspec.json.Decoder(InferBody).decode


def parse(data: bytes | memoryview) -> InferBody:
    """The request's JSON. Raises Malformed."""
    try:
        return _decode(data)
    except RecursionError as error:
        raise Malformed(f"JSON is nested deeper than {codec.MAX_DEPTH}") from error
    except codec.JSON_ERRORS as error:
        raise Malformed(f"failed to parse the request JSON: {error}") from error


def read(
    body: InferBody,
    rest: memoryview,
    model: str,
    signature: Signature,
    *,
    binary: bool = False,
    shared: Shared | None = None,
) -> Call:
    """A call from parsed JSON and the binary tensors after it (`rest`, empty without any). `binary` says whether
    outputs go back as bytes where the request does not say. shared: the caller's shared memory, where that is allowed.

    Raises Malformed, InvalidInput or Unsupported; of shared memory TooLarge and Overloaded too.
    """
    if len(body.id) > MAX_ID_CHARS:
        raise InvalidInput(f"'id' is longer than {MAX_ID_CHARS} characters")
    call = Call(body.id, [], [])
    at = taken = 0
    data: bytes | memoryview
    for given in body.inputs:
        if len(given.data) > codec.LARGE_JSON_BYTES:
            _check_early(given, model, signature)
        if given.parameters is not None and SHARED_MEMORY in given.parameters:
            data = shared_data(given, shared, taken)
            taken += len(data)
        else:
            data, at = _data(given, rest, at)
        call.tensors.append(TensorHeader(given.name, given.datatype, given.shape, len(data)))
        call.body.append(data)
    if at != len(rest):
        raise Malformed(f"{len(rest) - at} bytes of binary data belong to no input")
    finish(call, body, model, signature, binary=binary, shared=shared)
    return call


def finish(
    call: Call, body: InferBody, model: str, signature: Signature, *, binary: bool, shared: Shared | None = None
) -> None:
    """Checks a call whose tensors are read, and reads what else `body` says: outputs and parameters.

    Raises InvalidInput or Unsupported.
    """
    check_inputs(call, model, signature)
    _read_outputs(call, body, model, signature, binary=binary, shared=shared)
    if body.parameters:
        _read_parameters(call, body.parameters)


def read_raw(data: memoryview, model: str, signature: Signature) -> Call:
    """A call whose whole body is the one input's bytes (`Inference-Header-Content-Length: 0`); a batch of one.

    Raises InvalidInput.
    """
    if len(signature.inputs) != 1:
        raise InvalidInput(
            f"a raw binary request needs a model with one input, model '{model}' has {len(signature.inputs)}"
        )
    spec = signature.inputs[0]
    size = DATATYPES[spec.datatype][0]
    body: bytes | memoryview = data if size else codec.bytes_element(bytes(data))
    count = len(data) // size if size else 1
    shape = _raw_shape(spec, signature, count)
    if shape is None:
        raise InvalidInput(f"{len(data)} bytes do not fit input '{spec.name}' of model '{model}': {spec.shape}")
    codec.check_binary(body, spec.datatype, codec.element_count(shape, spec.name), spec.name)
    call = Call("", [TensorHeader(spec.name, spec.datatype, shape, len(body))], [body], binary=None)
    check_inputs(call, model, signature)
    return call


def _raw_shape(spec: TensorSpec, signature: Signature, count: int) -> list[int] | None:
    shape = list(spec.shape)
    if signature.max_batch_size and shape:
        shape[0] = 1
    free = [index for index, size in enumerate(shape) if size < 0]
    if len(free) > 1:
        return None
    if free:
        known = prod(size for size in shape if size >= 0)
        if not known or count % known:
            return None
        shape[free[0]] = count // known
    return shape


def _data(given: InputBody, rest: memoryview, at: int) -> tuple[bytes | memoryview, int]:
    count = codec.element_count(given.shape, given.name)
    if given.parameters is None:
        if not given.data:
            raise Malformed(f"input '{given.name}' has neither 'data' nor 'binary_data_size'")
        return codec.from_json(given.data, given.datatype, count, given.name), at
    size = given.parameters.get("binary_data_size")
    if size is None:
        return _data(InputBody(given.name, given.shape, given.datatype, given.data), rest, at)
    if given.data:
        raise Malformed(f"input '{given.name}' has both 'data' and 'binary_data_size'")
    if type(size) is not int or not 0 <= size <= len(rest) - at:
        raise Malformed(f"'binary_data_size' of input '{given.name}' does not fit the request's binary data")
    data = rest[at : at + size]
    codec.check_binary(data, given.datatype, count, given.name)
    return data, at + size


def shared_data(given: InputBody, shared: Shared | None, taken: int) -> memoryview:
    """The bytes of an input whose parameters name a region. taken: what the request's other inputs have taken there."""
    assert given.parameters is not None
    if shared is None:
        raise Unsupported(NO_SHARED_MEMORY)
    if given.data or "binary_data_size" in given.parameters:
        raise Malformed(f"input '{given.name}' has both data and a shared memory region")
    count = codec.element_count(given.shape, given.name)
    data = shared.read(given.parameters, given.name, taken)
    codec.check_binary(data, given.datatype, count, given.name)
    return data


def _check_early(given: InputBody, model: str, signature: Signature) -> None:
    """Compares a large tensor with the signature before its JSON is read, which takes many times its size."""
    spec = next((spec for spec in signature.inputs if spec.name == given.name), None)
    if spec is None:
        raise _unexpected("input", given.name, model, signature.inputs)
    codec.element_count(given.shape, given.name)
    batch = _check_tensor(TensorHeader(given.name, given.datatype, given.shape, 0), spec, model, signature)
    _check_batch(batch, model, signature)


def check_inputs(call: Call, model: str, signature: Signature) -> None:
    """Puts the inputs into the signature's order. Raises InvalidInput where they do not fit it."""
    specs, tensors = signature.inputs, call.tensors
    if len(tensors) == 1 == len(specs) and tensors[0].name == specs[0].name:
        batch = _check_tensor(tensors[0], specs[0], model, signature)
    else:
        batch = _check_many(call, model, signature)
    _check_batch(batch, model, signature)
    if batch is not None:
        call.rows = batch


def _check_batch(batch: int | None, model: str, signature: Signature) -> None:
    if batch is not None and not 1 <= batch <= signature.max_batch_size:
        raise InvalidInput(
            f"inference request batch-size must be <= {signature.max_batch_size} for '{model}'"
            if batch
            else f"inference request batch-size must be >= 1 for '{model}'"
        )


def _check_many(call: Call, model: str, signature: Signature) -> int | None:
    """Checks all inputs and puts them into the signature's order; answers the batch size they share."""
    found: dict[str, int] = {}
    known = {spec.name: spec for spec in signature.inputs}
    for index, tensor in enumerate(call.tensors):
        if tensor.name not in known:
            raise _unexpected("input", tensor.name, model, signature.inputs)
        if tensor.name in found:
            raise InvalidInput(f"input '{tensor.name}' already exists in request")
        found[tensor.name] = index
    if len(found) != len(known):
        _check_missing(found, signature, model)
    order = [found[name] for name in known if name in found]
    call.tensors = [call.tensors[index] for index in order]
    call.body = [call.body[index] for index in order]
    batches = {_check_tensor(tensor, known[tensor.name], model, signature) for tensor in call.tensors}
    if len(batches) > 1:
        raise InvalidInput(f"the inputs of a request for model '{model}' must have one batch size")
    return batches.pop() if batches else None


def _check_missing(found: dict[str, int], signature: Signature, model: str) -> None:
    missing = [spec.name for spec in signature.inputs if spec.name not in found and not spec.optional]
    if missing:
        needed = sum(not spec.optional for spec in signature.inputs)
        expected = f"{needed}" if needed == len(signature.inputs) else f"between {needed} and {len(signature.inputs)}"
        raise InvalidInput(
            f"expected {expected} inputs but got {len(found)} inputs for model '{model}'. Got input(s) {_listed(found)}, "
            f"but missing required input(s) {_listed(missing)}. Please provide all required input(s)."
        )


def _check_tensor(tensor: TensorHeader, spec: TensorSpec, model: str, signature: Signature) -> int | None:
    if tensor.datatype != spec.datatype:
        raise InvalidInput(
            f"inference input '{spec.name}' data-type is '{tensor.datatype}', but model '{model}' expects '{spec.datatype}'"
        )
    wanted, shape = spec.shape, tensor.shape
    if len(wanted) == len(shape):
        batched = bool(signature.max_batch_size) and bool(shape)
        for index, size in enumerate(wanted):
            if size not in (-1, shape[index]) and not (batched and index == 0):
                break
        else:
            return shape[0] if batched else None
    raise InvalidInput(_unexpected_shape(shape, spec, model, signature))


def _unexpected(what: str, name: str, model: str, there: Iterable[TensorSpec]) -> InvalidInput:
    names = _listed(spec.name for spec in there)
    return InvalidInput(f"unexpected inference {what} '{name}' for model '{model}'. Its {what}s are {names}")


def _unexpected_shape(shape: list[int], spec: TensorSpec, model: str, signature: Signature) -> str:
    wanted = spec.shape
    expected, got = (f"[{','.join(map(str, sizes))}]" for sizes in (wanted, shape))
    words = f"unexpected shape for input '{spec.name}' for model '{model}'. Expected {expected}, got {got}"
    if signature.max_batch_size and len(shape) == len(wanted) - 1:
        words += f". The first dimension is the batch, from 1 to {signature.max_batch_size}: put it before yours"
    return words


def _listed(names: Iterable[str]) -> str:
    """Names as Triton's errors list them."""
    return f"[{','.join(repr(name) for name in names)}]"


def _read_outputs(
    call: Call, body: InferBody, model: str, signature: Signature, *, binary: bool, shared: Shared | None
) -> None:
    default = parameters.switch(body.parameters, "binary_data_output", binary) if body.parameters else binary
    if not body.outputs:
        if default:
            call.binary = None
        else:
            for spec in signature.outputs:
                codec.refuse_in_json(spec.datatype, spec.name)
        return
    known = {spec.name: spec for spec in signature.outputs}
    as_bytes: set[str] = set()
    for wanted in body.outputs:
        spec = _known_output(wanted, known, model, call.outputs)
        call.outputs.append(wanted.name)
        given: dict[str, Any] = wanted.parameters or {}
        special = _special(given, spec, signature, shared) if given else None
        if special is not None:
            call.special = (call.special or {}) | {wanted.name: special}
        if isinstance(special, Target):
            continue
        if parameters.switch(given, "binary_data", default):
            as_bytes.add(wanted.name)
        elif special is None:
            codec.refuse_in_json(spec.datatype, wanted.name)
    call.binary = frozenset(as_bytes)


def _known_output(wanted: OutputBody, known: dict[str, TensorSpec], model: str, seen: list[str]) -> TensorSpec:
    spec = known.get(wanted.name)
    if spec is None:
        raise _unexpected("output", wanted.name, model, known.values())
    if wanted.name in seen:
        raise InvalidInput(f"output '{wanted.name}' already exists in request")
    return spec


def _special(
    given: dict[str, Any], spec: TensorSpec, signature: Signature, shared: Shared | None
) -> Ranking | Target | None:
    count = classification.check(given.get("classification", 0), spec.datatype, spec.name)
    if SHARED_MEMORY not in given:
        has_rows = bool(signature.max_batch_size) and bool(spec.shape)
        return Ranking(count, signature.labels, has_rows) if count else None
    if shared is None:
        raise Unsupported(NO_SHARED_MEMORY)
    if count or given.get("binary_data"):
        raise InvalidInput(f"output '{spec.name}' goes to shared memory as it is: neither ranked nor in the answer")
    return shared.target(given, spec.name)


def _read_parameters(call: Call, given: dict[str, Scalar]) -> None:
    call.timeout_us = parameters.whole(given, "timeout", "a whole number of microseconds")
    call.priority = parameters.whole(given, "priority", "a whole number, 1 for the highest")
    call.sequence = parameters.sequence(given)
    call.timeline = given.get("timeline") is True
    call.parameters = parameters.of_model(given)
