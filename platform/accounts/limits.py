"""Refuses, before Django reads it, what no page or API here takes: large bodies, and NUL in paths and queries."""

from __future__ import annotations

import json
from typing import Any

from accounts.asgi import new_request_id
from accounts.problems import body

Scope = dict[str, Any]


class _BodyTooLarge(Exception):
    """More came than the limit allows."""


class RequestLimits:
    """ASGI middleware. Django would spool any body to disk first, however large."""

    def __init__(self, app: Any, *, max_body_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if "\0" in scope["path"] or b"%00" in scope.get("query_string", b"") or b"\0" in scope.get("query_string", b""):
            await _refuse(send, 400, "malformed", "The address holds a NUL character.")
            return
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared) > self.max_body_bytes:
            await self._too_large(send)
            return
        await self._counted(scope, receive, send)

    async def _counted(self, scope: Scope, receive: Any, send: Any) -> None:
        """Counts a body of unknown length as it comes; answers by itself only if nothing was answered yet."""
        seen, started = 0, False

        async def receive_counted() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.max_body_bytes:
                raise _BodyTooLarge
            return message

        async def send_marked(message: Any) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive_counted, send_marked)
        except _BodyTooLarge:
            if not started:
                await self._too_large(send)

    async def _too_large(self, send: Any) -> None:
        await _refuse(send, 413, "too_large", f"A request body here may have at most {self.max_body_bytes} bytes.")


async def _refuse(send: Any, status: int, code: str, message: str) -> None:
    data = json.dumps(body(code, message, new_request_id())).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(data)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
