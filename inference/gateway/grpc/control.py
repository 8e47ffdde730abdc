"""Model control, shared memory and live settings: what these calls need of the gateway, and their translation.

What stands behind them is REST's too. Where a gateway has none of it, the call says that it is not supported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from inference.errors import Forbidden, Unsupported
from inference.gateway.admission import ALL, Caller
from inference.gateway.grpc import wire

Setting = str | int | bool | list[str]
Settings = dict[str, Setting]


class Repository(Protocol):
    """Model control as the console answers it, asked with the caller's own credential."""

    async def index(self, credential: str, *, ready: bool) -> list[dict[str, str]]:
        """name, version, state and reason of every version that the caller may see."""

    async def load(self, credential: str, name: str, parameters: dict[str, Any]) -> None: ...

    async def unload(self, credential: str, name: str, parameters: dict[str, Any]) -> None: ...


class SharedMemory(Protocol):
    """See gateway.shared_memory.Regions."""

    def register(self, owner: str, name: str, key: str, offset: int, size_bytes: int) -> None: ...

    def unregister(self, owner: str, name: str = "") -> None: ...

    def status(self, owner: str, name: str = "") -> list[dict[str, int | str]]: ...


class LiveSettings(Protocol):
    """Settings that change while the gateway runs; each call answers those in force. None: back to the default."""

    def trace(self, model: str, changes: dict[str, list[str] | None]) -> dict[str, list[str]]: ...

    def log(self, changes: Settings) -> Settings: ...


@dataclass(frozen=True, slots=True)
class Behind:
    """What stands behind these calls; None for what this gateway does not have."""

    repository: Repository | None = None
    shared_memory: SharedMemory | None = None
    live: LiveSettings | None = None


class Control:
    """Handlers: each takes a parsed request and the caller's credential, and gives a message or raises a SerinusError."""

    def __init__(self, behind: Behind, known: Callable[[str], Caller]) -> None:
        self._behind = behind
        self._known = known

    # -- model control ----------------------------------------------------------------------------------------------

    def _repository(self, credential: str) -> Repository:
        self._known(credential)
        if self._behind.repository is None:
            raise Unsupported("this gateway has no console to ask: set SERINUS_CONSOLE_URL")
        return self._behind.repository

    async def repository_index(self, request: Any, credential: str) -> Any:
        found = await self._repository(credential).index(credential, ready=request.ready)
        answer = wire.kind("RepositoryIndexResponse")()
        for one in found:
            answer.models.add(**{name: str(one.get(name, "")) for name in ("name", "version", "state", "reason")})
        return answer

    async def repository_model_load(self, request: Any, credential: str) -> Any:
        parameters = _parameters(request.parameters)
        await self._repository(credential).load(credential, request.model_name, parameters)
        return wire.kind("RepositoryModelLoadResponse")()

    async def repository_model_unload(self, request: Any, credential: str) -> Any:
        parameters = _parameters(request.parameters)
        await self._repository(credential).unload(credential, request.model_name, parameters)
        return wire.kind("RepositoryModelUnloadResponse")()

    # -- shared memory ----------------------------------------------------------------------------------------------

    def _regions(self, credential: str) -> tuple[SharedMemory, str]:
        caller = self._known(credential)
        if self._behind.shared_memory is None:
            raise Unsupported("shared memory is not supported here: have the server started with --allow-client-shm")
        return self._behind.shared_memory, caller.id

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
        raise Unsupported("CUDA shared memory is not supported: this process holds no device")

    async def cuda_shared_memory_unregister(self, _request: Any, credential: str) -> Any:
        self._known(credential)
        return wire.kind("CudaSharedMemoryUnregisterResponse")()

    # -- live settings ----------------------------------------------------------------------------------------------

    def _live(self, credential: str, *, changes: bool) -> LiveSettings:
        caller = self._known(credential)
        if changes and not caller.may(ALL):
            raise Forbidden("Settings need a key that may use every endpoint")
        if self._behind.live is None:
            raise Unsupported("this gateway has no settings that change while it runs")
        return self._behind.live

    async def trace_setting(self, request: Any, credential: str) -> Any:
        live = self._live(credential, changes=bool(request.settings))
        changes = {name: list(one.value) or None for name, one in request.settings.items()}
        answer = wire.kind("TraceSettingResponse")()
        for name, values in live.trace(request.model_name, changes).items():
            answer.settings[name].value.extend(values)
        return answer

    async def log_settings(self, request: Any, credential: str) -> Any:
        live = self._live(credential, changes=bool(request.settings))
        changes = {name: _choice(one) for name, one in request.settings.items()}
        answer = wire.kind("LogSettingsResponse")()
        for name, value in live.log({name: one for name, one in changes.items() if one is not None}).items():
            slot = answer.settings[name]
            if isinstance(value, bool):
                slot.bool_param = value
            elif isinstance(value, int):
                slot.uint32_param = value
            else:
                slot.string_param = str(value)
        return answer


def _choice(given: Any) -> Any:
    choice = given.WhichOneof("parameter_choice")
    return getattr(given, choice) if choice else None


def _parameters(given: Any) -> dict[str, Any]:
    return {name: _choice(one) for name, one in given.items()}
