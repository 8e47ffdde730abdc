"""What the server and its models are: liveness, metadata, configuration, statistics."""

from __future__ import annotations

from typing import Any

from google.protobuf import json_format

from inference.errors import InvalidInput, NotFound
from inference.gateway.admission import ALL, Caller
from inference.gateway.dataplane import DataPlane
from inference.gateway.grpc import wire
from inference.gateway.model_config import model_config
from inference.gateway.rest import own_version
from inference.gateway.statistics_json import model_statistics
from inference.gateway.table import Endpoint, Variant
from inference.protocol.oip import TensorSpec


class Describe:
    """Handlers: each takes a parsed request and the caller's credential, and gives a message or raises a SerinusError."""

    def __init__(self, plane: DataPlane, *, server_name: str, extensions: list[str]) -> None:
        self._plane = plane
        self._name = server_name
        self._extensions = extensions

    @property
    def is_ready(self) -> bool:
        return self._plane.table.now.generation >= 0 and not self._plane.draining

    def known(self, credential: str) -> Caller:
        """Who calls. Raises Unauthenticated."""
        if self._plane.insecure:
            return Caller("", frozenset({ALL}))
        return self._plane.table.now.keys.caller(credential)

    async def server_live(self, _request: Any, _credential: str) -> Any:
        return wire.kind("ServerLiveResponse")(live=True)

    async def server_ready(self, _request: Any, _credential: str) -> Any:
        return wire.kind("ServerReadyResponse")(ready=self.is_ready)

    async def server_metadata(self, _request: Any, credential: str) -> Any:
        self.known(credential)
        return wire.kind("ServerMetadataResponse")(name=self._name, version=own_version(), extensions=self._extensions)

    async def model_ready(self, request: Any, credential: str) -> Any:
        return wire.kind("ModelReadyResponse")(ready=self.serves(request.name, request.version, credential))

    def serves(self, name: str, version: str, credential: str) -> bool:
        """Whether a replica of this model is ready; False for one that is not there. Raises for who may not ask."""
        try:
            _, endpoint = self._plane.admit(name, credential)
        except NotFound:
            return False
        number = _number(version, name)
        if number is not None:
            variants = [endpoint.variants[number]] if number in endpoint.variants else []
        else:
            variants = [variant for variant in endpoint.variants.values() if variant.route.weight_bp]
        return not self._plane.draining and any(variant.is_ready for variant in variants)

    async def model_metadata(self, request: Any, credential: str) -> Any:
        endpoint, variant = self._described(request, credential)
        signature = variant.route.signature
        running = [one.version for one in _served(endpoint)]
        answer = wire.kind("ModelMetadataResponse")(
            name=request.name,
            versions=[variant.version] if request.version else running,
            platform=signature.platform,
        )
        for specs, into in ((signature.inputs, answer.inputs), (signature.outputs, answer.outputs)):
            for spec in specs:
                _add_spec(into, spec)
        return answer

    async def model_config(self, request: Any, credential: str) -> Any:
        _, variant = self._described(request, credential)
        answer = wire.kind("ModelConfigResponse")()
        json_format.ParseDict(model_config(request.name, variant.route), answer.config)
        return answer

    async def model_statistics(self, request: Any, credential: str) -> Any:
        answer = wire.kind("ModelStatisticsResponse")()
        for endpoint, variant in self._counted(request, credential):
            found = await self._plane.statistics(variant)
            told = model_statistics(endpoint.route.name, variant.version, found)
            json_format.ParseDict(told, answer.model_stats.add())
        return answer

    def _counted(self, request: Any, credential: str) -> list[tuple[Endpoint, Variant]]:
        if request.name:
            _, endpoint = self._plane.admit(request.name, credential)
            number = _number(request.version, request.name)
            if number is not None:
                return [(endpoint, endpoint.pinned(number))]
            return [(endpoint, variant) for variant in _served(endpoint)]
        if request.version:
            raise InvalidInput("a version without a model's name has no statistics")
        caller = self.known(credential)
        return [
            (endpoint, variant)
            for name, endpoint in self._plane.table.now.endpoints.items()
            if caller.may(name) or endpoint.route.public
            for variant in _served(endpoint)
        ]

    def _described(self, request: Any, credential: str) -> tuple[Endpoint, Variant]:
        _, endpoint = self._plane.admit(request.name, credential)
        number = _number(request.version, request.name)
        if number is not None:
            return endpoint, endpoint.pinned(number)
        if not endpoint.variants:
            raise NotFound(f"Request for unknown model: '{request.name}' has no versions")
        return endpoint, max(endpoint.variants.values(), key=lambda one: (one.route.weight_bp, one.route.version))


def _served(endpoint: Endpoint) -> list[Variant]:
    return [variant for variant in endpoint.variants.values() if variant.is_routed]


def _number(text: str, name: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise InvalidInput(f"the version of model '{name[:128]}' must be a whole number")
    return int(text)


def _add_spec(into: Any, spec: TensorSpec) -> None:
    into.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
