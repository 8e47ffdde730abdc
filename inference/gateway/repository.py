"""Triton's model control on this gateway's addresses: passed on to the console, with the caller's own key.

What may be loaded and by whom the console decides. Bodies are bounded both ways and every call has a deadline; while
the console is away the answer is a typed 503, and predictions go on.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx
import msgspec

from inference.errors import NotReady, TooLarge, Unsupported
from inference.gateway.rest import Rest
from inference.gateway.web import JSON_TYPE, Request, Response

CONNECT_S = 3.0
INDEX_S = 15.0
CHANGE_S = 300.0
MAX_REQUEST_BYTES = 8 << 20
MAX_ANSWER_BYTES = 8 << 20
ONE_REPOSITORY = "'repository_name' specification is not supported: leave it out, there is one repository"
_PASSED = ("authorization", "x-api-key", "content-type")
_AWAY = "The console cannot be reached: model control needs it, predictions do not. Try again later."


class Repository:
    """The handlers of `/v2/repository/...`. url: of the console, "" where this gateway knows none."""

    def __init__(self, rest: Rest, url: str) -> None:
        self._rest = rest
        self._url = url.rstrip("/")
        self._client: httpx.AsyncClient | None = None

    async def index(self, request: Request) -> Response:
        return await self._pass_on(request, INDEX_S)

    async def change(self, request: Request) -> Response:
        """Loads or unloads; it may take as long as a model takes to load."""
        return await self._pass_on(request, CHANGE_S)

    async def _pass_on(self, request: Request, deadline_s: float) -> Response:
        self._rest.known(request.headers)
        if request.rest and request.rest[0]:
            raise Unsupported(ONE_REPOSITORY)
        if len(request.body) > MAX_REQUEST_BYTES:
            raise TooLarge(f"A model control request may have at most {MAX_REQUEST_BYTES} bytes")
        if not self._url:
            raise NotReady("This gateway knows no console (SERINUS_CONSOLE_URL): model control needs one")
        try:
            async with asyncio.timeout(deadline_s):
                status, body = await self._ask(request, deadline_s)
        except (httpx.HTTPError, OSError, TimeoutError) as error:
            raise NotReady(_AWAY, retry_after_s=5.0) from error
        return Response(status, [JSON_TYPE], body if status < 400 else _problem(body))

    async def _ask(self, request: Request, deadline_s: float) -> tuple[int, bytes]:
        if self._client is None:
            logging.getLogger("httpx").setLevel(logging.WARNING)  # it would write every address
            self._client = httpx.AsyncClient(trust_env=False, follow_redirects=False)
        given = request.headers
        headers = {name: given[name.encode()].decode("latin-1") for name in _PASSED if name.encode() in given}
        headers["x-request-id"] = request.id
        timeout = httpx.Timeout(deadline_s, connect=CONNECT_S)
        asked = self._client.stream(
            request.method, self._url + request.head.path, content=bytes(request.body), headers=headers, timeout=timeout
        )
        async with asked as answer:
            body = b""
            async for piece in answer.aiter_bytes():
                body += piece
                if len(body) > MAX_ANSWER_BYTES:
                    raise NotReady("The console's answer is too long")
            # a redirect is a page for people: nothing that a client of this door could follow
            return (answer.status_code if not answer.is_redirect else 502), body

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()


def _problem(body: bytes) -> bytes:
    """The console's refusal in this door's shape."""
    try:
        found: Any = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        found = None
    error = found.get("error", found) if isinstance(found, dict) else None
    words = error.get("message") if isinstance(error, dict) else error
    return msgspec.json.encode({"error": words if isinstance(words, str) else "The console refused the call."})
