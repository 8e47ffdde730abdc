"""The REST door: Open Inference Protocol v2 as Triton answers it, with the binary tensor extension."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec

from inference import metrics
from inference.errors import Forbidden, InvalidInput, Malformed, NotFound, UnsupportedEncoding
from inference.gateway import calls, exposition
from inference.gateway.admission import ALL, Caller
from inference.gateway.bodies import Bodies, Body, Receive
from inference.gateway.dataplane import DataPlane, Done
from inference.gateway.problems import JSON_TYPE, Headers
from inference.gateway.table import Endpoint, Variant
from inference.protocol.oip import Signature, TensorSpec

BODY_S = 30.0
MAX_TIMEOUT_MS = 86_400_000
EXTENSIONS = ["binary_tensor_data", "parameters"]
_BINARY_TYPE = (b"content-type", b"application/octet-stream")
_BEARER = "bearer "
_EMPTY = memoryview(b"")
_NOT_READY = b'{"error":"Model version not ready"}'

Given = dict[bytes, bytes]
Response = tuple[int, Headers, bytes]
_encode = msgspec.json.Encoder().encode


def own_version() -> str:
    try:
        return version("serinus")
    except PackageNotFoundError:
        return "0"


def credential_of(headers: Given) -> str:
    """The API key or token that a request carries, "" without any."""
    given = headers.get(b"authorization")
    if given is not None:
        text = given.decode("latin-1")
        return text[len(_BEARER) :].strip() if text[: len(_BEARER)].lower() == _BEARER else text
    return headers.get(b"x-api-key", b"").decode("latin-1")


def timeout_of(headers: Given) -> int:
    """Milliseconds of `X-Request-Timeout-Ms`, 0 without it. Raises InvalidInput."""
    given = headers.get(b"x-request-timeout-ms")
    if given is None:
        return 0
    if not given.isdigit() or not 1 <= len(given) <= 9 or not 1 <= int(given) <= MAX_TIMEOUT_MS:
        raise InvalidInput("X-Request-Timeout-Ms must be a whole number of milliseconds, at least 1")
    return int(given)


class Rest:
    """Answers of the REST door; each method gives (status, headers, body) or raises a SerinusError."""

    def __init__(self, plane: DataPlane, *, server_name: str, max_body_bytes: int) -> None:
        self._plane = plane
        self._bodies = Bodies(max_body_bytes)
        self._metadata = _encode({"name": server_name, "version": own_version(), "extensions": EXTENSIONS})

    # -- the server ------------------------------------------------------------------------------------------------

    def live(self) -> Response:
        return 200, [JSON_TYPE], b'{"live":true}'

    def ready(self) -> Response:
        if self._plane.table.now.generation < 0 or self._plane.draining:
            return 400, [JSON_TYPE], b'{"ready":false}'
        return 200, [JSON_TYPE], b'{"ready":true}'

    def server(self, headers: Given) -> Response:
        self._known(headers)
        return 200, [JSON_TYPE], self._metadata

    def metrics(self, headers: Given, streams: int) -> Response:
        if not self._known(headers).may(ALL) and not self._plane.insecure:
            raise Forbidden("Metrics need a key that may use every endpoint")
        content_type, text = metrics.render(exposition.families(self._plane, streams))
        return 200, [(b"content-type", content_type.encode())], text

    def _known(self, headers: Given) -> Caller:
        if self._plane.insecure:
            return Caller("", frozenset({ALL}))
        return self._plane.table.now.keys.caller(credential_of(headers))

    # -- one model -------------------------------------------------------------------------------------------------

    def model(self, headers: Given, name: str, number: int | None) -> Response:
        _, endpoint = self._plane.admit(name, credential_of(headers))
        variant = _described(endpoint, number)
        signature = variant.route.signature
        running = [one.version for one in endpoint.variants.values() if one.is_routed]
        body = {
            "name": name,
            "versions": [variant.version] if number is not None else running,
            "platform": signature.platform,
            "inputs": [_spec(spec) for spec in signature.inputs],
            "outputs": [_spec(spec) for spec in signature.outputs],
        }
        return 200, [JSON_TYPE], _encode(body)

    def model_ready(self, headers: Given, name: str, number: int | None) -> Response:
        _, endpoint = self._plane.admit(name, credential_of(headers))
        if number is not None:
            variants = [endpoint.variants[number]] if number in endpoint.variants else []
        else:
            variants = [variant for variant in endpoint.variants.values() if variant.route.weight_bp]
        if self._plane.draining or not any(variant.is_ready for variant in variants):
            return 400, [JSON_TYPE], _NOT_READY
        return 200, [JSON_TYPE], _encode({"name": name, "ready": True})

    async def infer(self, headers: Given, receive: Receive, name: str, number: int | None, request_id: str) -> Response:
        """One prediction: `POST /v2/models/{name}[/versions/{number}]/infer`."""
        plane = self._plane
        caller, endpoint = plane.admit(name, credential_of(headers))
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise UnsupportedEncoding
        ticket = plane.deadlines.open(BODY_S, receive)
        ticket.reader = asyncio.current_task()
        own = Body(self._bodies)
        try:
            timeout_ms = timeout_of(headers)
            length = headers.get(b"content-length")
            body = await own.read(int(length) if length is not None else -1, receive)
            ticket.reader = None
            session = headers.get(b"x-session-id")
            sticky = session.decode("latin-1") if session else caller.id or request_id
            reader = _reader(headers, body)
            done = await plane.infer(endpoint, number, sticky, reader, ticket=ticket, timeout_ms=timeout_ms)
            return _written(done, name)
        except asyncio.CancelledError:
            if ticket.error is None:
                raise
            raise ticket.error from None
        finally:
            own.release()
            plane.deadlines.close(ticket)


def _reader(headers: Given, body: bytes) -> Callable[[str, Signature], calls.Call]:
    given = headers.get(b"inference-header-content-length")
    if given is None:
        return lambda model, signature: calls.read(calls.parse(body), _EMPTY, model, signature)
    if not given.isdigit() or len(given) > 12 or int(given) > len(body):
        raise Malformed("Inference-Header-Content-Length does not fit the request body")
    split, view = int(given), memoryview(body)
    if not split:
        return lambda model, signature: calls.read_raw(view, model, signature)
    return lambda model, signature: calls.read(calls.parse(view[:split]), view[split:], model, signature)


def _written(done: Done, name: str) -> Response:
    variant = done.variant
    text, parts = calls.write(done.call, name, variant.version, done.answer.tensors, done.body)
    if done.call.binary is None or parts:
        sizes = (b"inference-header-content-length", str(len(text)).encode())
        return 200, [_BINARY_TYPE, sizes, *variant.headers], b"".join((text, *parts))
    return 200, [JSON_TYPE, *variant.headers], text


def _described(endpoint: Endpoint, number: int | None) -> Variant:
    if number is not None:
        return endpoint.pinned(number)
    if not endpoint.variants:
        raise NotFound(f"Request for unknown model: '{endpoint.route.name}' has no versions")
    return max(endpoint.variants.values(), key=lambda variant: (variant.route.weight_bp, variant.route.version))


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}
