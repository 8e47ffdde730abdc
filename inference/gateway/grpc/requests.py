"""A ModelInferRequest as a Call, checked against the signature by the code that every door shares."""

from __future__ import annotations

from typing import Any

from inference.errors import InvalidInput, Malformed
from inference.gateway import calls, codec
from inference.gateway.calls import Call, InferBody, InputBody, OutputBody
from inference.gateway.grpc import tensors
from inference.gateway.grpc.wire import Message, Raw
from inference.gateway.parameters import Scalar
from inference.gateway.shared_memory import Shared
from inference.protocol.messages import TensorHeader
from inference.protocol.oip import MAX_TENSORS, Signature

FINAL_PARAMETER = "triton_final_response"
EMPTY_FINAL_PARAMETER = "triton_enable_empty_final_response"
_MAX_PARAMETERS = 64


def version_of(request: Message) -> int | None:
    """The pinned version. Raises InvalidInput for what is no version."""
    text: str = request.model_version
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 9 or not int(text):
        raise InvalidInput(
            f"failed to get model version from specified version string '{text[:64]}': "
            f"version should be an integer > 0 for model '{request.model_name[:128]}'"
        )
    return int(text)


def wants_empty_final(request: Message) -> bool:
    """Whether a final answer without tensors is to be sent too."""
    given = request.parameters
    return EMPTY_FINAL_PARAMETER in given and bool(given[EMPTY_FINAL_PARAMETER].bool_param)


def read(request: Message, raw: Raw, model: str, signature: Signature, shared: Shared | None = None) -> Call:
    """The call. `binary` of it is None where the answer's tensors go back raw, as the request's came. shared: the
    caller's shared memory, where that is allowed.

    Raises Malformed, InvalidInput or Unsupported; of shared memory TooLarge and Overloaded too.
    """
    if len(request.id) > calls.MAX_ID_CHARS:
        raise InvalidInput(f"'id' is longer than {calls.MAX_ID_CHARS} characters")
    if len(request.inputs) > MAX_TENSORS or len(request.outputs) > MAX_TENSORS:
        raise InvalidInput(f"a request has at most {MAX_TENSORS} inputs and {MAX_TENSORS} outputs")
    call = Call(request.id, [], [])
    used = taken = 0
    data: bytes | memoryview
    for given in request.inputs:
        header = TensorHeader(given.name, given.datatype, list(given.shape), 0)
        if calls.SHARED_MEMORY in given.parameters:
            data = _shared_data(given, header, shared, taken)
            taken += len(data)
        else:
            data, used = _data(given, header, raw, used)
        call.tensors.append(TensorHeader(header.name, header.datatype, header.shape, len(data)))
        call.body.append(data)
    if used != len(raw):
        raise Malformed(f"raw_input_contents has {len(raw)} elements, the request has {used} inputs for them")
    parameters = _parameters(request.parameters)
    if parameters is not None:
        parameters.pop(EMPTY_FINAL_PARAMETER, None)
    body = InferBody([], request.id, parameters, _outputs(request.outputs))
    calls.finish(call, body, model, signature, binary=True, shared=shared)
    call.binary = None if raw or taken or _is_raw_only(call, signature) else frozenset()
    return call


def _shared_data(given: Any, header: TensorHeader, shared: Shared | None, taken: int) -> memoryview:
    if given.HasField("contents"):
        raise Malformed(f"input '{header.name}' has both data and a shared memory region")
    body = InputBody(header.name, header.shape, header.datatype, parameters=_parameters(given.parameters))
    return calls.shared_data(body, shared, taken)


def _data(given: Any, header: TensorHeader, raw: Raw, used: int) -> tuple[bytes | memoryview, int]:
    name = header.name
    count = codec.element_count(header.shape, name)
    if not raw:
        return tensors.from_contents(given.contents, header.datatype, count, name), used
    if given.HasField("contents"):
        raise Malformed(f"contents field must not be specified when using raw_input_contents for '{name}'")
    if used >= len(raw):
        raise Malformed(f"raw_input_contents has {len(raw)} elements, none for input '{name}'")
    data = raw[used]
    codec.check_binary(data, header.datatype, count, name)
    return data, used + 1


def _parameters(given: Any) -> dict[str, Scalar] | None:
    if not given:
        return None
    if len(given) > _MAX_PARAMETERS:
        raise InvalidInput(f"a request has at most {_MAX_PARAMETERS} parameters")
    return tensors.parameters_of(given)


def _outputs(given: Any) -> list[OutputBody] | None:
    if not given:
        return None
    return [OutputBody(wanted.name, _parameters(wanted.parameters)) for wanted in given]


def _is_raw_only(call: Call, signature: Signature) -> bool:
    """Whether a wanted output has no typed form: then the answer is raw, whatever the request was."""
    wanted = call.outputs
    return any(spec.datatype in tensors.RAW_ONLY for spec in signature.outputs if not wanted or spec.name in wanted)
