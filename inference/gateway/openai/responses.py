"""`/v1/responses`: create, stream, retrieve and delete. What is kept lives in this process's memory, bounded in number,
bytes and time: a conversation that must outlive that is the client's to send again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

import msgspec

from inference.errors import NotFound, Unsupported
from inference.gateway.dataplane import DataPlane
from inference.gateway.openai import checks, conversations, streams
from inference.gateway.openai.asking import Asking, Target, find, who_of
from inference.gateway.openai.completions import salt_of
from inference.gateway.openai.conversations import Message
from inference.gateway.openai.problems import BadField
from inference.gateway.openai.response_events import ResponseWriter
from inference.gateway.rest import Rest
from inference.gateway.web import JSON_TYPE, Request, Response, Stream
from inference.protocol.openai import ResponseBody

MAX_KEPT = 4096
MAX_KEPT_BYTES = 64 << 20
KEPT_S = 3600.0
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Kept:
    """A response's JSON and its conversation as JSON, without instructions."""

    shown: bytes
    messages: bytes
    until: float

    @property
    def size(self) -> int:
        return len(self.shown) + len(self.messages)


class Store:
    """Responses by caller and id; the oldest go first. now: seconds of a clock that does not jump."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic, max_bytes: int = MAX_KEPT_BYTES) -> None:
        self._now = now
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[str, str], Kept] = OrderedDict()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, caller: str, identity: str, shown: bytes, messages: bytes) -> None:
        found = Kept(shown, messages, self._now() + KEPT_S)
        if found.size > self._max_bytes:
            return
        self._kept[caller, identity] = found
        self.size_bytes += found.size
        while self.size_bytes > self._max_bytes or len(self._kept) > MAX_KEPT or self._is_oldest_over():
            _, gone = self._kept.popitem(last=False)
            self.size_bytes -= gone.size

    def _is_oldest_over(self) -> bool:
        return next(iter(self._kept.values())).until <= self._now()

    def get(self, caller: str, identity: str) -> Kept:
        """Raises NotFound."""
        found = self._kept.get((caller, identity))
        if found is None or found.until <= self._now():
            raise NotFound(f"Response with id '{identity}' not found: it was not stored, or is older than an hour.")
        return found

    def delete(self, caller: str, identity: str) -> None:
        """Raises NotFound."""
        self.size_bytes -= self.get(caller, identity).size
        del self._kept[caller, identity]


class Responses:
    """The handlers."""

    def __init__(self, plane: DataPlane, rest: Rest) -> None:
        self._plane = plane
        self._rest = rest
        self._store = Store()

    async def create(self, request: Request) -> Response | Stream:
        who, body = who_of(request), checks.decode(request.body, ResponseBody)
        target = find(self._plane, body.model, who)
        before = self._before(body, target)
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
        shown = self._keep(writer, identity, asked, target)
        return Response(200, [JSON_TYPE, *asking.headers], shown)

    async def _told(
        self, asking: Asking, writer: ResponseWriter, identity: str, asked: list[Message], target: Target
    ) -> AsyncGenerator[list[bytes], None]:
        async with contextlib.aclosing(asking.events()) as events:
            async for event in events:
                yield writer.event(event)
        last = writer.end()
        # kept before the last event is read: the next turn may follow at once
        self._keep(writer, identity, asked, target)
        yield last

    def _before(self, body: ResponseBody, target: Target) -> list[Message]:
        if body.previous_response_id is None:
            return []
        try:
            kept = self._store.get(target.caller.id, body.previous_response_id)
        except NotFound as error:
            raise BadField(
                f"Previous response with id '{body.previous_response_id[:128]}' not found.",
                "previous_response_id",
                "previous_response_not_found",
            ) from error
        found: list[Message] = msgspec.json.decode(kept.messages)
        return found

    def _keep(self, writer: ResponseWriter, identity: str, asked: list[Message], target: Target) -> bytes:
        shown = _encode(writer.shown())
        if writer.is_stored:
            messages = _encode([*asked, *conversations.turn_of(writer.output)])
            self._store.put(target.caller.id, identity, shown, messages)
        return shown

    async def kept(self, request: Request) -> Response:
        """GET and DELETE of one that was stored; only its own caller sees it."""
        caller, identity = self._rest.known(request.headers), request.rest[0]
        if request.method == "DELETE":
            self._store.delete(caller.id, identity)
            return Response(200, [JSON_TYPE], _encode({"id": identity, "object": "response", "deleted": True}))
        if "stream=true" in request.head.query.lower():
            raise Unsupported("A stored response is not streamed again: ask without 'stream'.")
        return Response(200, [JSON_TYPE], self._store.get(caller.id, identity).shown)


class _Ended:
    """A writer whose end was told within the stream."""

    def __init__(self, writer: ResponseWriter) -> None:
        self.event, self.failed = writer.event, writer.failed

    def end(self) -> list[bytes]:
        return []
