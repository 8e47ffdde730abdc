"""The REST door: Open Inference Protocol v2 as Triton answers it, with the binary tensor extension."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec

from inference import metrics
from inference.errors import Forbidden, NotFound
from inference.gateway import encodings, exposition
from inference.gateway.admission import ALL, Caller
from inference.gateway.dataplane import DataPlane
from inference.gateway.model_config import model_config
from inference.gateway.predict import credential_of
from inference.gateway.statistics_json import model_statistics
from inference.gateway.table import Endpoint, Variant
from inference.gateway.web import JSON_TYPE, Given, Part, Request, Response
from inference.protocol.oip import TensorSpec

# As Triton lists them, without those that are not there (cuda_shared_memory, model_repository(unload_dependents)).
EXTENSIONS = (
    "classification", "sequence", "schedule_policy", "model_configuration", "binary_tensor_data", "parameters",
    "statistics", "trace", "logging",
)  # fmt: skip
REPOSITORY, SHARED_MEMORY = "model_repository", "system_shared_memory"
_NOT_READY = b'{"error":"Model version not ready"}'

_encode = msgspec.json.Encoder().encode


def own_version() -> str:
    try:
        return version("serinus")
    except PackageNotFoundError:
        return "0"


class Rest:
    """Handlers of the REST door, but for those that have rooms of their own; each raises SerinusErrors only.

    streams: how many WebSockets there are; triton: the lines of /metrics that bear Triton's names; extensions: of the
    protocol, that the server says it has.
    """

    def __init__(
        self,
        plane: DataPlane,
        *,
        server_name: str,
        max_body_bytes: int,
        streams: Callable[[], int] = lambda: 0,
        triton: Callable[[], bytes] = lambda: b"",
        extensions: Sequence[str] = EXTENSIONS,
    ) -> None:
        self._plane = plane
        self._limit_bytes = max_body_bytes
        self._streams = streams
        self._triton = triton
        self._metadata = _encode({"name": server_name, "version": own_version(), "extensions": extensions})

    # -- the server ------------------------------------------------------------------------------------------------

    async def live(self, _request: Request) -> Response:
        return Response(200, [JSON_TYPE], b'{"live":true}')

    async def ready(self, _request: Request) -> Response:
        if self._plane.table.now.generation < 0 or self._plane.draining:
            return Response(400, [JSON_TYPE], b'{"ready":false}')
        return Response(200, [JSON_TYPE], b'{"ready":true}')

    async def server(self, request: Request) -> Response:
        self.known(request.headers)
        return Response(200, [JSON_TYPE], self._metadata)

    async def metrics(self, request: Request) -> Response:
        if not self.known(request.headers).may(ALL) and not self._plane.insecure:
            raise Forbidden("Metrics need a key that may use every endpoint")
        content_type, text = metrics.render(exposition.families(self._plane, self._streams()))
        return Response(200, [(b"content-type", content_type.encode())], text + self._triton())

    def known(self, headers: Given) -> Caller:
        """Who calls. Raises Unauthenticated."""
        if self._plane.insecure:
            return Caller("", frozenset({ALL}))
        return self._plane.table.now.keys.caller(credential_of(headers))

    def operator(self, headers: Given, what: str) -> Caller:
        """Who calls, if it may change what concerns everybody. Raises Unauthenticated or Forbidden."""
        caller = self.known(headers)
        if not caller.may(ALL):
            raise Forbidden(f"{what} needs a key that may use every endpoint")
        return caller

    def inflated(self, body: Part, encoding: bytes) -> bytes:
        """A compressed body as it was. Raises UnsupportedEncoding, Malformed or TooLarge."""
        return encodings.inflate(body, encoding, self._limit_bytes)

    # -- one model -------------------------------------------------------------------------------------------------

    async def model(self, request: Request) -> Response:
        _, endpoint = self._plane.admit(request.name, credential_of(request.headers))
        variant = _described(endpoint, request.number)
        signature = variant.route.signature
        running = [one.version for one in _served(endpoint)]
        body = {
            "name": request.name,
            "versions": [variant.version] if request.number is not None else running,
            "platform": signature.platform,
            "inputs": [_spec(spec) for spec in signature.inputs],
            "outputs": [_spec(spec) for spec in signature.outputs],
        }
        return Response(200, [JSON_TYPE], _encode(body))

    async def config(self, request: Request) -> Response:
        _, endpoint = self._plane.admit(request.name, credential_of(request.headers))
        variant = _described(endpoint, request.number)
        return Response(200, [JSON_TYPE], _encode(model_config(request.name, variant.route)))

    async def stats(self, request: Request) -> Response:
        """Of one version where the address names one, else of all that have replicas."""
        _, endpoint = self._plane.admit(request.name, credential_of(request.headers))
        variants = _served(endpoint) if request.number is None else [endpoint.pinned(request.number)]
        return await self._stats([(request.name, variant) for variant in variants])

    async def all_stats(self, request: Request) -> Response:
        """Of every endpoint that the caller may use."""
        caller = self.known(request.headers)
        found = self._plane.table.now.endpoints
        mine = [endpoint for name, endpoint in sorted(found.items()) if caller.may(name) or endpoint.route.public]
        return await self._stats([(one.route.name, variant) for one in mine for variant in _served(one)])

    async def _stats(self, asked: list[tuple[str, Variant]]) -> Response:
        found = await asyncio.gather(*(self._plane.statistics(variant) for _, variant in asked))
        told = [
            model_statistics(name, variant.version, sums) for (name, variant), sums in zip(asked, found, strict=True)
        ]
        return Response(200, [JSON_TYPE], _encode({"model_stats": told}))

    async def model_ready(self, request: Request) -> Response:
        _, endpoint = self._plane.admit(request.name, credential_of(request.headers))
        number = request.number
        if number is not None:
            variants = [endpoint.variants[number]] if number in endpoint.variants else []
        else:
            variants = [variant for variant in endpoint.variants.values() if variant.route.weight_bp]
        if self._plane.draining or not any(variant.is_ready for variant in variants):
            return Response(400, [JSON_TYPE], _NOT_READY)
        return Response(200, [JSON_TYPE], _encode({"name": request.name, "ready": True}))


def _served(endpoint: Endpoint) -> list[Variant]:
    return [variant for variant in endpoint.variants.values() if variant.is_routed]


def _described(endpoint: Endpoint, number: int | None) -> Variant:
    if number is not None:
        return endpoint.pinned(number)
    if not endpoint.variants:
        raise NotFound(f"Request for unknown model: '{endpoint.route.name}' has no versions")
    return max(endpoint.variants.values(), key=lambda variant: (variant.route.weight_bp, variant.route.version))


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}
