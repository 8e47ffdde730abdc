"""A replica's answer as a ModelInferResponse: tensors raw where the request's were, else in their typed lists."""

from __future__ import annotations

from inference.errors import NotReady
from inference.gateway.calls import Scalar
from inference.gateway.dataplane import Done
from inference.gateway.grpc import tensors, wire
from inference.protocol.messages import TensorHeader

Parts = list[bytes | memoryview]


def parts_of(done: Done, extra: dict[str, Scalar] | None = None) -> Parts:
    """The bytes of the response, in pieces to be joined. Raises NotReady when the replica's frame contradicts itself."""
    call, variant = done.call, done.variant
    pieces = _pieces(done.answer.tensors, done.body)
    found: Parts = [wire.model_fields(variant.key[0], variant.version), wire.id_field(call.id)]
    parameters = done.answer.parameters | extra if extra else done.answer.parameters
    if parameters:
        found.append(_parameters(parameters))
    if call.binary is None:
        found += [wire.output_field(one.name, one.datatype, tuple(one.shape)) for one in done.answer.tensors]
        found += wire.raw_fields(pieces)
    else:
        found.append(_typed(done.answer.tensors, pieces))
    return found


def failed(call_id: str, name: str, version: str, message: str) -> bytes:
    """A ModelStreamInferResponse that says what went wrong with one request."""
    response = wire.STREAM_RESPONSE(error_message=message)
    answer = response.infer_response
    answer.id, answer.model_name, answer.model_version = call_id, name, version
    tensors.set_parameter(answer.parameters, "triton_final_response", True)
    found: bytes = response.SerializeToString()
    return found


def _pieces(headers: list[TensorHeader], body: memoryview) -> list[memoryview]:
    pieces: list[memoryview] = []
    at = 0
    for header in headers:
        piece = body[at : at + header.size_bytes]
        if len(piece) != header.size_bytes:
            raise NotReady("the replica sent an unreadable answer")
        pieces.append(piece)
        at += header.size_bytes
    return pieces


def _parameters(parameters: dict[str, Scalar]) -> bytes:
    answer = wire.INFER_RESPONSE()
    for name, value in parameters.items():
        tensors.set_parameter(answer.parameters, name, value)
    found: bytes = answer.SerializeToString()
    return found


def _typed(headers: list[TensorHeader], pieces: list[memoryview]) -> bytes:
    answer = wire.INFER_RESPONSE()
    for header, piece in zip(headers, pieces, strict=True):
        output = answer.outputs.add(name=header.name, datatype=header.datatype, shape=header.shape)
        tensors.fill_contents(output.contents, piece, header.datatype, header.name)
    found: bytes = answer.SerializeToString()
    return found


def arm_metadata(done: Done) -> tuple[tuple[str, str], ...]:
    """Who answered: the same headers as REST's."""
    return tuple((name.decode(), value.decode()) for name, value in done.variant.headers)
