"""WebSockets of the console: only pages of the console itself may open one.

Cookies know no ports, so a page of any other server on this machine could use a person's session; comparing host names
alone would let it. Sources: RFC 6454 (origins), RFC 6455 section 10.2.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from django.conf import settings

DEFAULT_PORTS = {"http": 80, "https": 443}


def is_same_origin(origin: str, host: str) -> bool:
    """Is `origin` (the Origin header) the server that `host` (the Host header) names, or one that is trusted?"""
    if origin in settings.CSRF_TRUSTED_ORIGINS:
        return True
    try:
        parts = urlsplit(origin)
        asked = urlsplit(f"//{host}")
        port = parts.port or DEFAULT_PORTS.get(parts.scheme)
        return bool(parts.hostname) and (parts.hostname, port) == (
            asked.hostname,
            asked.port or DEFAULT_PORTS.get(parts.scheme),
        )
    except ValueError:
        return False


class SameOrigin:
    """Closes the handshake (403) of a page from elsewhere, and of a client that names no origin."""

    def __init__(self, application: Any) -> None:
        self.application = application

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        headers = {name.lower(): value for name, value in scope.get("headers", [])}
        origin = headers.get(b"origin", b"").decode("latin-1")
        if is_same_origin(origin, headers.get(b"host", b"").decode("latin-1")):
            await self.application(scope, receive, send)
            return
        await receive()
        await send({"type": "websocket.close", "code": 4403})
