"""The playground's WebSocket at /ws/v2/stream: `chat` and `completion` of docs/websocket.md, under the person's session.

A browser may not connect to the gateway (the pages' content policy allows this console alone), so each chat is passed
on with a short-lived token of one endpoint. In: {"type": "chat" | "completion", "id", "version", "credit",
"parameters", "body"}, "credit", "cancel", "ping", "pong". Out: what the gateway says.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from typing import Any

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.conf import settings

from accounts.permissions import Actor, Verb, require
from console.consumers import SESSION_ENDED, actor_in
from console.playground import make_token
from console.reading import endpoint_named
from console.relay import PROTOCOL, Frame, Relay, failed
from endpoints.publish import token_secret
from inference.errors import Conflict, Malformed, Overloaded, SerinusError, Unauthenticated, Unsupported

MAX_MESSAGE_CHARS = 1 << 20
MAX_ID_CHARS = 256
MAX_CHATS = 8
WATCH_S = 15.0
PASSED = ("type", "id", "version", "credit", "parameters", "body")


class ChatConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]  # channels brings no types
    """The chats of one page of one person."""

    async def connect(self) -> None:
        self.relays: dict[str, Relay] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.watch: asyncio.Task[None] | None = None
        known = (await self._actor()).known
        await self.accept(PROTOCOL if PROTOCOL in self.scope.get("subprotocols", []) else None)
        if not known:
            await self.close(SESSION_ENDED)
            return
        self.watch = asyncio.create_task(self._watch())

    async def disconnect(self, code: int) -> None:
        for task in (self.watch, *self.tasks.values()):
            if task is not None:
                task.cancel()

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Anything unreadable is answered, never raised."""
        identity: str | None = None
        try:
            frame = _read(text_data)
            kind, identity = str(frame.get("type")), _identity(frame)
            if kind in {"chat", "completion"}:
                self._begin(frame)
            elif kind in {"credit", "cancel"}:
                if identity in self.relays:
                    await self.relays[identity].pass_on(frame)
            elif kind == "ping":
                await self._tell('{"type":"pong"}')
            elif kind != "pong":
                raise Unsupported(f"the playground has no frames of type '{kind[:40]}'")
        except SerinusError as error:
            await self._tell(failed(identity, error))

    def _begin(self, frame: Frame) -> None:
        identity = frame["id"]
        if identity in self.relays:
            raise Conflict("a request with this id is already under way on this connection")
        if len(self.relays) >= MAX_CHATS:
            raise Overloaded(f"at most {MAX_CHATS} chats at once on one page")
        endpoint = _endpoint_of(frame)
        relay = self.relays[identity] = Relay({key: frame[key] for key in PASSED if key in frame}, self._tell)
        task = self.tasks[identity] = asyncio.create_task(self._chat(relay, endpoint))
        task.add_done_callback(lambda _: self._forget(identity))

    def _forget(self, identity: str) -> None:
        self.relays.pop(identity, None)
        self.tasks.pop(identity, None)

    async def _chat(self, relay: Relay, endpoint: str) -> None:
        try:
            token = await database_sync_to_async(_token_for, thread_sensitive=False)(self.scope, endpoint)
        except SerinusError as error:
            await self._tell(failed(relay.frame["id"], error))
        else:
            await relay.run(settings.GATEWAY_URL, token)

    async def _tell(self, text: str) -> None:
        with contextlib.suppress(RuntimeError):  # the transport closed under us
            await self.send(text_data=text)

    async def _watch(self) -> None:
        """A sign of life for the page; a session that ends, ends its chats."""
        while True:
            await asyncio.sleep(WATCH_S)
            if not (await self._actor()).known:
                await self.close(SESSION_ENDED)
                return
            await self._tell('{"type":"ping"}')

    async def _actor(self) -> Actor:
        actor: Actor = await database_sync_to_async(actor_in, thread_sensitive=False)(self.scope)
        return actor


def _read(text: str | None) -> Frame:
    """Raises Malformed."""
    if not text or len(text) > MAX_MESSAGE_CHARS:
        raise Malformed(f"messages are JSON texts of at most {MAX_MESSAGE_CHARS:,} characters")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Malformed("messages are JSON objects") from error
    if not isinstance(found, dict):
        raise Malformed("messages are JSON objects")
    return found


def _identity(frame: Frame) -> str | None:
    """The frame's id. Raises Malformed where one is needed and is none."""
    found = frame.get("id")
    if frame.get("type") in {"ping", "pong"}:
        return None
    if not isinstance(found, str) or not 0 < len(found) <= MAX_ID_CHARS:
        raise Malformed(f"'id' is a text of 1 to {MAX_ID_CHARS} characters")
    return found


def _endpoint_of(frame: Frame) -> str:
    """The endpoint in `body.model`, which may go on with a version or an adapter. Raises Malformed."""
    body = frame.get("body")
    model = body.get("model") if isinstance(body, dict) else None
    if not isinstance(model, str) or not model:
        raise Malformed("'body' is an object, and its 'model' the name of an endpoint")
    return re.split(r"[@:/]", model, maxsplit=1)[0]


def _token_for(scope: Any, endpoint: str) -> str:
    """Raises Unauthenticated, NotFound or Forbidden."""
    actor = actor_in(scope)
    if not actor.known:
        raise Unauthenticated("Your session has ended: log in again.")
    found = endpoint_named(actor, endpoint)
    require(actor, Verb.VIEW, found)
    return make_token(token_secret(), user=actor.name, endpoint=found.name)
