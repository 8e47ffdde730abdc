"""Model control, shared memory and live settings: translated for what answers them at the REST door too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any
from urllib.parse import quote

import msgspec

from inference.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    NotFound,
    NotReady,
    RateLimited,
    SerinusError,
    Unauthenticated,
    Unsupported,
)
from inference.gateway.admission import ALL, Caller
from inference.gateway.calls import NO_SHARED_MEMORY
from inference.gateway.dataplane import DataPlane
from inference.gateway.grpc import wire
from inference.gateway.heads import Head
from inference.gateway.live_settings import LiveSettings
from inference.gateway.repository import ONE_REPOSITORY, Repository
from inference.gateway.shared_memory import Regions
from inference.gateway.web import Request

_NO_CUDA = "CUDA shared memory is not supported: replicas run in processes of their own; use system shared memory"
_ids = count(1)
# what the console refuses with -> the error that it stands for
_ERRORS: dict[int, type[SerinusError]] = {
    400: InvalidInput,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    429: RateLimited,
    501: Unsupported,
    503: NotReady,
}


@dataclass(frozen=True, slots=True)
class Behind:
    """What stands behind these calls; regions: None where clients may share no memory."""

    repository: Repository
    settings: LiveSettings
    regions: Regions | None = None


class Control:
    """Handlers: each takes a parsed request and the caller's credential, and gives a message or raises a SerinusError."""

    def __init__(self, plane: DataPlane, behind: Behind, known: Callable[[str], Caller]) -> None:
        self._plane = plane
        self._behind = behind
        self._known = known

    # -- model control ----------------------------------------------------------------------------------------------

    async def repository_index(self, request: Any, credential: str) -> Any:
        repository = self._behind.repository
        self._check_repository(request, credential)
        found = await _asked(repository.index, "index", credential, {"ready": request.ready})
        answer = wire.kind("RepositoryIndexResponse")()
        for one in found or []:
            answer.models.add(**{name: str(one.get(name, "")) for name in ("name", "version", "state", "reason")})
        return answer

    async def repository_model_load(self, request: Any, credential: str) -> Any:
        await self._change(request, credential, "load")
        return wire.kind("RepositoryModelLoadResponse")()

    async def repository_model_unload(self, request: Any, credential: str) -> Any:
        await self._change(request, credential, "unload")
        return wire.kind("RepositoryModelUnloadResponse")()

    async def _change(self, request: Any, credential: str, verb: str) -> None:
        self._check_repository(request, credential)
        if not request.model_name:
            raise InvalidInput(f"'model_name' is necessary to {verb} a model")
        path = f"models/{quote(request.model_name, safe='')}/{verb}"
        parameters = {name: _choice(one) for name, one in request.parameters.items()}
        await _asked(self._behind.repository.change, path, credential, {"parameters": parameters})

    def _check_repository(self, request: Any, credential: str) -> None:
        self._known(credential)
        if request.repository_name:
            raise Unsupported(ONE_REPOSITORY)

    # -- shared memory ----------------------------------------------------------------------------------------------

    def _regions(self, credential: str) -> tuple[Regions, str]:
        caller = self._known(credential)
        if self._behind.regions is None:
            raise Unsupported(NO_SHARED_MEMORY)
        return self._behind.regions, caller.id

    async def system_shared_memory_status(self, request: Any, credential: str) -> Any:
        regions, owner = self._regions(credential)
        answer = wire.kind("SystemSharedMemoryStatusResponse")()
        for one in regions.status(owner, request.name):
            region = answer.regions[one["name"]]
            region.name, region.key = one["name"], one["key"]
            region.offset, region.byte_size = one["offset"], one["byte_size"]
        return answer

    async def system_shared_memory_register(self, request: Any, credential: str) -> Any:
        regions, owner = self._regions(credential)
        regions.register(owner, request.name, request.key, request.offset, request.byte_size)
        return wire.kind("SystemSharedMemoryRegisterResponse")()

    async def system_shared_memory_unregister(self, request: Any, credential: str) -> Any:
        regions, owner = self._regions(credential)
        regions.unregister(owner, request.name)
        return wire.kind("SystemSharedMemoryUnregisterResponse")()

    async def cuda_shared_memory_status(self, _request: Any, credential: str) -> Any:
        self._known(credential)
        return wire.kind("CudaSharedMemoryStatusResponse")()

    async def cuda_shared_memory_register(self, _request: Any, credential: str) -> Any:
        self._known(credential)
        raise Unsupported(_NO_CUDA)

    async def cuda_shared_memory_unregister(self, _request: Any, credential: str) -> Any:
        """There is nothing to forget; clients begin with this call."""
        self._known(credential)
        return wire.kind("CudaSharedMemoryUnregisterResponse")()

    # -- live settings ----------------------------------------------------------------------------------------------

    def _operator(self, credential: str) -> None:
        if not self._known(credential).may(ALL):
            raise Forbidden("Changing the settings needs a key that may use every endpoint")

    async def trace_setting(self, request: Any, credential: str) -> Any:
        model, settings = request.model_name, self._behind.settings
        if model:
            self._plane.admit(model, credential)
        else:
            self._known(credential)
        if request.settings:
            self._operator(credential)
            settings.set_traces({name: _value(list(one.value)) for name, one in request.settings.items()}, model)
        answer = wire.kind("TraceSettingResponse")()
        for name, value in settings.traces(model).told().items():
            answer.settings[name].value.extend(value if isinstance(value, list) else [value])
        return answer

    async def log_settings(self, request: Any, credential: str) -> Any:
        self._known(credential)
        settings = self._behind.settings
        if request.settings:
            self._operator(credential)
            settings.set_logs({name: _choice(one) for name, one in request.settings.items()})
        answer = wire.kind("LogSettingsResponse")()
        for name, value in settings.logs.told().items():
            slot = answer.settings[name]
            if isinstance(value, bool):
                slot.bool_param = value
            elif isinstance(value, int):
                slot.uint32_param = value
            else:
                slot.string_param = value
        return answer


async def _asked(handler: Any, path: str, credential: str, body: dict[str, Any]) -> Any:
    """What the console answers. Raises the error that its refusal stands for."""
    data = msgspec.json.encode(body)
    headers = {
        b"authorization": f"Bearer {credential}".encode("latin-1", "replace"),
        b"content-type": b"application/json",
    }
    head = Head("POST", f"/v2/repository/{path}".encode(), headers, is_http11=True)
    response = await handler(Request(head, data, f"grpc-{next(_ids):x}"))
    text = response.body
    found = msgspec.json.decode(text) if text else None
    if response.status < 400:
        return found
    words = found.get("error") if isinstance(found, dict) else None
    raise _ERRORS.get(response.status, SerinusError)(words)


def _choice(given: Any) -> Any:
    choice = given.WhichOneof("parameter_choice")
    return getattr(given, choice) if choice else None


def _value(values: list[str]) -> list[str] | str | None:
    """A trace setting's new value: none at all puts it back, one stands for itself."""
    if not values:
        return None
    return values[0] if len(values) == 1 else values
