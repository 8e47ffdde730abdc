"""`/v1/responses`: create, stream, retrieve and delete. What is kept (see `kept`) is bounded in number, bytes and time: a
conversation that must outlive that is the client's to send again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator

import msgspec

from inference.errors import NotFound, Unsupported
from inference.gateway.dataplane import DataPlane
from inference.gateway.openai import checks, conversations, kept, streams
from inference.gateway.openai.asking import Asking, Target, find, who_of
from inference.gateway.openai.completions import salt_of
from inference.gateway.openai.conversations import Message
from inference.gateway.openai.problems import BadField
from inference.gateway.openai.response_events import ResponseWriter
from inference.gateway.rest import Rest
from inference.gateway.web import JSON_TYPE, Request, Response, Stream
from inference.protocol.openai import ResponseBody

_encode = msgspec.json.Encoder().encode


class Responses:
    """The handlers."""

    def __init__(self, plane: DataPlane, rest: Rest, store: kept.KeptResponses | None = None) -> None:
        self._plane = plane
        self._rest = rest
        self._store = store if store is not None else kept.KeptResponses()

    async def create(self, request: Request) -> Response | Stream:
        who, body = who_of(request), checks.decode(request.body, ResponseBody)
        target = find(self._plane, body.model, who)
        before = await self._before(body, target)
        message, asked = conversations.message_of(body, target, before, salt_of(body.cache_salt, target))
        asking = Asking(self._plane, target, who, message)
        identity = f"resp_{os.urandom(16).hex()}"
        writer = ResponseWriter(identity, body)
        if body.stream:
            told = self._told(asking, writer, identity, asked, target)
            return await streams.opened(told, _Ended(writer), request.id, lambda: asking.headers)
        async with contextlib.aclosing(asking.events()) as events:
            async for event in events:
                writer.event(event)
        writer.end()
        shown = await self._keep(writer, identity, asked, target)
        return Response(200, [JSON_TYPE, *asking.headers], shown)

    async def _told(
        self, asking: Asking, writer: ResponseWriter, identity: str, asked: list[Message], target: Target
    ) -> AsyncGenerator[list[bytes], None]:
        async with contextlib.aclosing(asking.events()) as events:
            async for event in events:
                yield writer.event(event)
        last = writer.end()
        # kept before the last event is read: the next turn may follow at once
        await self._keep(writer, identity, asked, target)
        yield last

    async def _before(self, body: ResponseBody, target: Target) -> list[Message]:
        if body.previous_response_id is None:
            return []
        try:
            before = await self._store.get(target.caller.id, body.previous_response_id)
        except NotFound as error:
            raise BadField(
                f"Previous response with id '{body.previous_response_id[:128]}' not found.",
                "previous_response_id",
                "previous_response_not_found",
            ) from error
        found: list[Message] = msgspec.json.decode(before.messages)
        return found

    async def _keep(self, writer: ResponseWriter, identity: str, asked: list[Message], target: Target) -> bytes:
        shown = _encode(writer.shown())
        if writer.is_stored:
            messages = _encode([*asked, *conversations.turn_of(writer.output)])
            await self._store.put(target.caller.id, identity, shown, messages)
        return shown

    async def kept(self, request: Request) -> Response:
        """GET and DELETE of one that was stored; only its own caller sees it."""
        caller, identity = self._rest.known(request.headers), request.rest[0]
        if request.method == "DELETE":
            await self._store.delete(caller.id, identity)
            return Response(200, [JSON_TYPE], _encode({"id": identity, "object": "response", "deleted": True}))
        if "stream=true" in request.head.query.lower():
            raise Unsupported("A stored response is not streamed again: ask without 'stream'.")
        found = await self._store.get(caller.id, identity)
        return Response(200, [JSON_TYPE], found.shown)


class _Ended:
    """A writer whose end was told within the stream."""

    def __init__(self, writer: ResponseWriter) -> None:
        self.event, self.failed = writer.event, writer.failed

    def end(self) -> list[bytes]:
        return []
