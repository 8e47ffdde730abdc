"""`/v1/files` and `/v1/batches`: the console's, passed on with the caller's own key.

An upload goes to the console while it comes and a download to the client while the console sends it, so neither is ever
in memory as a whole. While the console is away the answer is a typed 503, and chats go on.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec

from inference.errors import NotReady, SerinusError
from inference.gateway.openai import problems
from inference.gateway.rest import Rest
from inference.gateway.web import JSON_TYPE, Headers, Request, Response, Stream

UPLOADS = "/v1/files"
CONNECT_S, READ_S, WRITE_S = 3.0, 120.0, 30.0
MAX_CALLS = 64
WHOLE_BYTES = 1 << 20
_PASSED = ("authorization", "x-api-key", "content-type", "content-length", "accept", "idempotency-key")
_BACK = ("content-type", "content-disposition", "retry-after", "x-should-retry", "www-authenticate")
_AWAY = "The console cannot be reached: files and batches need it, other requests do not. Try again later."


class Files:
    """The handler of every address of files and batches. url: of the console, "" where this gateway knows none."""

    def __init__(self, rest: Rest, url: str) -> None:
        self._rest = rest
        self._url = url.rstrip("/")
        self._client: httpx.AsyncClient | None = None

    async def pass_on(self, request: Request) -> Response | Stream:
        self._rest.known(request.headers)
        if not self._url:
            raise NotReady("This gateway knows no console (SERINUS_CONSOLE_URL): files and batches need one")
        try:
            answer = await self._ask(request)
        except SerinusError:
            raise
        except (httpx.HTTPError, OSError) as error:
            raise NotReady(_AWAY, retry_after_s=5.0) from error
        headers: Headers = [
            (name.encode(), answer.headers[name].encode("latin-1")) for name in _BACK if name in answer.headers
        ]
        size = answer.headers.get("content-length", "")
        if answer.status_code >= 300 or (size.isdigit() and int(size) <= WHOLE_BYTES):
            return await _whole(answer, headers)
        return Stream(_pieces(answer), answer.status_code, headers)

    async def _ask(self, request: Request) -> httpx.Response:
        client = self._opened()
        given = request.headers
        headers = {name: given[name.encode()].decode("latin-1") for name in _PASSED if name.encode() in given}
        headers["x-request-id"] = request.id
        headers["accept-encoding"] = "identity"
        content: bytes | AsyncIterator[bytes]
        if request.incoming is not None:
            content = request.incoming.parts()
        else:
            content = bytes(request.body)
            headers["content-length"] = str(len(content))
        path = request.head.path + (f"?{request.head.query}" if request.head.query else "")
        asked = client.build_request(request.method, self._url + path, content=content, headers=headers)
        return await client.send(asked, stream=True)

    def _opened(self) -> httpx.AsyncClient:
        if self._client is None:
            logging.getLogger("httpx").setLevel(logging.WARNING)  # it would write every address
            self._client = httpx.AsyncClient(
                trust_env=False,
                follow_redirects=False,
                timeout=httpx.Timeout(READ_S, connect=CONNECT_S, write=WRITE_S, pool=CONNECT_S),
                limits=httpx.Limits(max_connections=MAX_CALLS, max_keepalive_connections=8),
            )
        return self._client

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()


async def _whole(answer: httpx.Response, headers: Headers) -> Response:
    try:
        body = b""
        async for piece in answer.aiter_raw():
            body += piece
            if len(body) > WHOLE_BYTES:
                raise NotReady("The console's answer is too long")
    except (httpx.HTTPError, OSError) as error:
        raise NotReady(_AWAY, retry_after_s=5.0) from error
    finally:
        await answer.aclose()
    if answer.status_code < 300 or _is_envelope(body):
        return Response(answer.status_code, headers, body)
    # a redirect or a page is for people: nothing that a client of this API could read
    status = answer.status_code if answer.status_code >= 400 else 502
    told = problems.envelope(NotReady("The console refused the call."))
    return Response(status, [JSON_TYPE], msgspec.json.encode({"error": told}))


def _is_envelope(body: bytes) -> bool:
    try:
        found: Any = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False
    return isinstance(found, dict) and isinstance(found.get("error"), dict)


async def _pieces(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in answer.aiter_raw():
            yield piece
    finally:
        await answer.aclose()
