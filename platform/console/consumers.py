"""The console's WebSocket at /ws/console/: subscribe and unsubscribe topics, each checked with can().

In: {"type": "subscribe" | "unsubscribe", "topic"}. Out: {"type": "snapshot" | "delta", "topic", "seq", "data"} and
{"type": "error", "topic", "code", "message"}. A client that reads too slowly is let go; it comes back with a snapshot.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncJsonWebsocketConsumer

from accounts.models import User
from accounts.permissions import ANONYMOUS, Actor, actor_of_user
from console.hub import hub
from console.live import Data, feed_of
from inference.errors import ClientError, SerinusError

MAX_TOPICS = 16
MAX_WAITING = 64
MAX_MESSAGE_CHARS = 4096
RECHECK_S = 15.0
SESSION_ENDED = 4401
TOO_SLOW = 1013


class ConsoleConsumer(AsyncJsonWebsocketConsumer):  # type: ignore[misc]  # channels brings no types
    """One page of one person."""

    async def connect(self) -> None:
        self.leaving: dict[str, Callable[[], None]] = {}
        self.tasks: list[asyncio.Task[None]] = []
        if not (await self._actor()).known:
            await self.accept()
            await self.close(SESSION_ENDED)
            return
        self.waiting: asyncio.Queue[Data] = asyncio.Queue(MAX_WAITING)
        await self.accept()
        self.tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._recheck())]

    async def disconnect(self, code: int) -> None:
        for task in self.tasks:
            task.cancel()
        for leave in self.leaving.values():
            leave()
        self.leaving.clear()

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None, **kwargs: Any) -> None:
        """Anything unreadable is answered, never raised."""
        if not text_data or len(text_data) > MAX_MESSAGE_CHARS:
            await self.send_json(_error("", ClientError("messages are short JSON texts")))
            return
        try:
            message = await self.decode_json(text_data)
            kind, topic = str(message["type"]), str(message["topic"])
        except (ValueError, KeyError, TypeError, RecursionError):
            await self.send_json(_error("", ClientError("messages look like {type, topic}")))
            return
        if kind == "subscribe":
            await self._subscribe(topic)
        elif kind == "unsubscribe":
            self._leave(topic)

    async def _subscribe(self, topic: str) -> None:
        self._leave(topic)
        try:
            if len(self.leaving) >= MAX_TOPICS:
                raise ClientError(f"at most {MAX_TOPICS} topics on one connection")
            feed = await database_sync_to_async(feed_of, thread_sensitive=False)(await self._actor(), topic)
        except SerinusError as error:
            await self.send_json(_error(topic, error))
            return
        self.leaving[topic] = hub().join(feed, lambda message: self._put({**message, "topic": topic}))

    def _leave(self, topic: str) -> None:
        if leave := self.leaving.pop(topic, None):
            leave()

    def _put(self, message: Data) -> None:
        try:
            self.waiting.put_nowait(message)
        except asyncio.QueueFull:
            for topic in tuple(self.leaving):
                self._leave(topic)
            self.tasks.append(asyncio.create_task(self.close(TOO_SLOW)))

    async def _write(self) -> None:
        while True:
            message = await self.waiting.get()
            with contextlib.suppress(RuntimeError):  # the transport closed under us
                await self.send_json(message)

    async def _recheck(self) -> None:
        """A role that is taken away, or a session that ends, ends what it let one see."""
        while True:
            await asyncio.sleep(RECHECK_S)
            actor = await self._actor()
            if not actor.known:
                await self.close(SESSION_ENDED)
                return
            for topic in tuple(self.leaving):
                try:
                    await database_sync_to_async(feed_of, thread_sensitive=False)(actor, topic)
                except SerinusError as error:
                    self._leave(topic)
                    await self.send_json(_error(topic, error))

    async def _actor(self) -> Actor:
        actor: Actor = await database_sync_to_async(actor_in, thread_sensitive=False)(self.scope)
        return actor


def actor_in(scope: Any) -> Actor:
    """Who the scope's session belongs to, as the database says now."""
    person, session = scope.get("user"), scope.get("session")
    if not isinstance(person, User) or session is None or not session.exists(session.session_key):
        return ANONYMOUS
    user = User.objects.filter(pk=person.pk, is_active=True).first()
    return actor_of_user(user) if user and user.password == person.password else ANONYMOUS


def _error(topic: str, error: SerinusError) -> Data:
    return {"type": "error", "topic": topic, "code": error.code, "message": error.message}
