"""`/v1/models`: the endpoints that this key may use and this API can ask, and the adapters of each."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec

from inference.gateway.admission import Caller
from inference.gateway.dataplane import DataPlane
from inference.gateway.openai import embeddings
from inference.gateway.openai.asking import Target, find, who_of
from inference.gateway.rest import Rest
from inference.gateway.table import Endpoint
from inference.gateway.web import JSON_TYPE, Request, Response
from inference.protocol.generation import PLATFORM
from inference.protocol.oip import Signature

_encode = msgspec.json.Encoder().encode


class Models:
    """The handlers. A model was created when its endpoint was; where the routing table does not say so, when this
    gateway saw it first.
    """

    def __init__(self, plane: DataPlane, rest: Rest) -> None:
        self._plane = plane
        self._rest = rest
        self._seen: dict[str, int] = {}

    async def all(self, request: Request) -> Response:
        caller = self._rest.known(request.headers)
        found = sorted(self._plane.table.now.endpoints.items())
        data = [shown for name, one in found if _may(caller, one) and is_asked(one) for shown in self._named(name, one)]
        return Response(200, [JSON_TYPE], _encode({"object": "list", "data": data}))

    async def one(self, request: Request) -> Response:
        """An adapter is shown with its endpoint as `parent`."""
        name = unquote_to_bytes(request.rest[0]).decode("utf-8", "replace")
        target: Target = find(self._plane, name, who_of(request))
        shown = self._shown(target.endpoint.route.name, target.endpoint)
        if name != target.endpoint.route.name:
            shown |= {"id": name, "parent": target.endpoint.route.name}
        return Response(200, [JSON_TYPE], _encode(shown))

    def _named(self, name: str, endpoint: Endpoint) -> list[dict[str, Any]]:
        """The endpoint itself, then ENDPOINT:ADAPTER of each of its adapters."""
        own = self._shown(name, endpoint)
        adapters = sorted({adapter for one in endpoint.variants.values() for adapter in one.route.adapters})
        return [own, *(own | {"id": f"{name}:{adapter}", "parent": name} for adapter in adapters)]

    def _shown(self, name: str, endpoint: Endpoint) -> dict[str, Any]:
        created = endpoint.route.created_unix_s or self._seen.setdefault(name, int(time.time()))
        owner = endpoint.route.team or "serinus"
        return {"id": name, "object": "model", "created": created, "owned_by": owner, "root": name, "parent": None}


def _may(caller: Caller, endpoint: Endpoint) -> bool:
    return caller.may(endpoint.route.name) or endpoint.route.public


def is_asked(endpoint: Endpoint) -> bool:
    """Whether one of its versions is a language model or an encoder of texts."""
    return any(_speaks(variant.route.signature) for variant in endpoint.variants.values())


def _speaks(signature: Signature) -> bool:
    return signature.platform == PLATFORM or embeddings.form_of(signature) is not None
