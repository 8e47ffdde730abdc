"""An HTTP request and reply over raw ASGI, as little as uploads need."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from inference.errors import Malformed

IDLE_S = 60.0
SECURITY = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


class TusError(Exception):
    """An answer that the protocol gives a number of its own."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = headers or {}


class Request:
    """Method, path, headers (small letters) and the body as it comes."""

    def __init__(self, scope: dict[str, Any], receive: Any) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers = {name.decode("latin1").lower(): value.decode("latin1") for name, value in scope["headers"]}
        self._receive = receive

    def number(self, name: str) -> int:
        """A header that is a whole number. Raises Malformed."""
        text = self.headers.get(name, "")
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise Malformed(f"the header {name} must be a whole number")
        return int(text)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body's pieces. Raises ConnectionResetError when the client is gone, TusError when it sends nothing."""
        more = True
        while more:
            try:
                message = await asyncio.wait_for(self._receive(), IDLE_S)
            except TimeoutError:
                raise TusError(408, "deadline_exceeded", "the body came to a halt: resume at the offset") from None
            if message["type"] == "http.disconnect":
                raise ConnectionResetError
            more = message.get("more_body", False)
            if message.get("body"):
                yield message["body"]


@dataclass(slots=True)
class Reply:
    """Status, headers (small letters) and, where there is one, a JSON body."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    content: Any = None


async def send_reply(send: Any, reply: Reply, *, head: bool = False) -> None:
    data = b"" if reply.content is None else json.dumps(reply.content).encode()
    headers = SECURITY | reply.headers
    if data:
        headers |= {"content-type": "application/json"}
    if data or reply.status != 204:
        headers |= {"content-length": str(len(data))}
    pairs = [(name.encode(), value.encode("latin1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": reply.status, "headers": pairs})
    await send({"type": "http.response.body", "body": b"" if head else data})
