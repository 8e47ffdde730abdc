"""gRPC's own health protocol: of the server, of the service, and, for who may use it, of a model by its name."""

from __future__ import annotations

import asyncio
from typing import Any

from inference.errors import Forbidden, Malformed, NotFound, Overloaded, Unauthenticated
from inference.gateway.dataplane import DataPlane
from inference.gateway.grpc import wire
from inference.gateway.grpc.describe import Describe
from inference.gateway.grpc.tasks import StreamExchange
from inference.protocol.proto import message

SERVICE = "grpc.health.v1.Health"
INFERENCE = "inference.GRPCInferenceService"
WATCH_S = 0.2
MAX_WATCHES = 256
_SERVING, _NOT_SERVING, _SERVICE_UNKNOWN = 1, 2, 3

REQUEST = message("grpc.health.v1.HealthCheckRequest", "health")
RESPONSE = message("grpc.health.v1.HealthCheckResponse", "health")


class Health:
    """The handlers of Check and Watch."""

    def __init__(self, plane: DataPlane, describe: Describe) -> None:
        self._plane = plane
        self._describe = describe
        self._watches = 0

    def status(self, service: str, credential: str) -> int:
        """A name that the caller may not use is as unknown as one that does not exist."""
        if service in {"", SERVICE, INFERENCE}:
            return _SERVING if self._describe.is_ready else _NOT_SERVING
        try:
            self._plane.admit(service, credential)
        except (NotFound, Unauthenticated, Forbidden):
            return _SERVICE_UNKNOWN
        return _SERVING if self._describe.serves(service, "", credential) else _NOT_SERVING

    async def check(self, request: Any, credential: str) -> Any:
        status = self.status(request.service, credential)
        if status == _SERVICE_UNKNOWN:
            raise NotFound("unknown service")
        return RESPONSE(status=status)

    async def watch(self, exchange: StreamExchange) -> None:
        """Sends the status, and again whenever it has changed, until the client leaves or the gateway is gone."""
        taken = await exchange.read()
        if taken is None or not isinstance(taken.data, bytes):
            raise Malformed("a watch names its service in one message")
        request = wire.parse(REQUEST, taken.data)
        credential = exchange.head.credential
        if self._watches >= MAX_WATCHES:
            raise Overloaded("Too many watches", retry_after_s=1.0)
        self._watches += 1
        try:
            await self._tell(request.service, credential, exchange)
        finally:
            self._watches -= 1

    async def _tell(self, service: str, credential: str, exchange: StreamExchange) -> None:
        last = -1
        while True:
            status = self.status(service, credential)
            if status != last:
                last = status
                await exchange.write([RESPONSE(status=status).SerializeToString()])
            if self._plane.draining:
                return
            await asyncio.sleep(WATCH_S)
