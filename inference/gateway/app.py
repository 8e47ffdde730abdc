"""The gateway as a raw ASGI application: which path belongs to which door, and the one place where errors become
answers. An error that nobody foresaw reaches the client as one fixed sentence; the log has the rest.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any
from urllib.parse import urlsplit

from inference.config import is_loopback
from inference.errors import (
    Forbidden,
    Malformed,
    MethodNotAllowed,
    NotFound,
    SerinusError,
    ServerError,
    TooLarge,
    Unsupported,
)
from inference.gateway import problems
from inference.gateway.bodies import Receive
from inference.gateway.dataplane import DataPlane
from inference.gateway.rest import Given, Response, Rest, credential_of
from inference.gateway.websocket import Streams

Scope = dict[str, Any]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Route = tuple[str, str, int | None]

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_MODEL = re.compile(rf"/v2/models/({NAME})(?:/versions/([0-9]{{1,9}}))?(?:/([a-z_/]+))?")
_SERVER = {"/v2": "server", "/v2/health/live": "live", "/v2/health/ready": "ready", "/metrics": "metrics"}
_MODEL_VERBS = {None: "model", "ready": "model_ready", "infer": "infer", "stream": "stream"}
_LATER = re.compile(
    r"/v2/(?:repository(?:/[^/]+)?/(?:index|models/[^/]+/(?:load|unload))"
    r"|(?:system|cuda)sharedmemory(?:/region/[^/]+)?/(?:status|register|unregister)|trace/setting|logging)"
)
_MODEL_LATER = frozenset({"generate", "generate_stream", "config", "stats", "trace/setting"})
_POST = frozenset({"infer"})
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
MAX_HEADER_BYTES = 32 << 10
_MAX_ROUTES = 4096
_log = logging.getLogger(__name__)


def parse(path: str) -> Route:
    """(what, endpoint, version) of a path. Raises NotFound."""
    what = _SERVER.get(path)
    if what is not None:
        return what, "", None
    match = _MODEL.fullmatch(path)
    if match is not None:
        name, number, verb = match.groups()
        if verb in _MODEL_VERBS:
            return _MODEL_VERBS[verb], name, int(number) if number else None
        if verb in _MODEL_LATER:
            return "later", name, None
    if _LATER.fullmatch(path):
        return "later", "", None
    raise NotFound("Not Found")


class App:
    """The ASGI callable."""

    def __init__(self, plane: DataPlane, rest: Rest, streams: Streams) -> None:
        self._plane = plane
        self._rest = rest
        self._streams = streams
        self._routes: dict[str, Route] = {}
        self._ids = count(1)
        self._boot = os.urandom(6).hex()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        given: Given = dict(scope["headers"])
        request_id = self._request_id(given)
        try:
            if len(b"".join(given.values())) > MAX_HEADER_BYTES:
                raise TooLarge(f"The request's headers are larger than {MAX_HEADER_BYTES} bytes")
            if self._plane.insecure:
                _refuse_foreign(given)
            status, headers, body = await self._answer(scope, given, receive, request_id)
        except SerinusError as error:
            status, headers, body = _problem(scope, error)
        except Exception:  # noqa: BLE001 (logged in full; the client gets one fixed sentence)
            _log.exception("request %s failed", request_id)
            status, headers, body = _problem(scope, ServerError())
        headers.append((b"x-request-id", request_id.encode()))
        if self._plane.draining or status == 413:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, given: Given, receive: Receive, request_id: str) -> Response:
        what, name, number = self._route(scope)
        method = scope["method"]
        if what == "infer":
            if method != "POST":
                raise MethodNotAllowed
            return await self._rest.infer(given, receive, name, number, request_id)
        if what == "later":
            self._rest.server(given)
            raise Unsupported
        if method not in {"GET", "HEAD"}:
            raise MethodNotAllowed
        return self._simple(what, given, name, number)

    def _simple(self, what: str, given: Given, name: str, number: int | None) -> Response:
        rest = self._rest
        if what == "live":
            return rest.live()
        if what == "ready":
            return rest.ready()
        if what == "server":
            return rest.server(given)
        if what == "metrics":
            return rest.metrics(given, len(self._streams))
        if what == "model":
            return rest.model(given, name, number)
        if what == "model_ready":
            return rest.model_ready(given, name, number)
        self._plane.admit(name, credential_of(given))
        raise Malformed("This address speaks WebSocket")

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        given: Given = dict(scope["headers"])
        try:
            what, name, number = self._route(scope)
            if what != "stream" or len(b"".join(given.values())) > MAX_HEADER_BYTES:
                raise NotFound("Not Found")
            if self._plane.insecure:
                _refuse_foreign(given)
        except (NotFound, Forbidden):
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        await self._streams.serve(
            scope, receive, send, given=given, name=name, number=number, request_id=self._request_id(given)
        )

    def _route(self, scope: Scope) -> Route:
        # No name here needs an escape, and one that stands for a slash would let an address pass a proxy's rules.
        if b"%" in (scope.get("raw_path") or b""):
            raise NotFound("Not Found")
        path: str = scope["path"]
        found = self._routes.get(path)
        if found is None:
            found = parse(path)
            if len(self._routes) >= _MAX_ROUTES:
                self._routes.clear()
            self._routes[path] = found
        return found

    def _request_id(self, given: Given) -> str:
        own = given.get(b"x-request-id")
        if own is not None and _REQUEST_ID.fullmatch(own):
            return own.decode("ascii")
        return f"{self._boot}-{next(self._ids):x}"


def _refuse_foreign(given: Given) -> None:
    """Where no key is asked for, a page from elsewhere could have a person's browser call this machine.

    Raises Forbidden unless the Host and, of a browser, the Origin are this machine's own.
    """
    addresses = [b"http://" + given[b"host"]] if b"host" in given else []
    addresses += [given[b"origin"]] if b"origin" in given else []
    if not all(is_loopback(_host_of(address.decode("latin-1"))) for address in addresses):
        raise Forbidden("Without keys (--insecure) only this machine's own addresses are served")


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _problem(scope: Scope, error: SerinusError) -> Response:
    headers = problems.headers_of(error)
    if error.code == "method_not_allowed":
        headers.append((b"allow", b"POST" if scope["path"].endswith("/infer") else b"GET, HEAD"))
    return problems.status_of(error), headers, problems.body_of(error)
