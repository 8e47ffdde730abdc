"""A browser's end of the console's WebSockets, through the whole of config.asgi."""

from __future__ import annotations

import json
from typing import Any

from asgiref.testing import ApplicationCommunicator
from django.test import Client

from accounts.models import User


class Socket(ApplicationCommunicator):
    """A browser's end of a WebSocket."""

    async def connect(self) -> bool:
        await self.send_input({"type": "websocket.connect"})
        return bool((await self.receive_output(10))["type"] == "websocket.accept")

    async def say(self, text: str) -> None:
        await self.send_input({"type": "websocket.receive", "text": text})

    async def hear(self) -> Any:
        output = await self.receive_output(10)
        assert output["type"] == "websocket.send", output
        return json.loads(output["text"])

    async def ask(self, topic: str) -> Any:
        await self.say(json.dumps({"type": "subscribe", "topic": topic}))
        return await self.hear()

    async def disconnect(self) -> None:
        await self.send_input({"type": "websocket.disconnect", "code": 1000})
        await self.wait(10)


def socket_of(
    person: User | None,
    origin: str = "http://localhost",
    path: str = "/ws/console/",
    protocols: list[str] | None = None,
) -> Socket:
    """A connection through the whole of config.asgi, with the person's real session cookie."""
    from config.asgi import application

    headers = [(b"origin", origin.encode()), (b"host", b"localhost")]
    if person is not None:
        client = Client()
        client.force_login(person, backend="accounts.login.LimitedBackend")
        cookie = "; ".join(f"{name}={held.value}" for name, held in client.cookies.items())
        headers.append((b"cookie", cookie.encode()))
    scope = {
        "type": "websocket",
        "path": path,
        "query_string": b"",
        "headers": headers,
        "subprotocols": protocols or [],
    }
    return Socket(application, scope)
