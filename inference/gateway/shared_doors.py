"""The handlers of Triton's shared memory extensions. Shared memory of CUDA devices is not there and says so."""

from __future__ import annotations

from typing import Annotated

import msgspec

from inference.errors import Forbidden, InvalidInput, Malformed, Unsupported
from inference.gateway.calls import NO_SHARED_MEMORY
from inference.gateway.dataplane import DataPlane
from inference.gateway.rest import Rest
from inference.gateway.shared_memory import Regions
from inference.gateway.web import JSON_TYPE, Request, Response

_NO_CUDA = "CUDA shared memory is not supported: replicas run in processes of their own; use system shared memory"


class _Registration(msgspec.Struct):
    key: str
    byte_size: Annotated[int, msgspec.Meta(ge=0)]
    offset: Annotated[int, msgspec.Meta(ge=0)] = 0


_decode = msgspec.json.Decoder(_Registration).decode


class SharedDoors:
    """`/v2/systemsharedmemory/...` and `/v2/cudasharedmemory/...`; regions: None where clients may share none."""

    def __init__(self, plane: DataPlane, rest: Rest, regions: Regions | None) -> None:
        self._plane = plane
        self._rest = rest
        self._regions = regions
        if regions is not None:
            plane.table.changed.append(lambda: regions.keep(self._owns))

    async def status(self, request: Request) -> Response:
        owner, regions = self._allowed(request)
        return Response(200, [JSON_TYPE], msgspec.json.encode(regions.status(owner, request.rest[0])))

    async def register(self, request: Request) -> Response:
        owner, regions = self._allowed(request)
        if not request.rest[0]:
            raise InvalidInput("'region name' is necessary to register system shared memory region")
        try:
            wanted = _decode(request.body)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            # what came is not quoted: it names the region
            raise Malformed("a registration is a JSON object with 'key', 'byte_size' and perhaps 'offset'") from None
        regions.register(owner, request.rest[0], wanted.key, wanted.offset, wanted.byte_size)
        return Response(200, [JSON_TYPE])

    async def unregister(self, request: Request) -> Response:
        owner, regions = self._allowed(request)
        regions.unregister(owner, request.rest[0])
        return Response(200, [JSON_TYPE])

    async def cuda_status(self, request: Request) -> Response:
        self._rest.known(request.headers)
        return Response(200, [JSON_TYPE], b"[]")

    async def cuda_register(self, request: Request) -> Response:
        self._rest.known(request.headers)
        raise Unsupported(_NO_CUDA)

    async def cuda_unregister(self, request: Request) -> Response:
        """There is nothing to forget; clients begin with this call."""
        self._rest.known(request.headers)
        return Response(200, [JSON_TYPE])

    def _allowed(self, request: Request) -> tuple[str, Regions]:
        caller = self._rest.known(request.headers)
        if self._regions is None:
            raise Unsupported(NO_SHARED_MEMORY)
        if not self._owns(caller.id):
            raise Forbidden("shared memory needs an API key")
        return caller.id, self._regions

    def _owns(self, owner: str) -> bool:
        """Whether it may have regions: a key, or whoever it is where none is asked for."""
        return self._plane.insecure or self._plane.table.now.keys.knows(owner)
