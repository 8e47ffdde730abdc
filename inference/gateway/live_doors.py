"""The handlers of Triton's trace and logging settings: whoever has a key may read them, operators change them."""

from __future__ import annotations

from typing import Any

import msgspec

from inference.gateway.dataplane import DataPlane
from inference.gateway.live_settings import LiveSettings, parse
from inference.gateway.predict import credential_of
from inference.gateway.rest import Rest
from inference.gateway.web import JSON_TYPE, Request, Response


class LiveDoors:
    """`/v2/logging`, `/v2/trace/setting` and `/v2/models/{name}/trace/setting`."""

    def __init__(self, plane: DataPlane, rest: Rest, settings: LiveSettings) -> None:
        self._plane = plane
        self._rest = rest
        self._settings = settings
        plane.table.changed.append(self._forget)

    async def logging(self, request: Request) -> Response:
        self._rest.known(request.headers)
        if request.method == "POST":
            self._rest.operator(request.headers, "Changing the log settings")
            self._settings.set_logs(parse(request.body))
        return _told(self._settings.logs.told())

    async def tracing(self, request: Request) -> Response:
        self._rest.known(request.headers)
        return self._traces(request, "")

    async def tracing_of_model(self, request: Request) -> Response:
        self._plane.admit(request.name, credential_of(request.headers))
        return self._traces(request, request.name)

    def _traces(self, request: Request, model: str) -> Response:
        if request.method == "POST":
            self._rest.operator(request.headers, "Changing the trace settings")
            self._settings.set_traces(parse(request.body), model)
        return _told(self._settings.traces(model).told())

    def _forget(self) -> None:
        self._settings.keep(self._plane.table.now.endpoints.__contains__)


def _told(found: dict[str, Any]) -> Response:
    return Response(200, [JSON_TYPE], msgspec.json.encode(found))
