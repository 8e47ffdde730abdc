"""A replica's answer as a ModelInferResponse: tensors raw where the request's were, else in their typed lists."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from inference.errors import NotReady
from inference.gateway import classification, codec
from inference.gateway.awaiting import Done
from inference.gateway.calls import Call
from inference.gateway.grpc import tensors, wire
from inference.gateway.http2.headers import field
from inference.gateway.parameters import Scalar
from inference.gateway.shared_memory import Target
from inference.protocol.messages import TensorHeader

Parts = list[bytes | memoryview]


def parts_of(done: Done, extra: dict[str, Scalar] | None = None) -> Parts:
    """The bytes of the response, in pieces to be joined; outputs for shared memory are written there.

    Raises InvalidInput, or NotReady when the replica's frame contradicts itself.
    """
    call, variant, answer = done.call, done.variant, done.answer
    pieces = _pieces(answer.tensors, done.body)
    found: Parts = [wire.model_fields(variant.key[0], variant.version), wire.id_field(call.id)]
    parameters = answer.parameters | extra if extra else answer.parameters
    if parameters:
        found.append(_parameters(parameters))
    if call.special is not None:
        found.append(_special(call, answer.tensors, pieces))
    elif call.binary is None:
        found += [wire.output_field(one.name, one.datatype, tuple(one.shape)) for one in answer.tensors]
        found += wire.raw_fields(pieces)
    else:
        response = wire.INFER_RESPONSE()
        for header, piece in zip(answer.tensors, pieces, strict=True):
            _add_typed(response, header, piece)
        found.append(response.SerializeToString())
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


def _add_typed(response: Any, header: TensorHeader, piece: memoryview) -> None:
    output = response.outputs.add(name=header.name, datatype=header.datatype, shape=header.shape)
    tensors.fill_contents(output.contents, piece, header.datatype, header.name)


def _add_raw(response: Any, header: TensorHeader, piece: bytes | memoryview) -> None:
    response.outputs.add(name=header.name, datatype=header.datatype, shape=header.shape)
    response.raw_output_contents.append(bytes(piece))


def _special(call: Call, headers: list[TensorHeader], pieces: list[memoryview]) -> bytes:
    """Outputs of which some are ranked or go to shared memory. A raw one of the latter is empty, so that the others
    stay at their places.
    """
    response = wire.INFER_RESPONSE()
    add = _add_raw if call.binary is None else _add_typed
    for header, piece in zip(headers, pieces, strict=True):
        special = (call.special or {}).get(header.name)
        if isinstance(special, Target):
            output = response.outputs.add(name=header.name, datatype=header.datatype, shape=header.shape)
            for name, value in special.write(piece, header.name).items():
                tensors.set_parameter(output.parameters, name, value)
            if call.binary is None:
                response.raw_output_contents.append(b"")
        elif special is not None:
            shape, texts = classification.rank(piece, header, special)
            packed = memoryview(codec.pack_texts(texts))
            add(response, TensorHeader(header.name, "BYTES", shape, len(packed)), packed)
        else:
            add(response, header, piece)
    found: bytes = response.SerializeToString()
    return found


def trailers_of(done: Done) -> bytes:
    """Who answered, and the id for feedback, as header fields: the same as REST's headers; and the trace context, when
    one was given.
    """
    who = done.variant.headers
    return _who(tuple(who)) + b"".join([field(name, value) for name, value in done.headers[len(who) :]])


@lru_cache(maxsize=1024)
def _who(fields: tuple[tuple[bytes, bytes], ...]) -> bytes:
    return b"".join([field(name, value) for name, value in fields])
