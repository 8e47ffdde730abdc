"""Triton's generate extension: plain JSON in, plain JSON out, as one answer or as a stream of server-sent events.

A key of the request is an input of that name or else a parameter; what stands in `parameters` likewise. Scalars and
lists take the shape that the signature gives: fixed dimensions first, the innermost free one takes what is left.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from math import prod
from typing import Any

import msgspec

from inference.errors import InvalidInput, Malformed, SerinusError, ServerError
from inference.gateway import calls, codec
from inference.gateway.awaiting import Done
from inference.gateway.calls import Call, InferBody, InputBody
from inference.gateway.choosing import HEADER as PIN
from inference.gateway.choosing import Asked, pin
from inference.gateway.dataplane import DataPlane
from inference.gateway.parameters import Scalar
from inference.gateway.predict import credential_of, timeout_of
from inference.gateway.table import Variant
from inference.gateway.web import JSON_TYPE, Headers, Part, Request, Response, Stream
from inference.protocol.oip import Signature, TensorSpec

EXACTLY_ONE = (
    "generate expects model to produce exactly 1 response, "
    "use generate stream for model that generates various number of responses"
)
_EMPTY = memoryview(b"")
_scalar = msgspec.json.Decoder(Scalar).decode
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_log = logging.getLogger(__name__)


def _object(data: Part, what: str) -> dict[str, msgspec.Raw]:
    try:
        return _members(data)
    except codec.JSON_ERRORS as error:
        raise Malformed(f"{what} must be a JSON object: {error}") from error


def read(data: Part, model: str, signature: Signature) -> Call:
    """A call from a generate request. Raises Malformed or InvalidInput."""
    specs = {spec.name: spec for spec in signature.inputs}
    inputs: list[InputBody] = []
    parameters: dict[str, Scalar] = {}
    identity = ""
    for key, value in _flat(_object(data, "a generate request"), specs):
        if key in specs:
            inputs.append(_input(specs[key], value, signature))
        elif key == "id":
            identity = _text(value)
        else:
            parameters[key] = _parameter(key, value)
    if len(parameters) > 64:
        raise InvalidInput("a request may have at most 64 parameters")
    return calls.read(InferBody(inputs, identity, parameters), _EMPTY, model, signature)


def _flat(members: dict[str, msgspec.Raw], specs: dict[str, TensorSpec]) -> list[tuple[str, msgspec.Raw]]:
    """Keys and values, those of `parameters` among them."""
    nested = members.pop("parameters", None) if "parameters" not in specs else None
    found = list(members.items())
    if nested is not None:
        found += _object(nested, "'parameters'").items()
    return found


def _text(value: msgspec.Raw) -> str:
    found = _parameter("id", value)
    if type(found) is not str:
        raise InvalidInput("'id' must be a text")
    return found


def _parameter(name: str, value: msgspec.Raw) -> Scalar:
    try:
        found: Scalar = _scalar(value)
    except codec.JSON_ERRORS as error:
        raise InvalidInput(
            f"'{name}' is no input of the model, and a parameter must be a text, a number, true or false"
        ) from error
    return found


def _input(spec: TensorSpec, value: msgspec.Raw, signature: Signature) -> InputBody:
    given = bytes(value).strip()
    if given[:1] != b"[":
        given = b"[" + given + b"]"
    raw = msgspec.Raw(given)
    most = _most(spec, signature)
    if most >= 0 and len(given) > codec.LARGE_JSON_BYTES:
        codec.refuse_more(raw, spec.datatype, most, spec.name)
    shape = _shape(spec, codec.count_json(raw, spec.datatype, spec.name))
    return InputBody(spec.name, shape, spec.datatype, raw)


def _most(spec: TensorSpec, signature: Signature) -> int:
    """How many elements the input can have at most, -1 for any number."""
    sizes = [signature.max_batch_size, *spec.shape[1:]] if signature.max_batch_size else spec.shape
    return prod(sizes) if all(size >= 0 for size in sizes) else -1


def _shape(spec: TensorSpec, count: int) -> list[int]:
    left = count
    shape = list(spec.shape)
    for size in (size for size in shape if size >= 0):
        if not size or left % size:
            raise InvalidInput(f"The schema can not convert input '{spec.name}' to tensor with proper shape")
        left //= size
    for index in reversed(range(len(shape))):
        if shape[index] < 0:
            shape[index], left = left, 1
    if left != 1:
        raise InvalidInput(f"The schema can not convert input '{spec.name}' to tensor with proper shape")
    return shape


def answer(done: Done, name: str) -> bytes:
    """One answer: outputs by name, a single element as it is, more as a flat list. Raises InvalidInput."""
    found: dict[str, Any] = dict(done.answer.parameters)
    found |= {"id": done.call.id} if done.call.id else {}
    found |= {"model_name": name, "model_version": done.variant.version}
    at = 0
    for tensor in done.answer.tensors:
        values = codec.to_json(done.body[at : at + tensor.size_bytes], tensor.datatype, tensor.name)
        found[tensor.name] = values[0] if len(values) == 1 else values
        at += tensor.size_bytes
    return _encode(found)


class Generate:
    """The handlers of `generate` and `generate_stream`."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    async def once(self, request: Request) -> Response:
        """Raises InvalidInput where the model gives no answer or several."""
        found: Done | None = None
        async with contextlib.aclosing(self._answers(request)) as answers:
            async for done in answers:
                if found is not None:
                    raise InvalidInput(EXACTLY_ONE)
                found = done
        if found is None:
            raise InvalidInput(EXACTLY_ONE)
        return Response(200, [JSON_TYPE, *found.headers], answer(found, request.name))

    async def stream(self, request: Request) -> Stream:
        """The status is that of the first answer; an error after it comes as an event."""
        answers = self._answers(request)
        try:
            first = await anext(answers, None)
            event = _event(answer(first, request.name)) if first is not None else b""
        except BaseException:
            await answers.aclose()
            raise
        own: Headers = first.headers if first is not None else []
        found = Stream(_events(event, answers, request))
        found.headers = [*found.headers, (b"cache-control", b"no-cache"), *own]
        return found

    async def _answers(self, request: Request) -> AsyncGenerator[Done, None]:
        """Answers that have tensors."""
        caller, endpoint = self._plane.admit(request.name, credential_of(request.headers))
        session = request.headers.get(b"x-session-id", b"").decode("latin-1")
        sticky = session or caller.id or request.id
        headers = request.headers
        version = pin(endpoint.route, request.number, headers.get(PIN))
        asked = Asked(
            caller, endpoint, version, sticky, timeout_of(headers), headers=headers, has_session=bool(session)
        )

        def reader(variant: Variant) -> Call:
            signature = variant.route.signature
            call = read(request.body, request.name, signature)
            for spec in signature.outputs:
                codec.refuse_in_json(spec.datatype, spec.name)
            call.traceparent = headers.get(b"traceparent", b"").decode("latin-1")
            call.tracestate = headers.get(b"tracestate", b"").decode("latin-1")
            return call

        async with contextlib.aclosing(self._plane.stream(asked, reader)) as answers:
            async for done in answers:
                if done.answer.tensors:
                    yield done


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


async def _events(first: bytes, answers: AsyncGenerator[Done, None], request: Request) -> AsyncIterator[bytes]:
    async with contextlib.aclosing(answers):
        yield first
        try:
            async for done in answers:
                yield _event(answer(done, request.name))
        except SerinusError as error:
            yield _event(_encode({"error": error.message}))
        except Exception:  # noqa: BLE001 (logged in full; the client gets one fixed sentence)
            _log.exception("the stream of request %s failed", request.id)
            yield _event(_encode({"error": ServerError().message}))
