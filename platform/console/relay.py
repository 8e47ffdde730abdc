"""One chat of the playground on its way: a connection of its own to the gateway, frames passed on as they are.

The browser's credit reaches the gateway, so a slow page pauses its own generation and nothing piles up here. However a
chat ends, the browser gets exactly one last frame, and the gateway's connection is closed: what still runs there ends.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import websockets
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from inference.errors import Cancelled, Forbidden, NotReady, SerinusError

PROTOCOL = "serinus.v1"
OPEN_S = 10.0
MAX_FRAME_BYTES = 16 << 20
QUEUED_FRAMES = 16
Frame = dict[str, Any]
Tell = Callable[[str], Awaitable[None]]


class Relay:
    """frame: a `chat` or `completion` of docs/websocket.md. tell: sends a frame's text to the browser."""

    def __init__(self, frame: Frame, tell: Tell) -> None:
        self.frame, self._tell = frame, tell
        self._gateway: ClientConnection | None = None
        self._is_cancelled = False

    async def run(self, gateway_url: str, token: str) -> None:
        """Until the last frame. Raises nothing but what cancels it."""
        try:
            await self._run(gateway_url, token)
        except SerinusError as error:
            await self._tell(failed(self.frame["id"], error))
        finally:
            self._gateway = None

    async def pass_on(self, frame: Frame) -> None:
        """`credit` or `cancel` from the browser."""
        self._is_cancelled |= frame["type"] == "cancel"
        if self._gateway is not None:
            try:
                await self._gateway.send(json.dumps(frame))
            except ConnectionClosed:
                return  # the reader finds out, and tells

    async def _run(self, gateway_url: str, token: str) -> None:
        protocols = [websockets.Subprotocol(one) for one in (PROTOCOL, f"serinus.key.{token}")]
        try:
            async with connect(
                address_of(gateway_url), subprotocols=protocols, max_size=MAX_FRAME_BYTES, max_queue=QUEUED_FRAMES,
                compression=None, open_timeout=OPEN_S, close_timeout=1.0, proxy=None,
            ) as gateway:  # fmt: skip
                await gateway.send(json.dumps(self.frame))
                self._gateway = gateway
                if self._is_cancelled:
                    raise Cancelled
                await self._forward(gateway)
        except InvalidStatus as error:
            raise Forbidden("The gateway refused the console's token") from error
        except ConnectionClosed as error:
            raise NotReady("The connection to the gateway was lost", retry_after_s=1.0) from error
        except (OSError, TimeoutError, WebSocketException) as error:
            raise NotReady("The gateway cannot be reached", retry_after_s=1.0) from error

    async def _forward(self, gateway: ClientConnection) -> None:
        async for message in gateway:
            text = message if isinstance(message, str) else message.decode()
            if text.startswith('{"type":"chunk"'):
                await self._tell(text)
                continue
            found = json.loads(text)
            if found.get("type") == "ping":
                await gateway.send('{"type":"pong"}')
            elif found.get("id") == self.frame["id"]:
                await self._tell(text)
                if found.get("type") == "done" or "error" in found:
                    return
        raise NotReady("The connection to the gateway was lost", retry_after_s=1.0)


def address_of(gateway_url: str) -> str:
    """http://host:port -> ws://host:port/v2/stream."""
    parts = urlsplit(gateway_url)
    return f"{'wss' if parts.scheme == 'https' else 'ws'}://{parts.netloc}{parts.path.rstrip('/')}/v2/stream"


def failed(identity: str | None, error: SerinusError) -> str:
    """The error frame that ends a request."""
    frame: Frame = {"id": identity, "error": error.message, "code": error.code}
    if error.retry_after_s is not None:
        frame["retry_after_s"] = error.retry_after_s
    return json.dumps(frame)
