"""Requests whose doors wait in a coroutine: for one answer, or for any number of them as they come.

A reader that falls behind by AHEAD_HIGH answers pauses the replica, until AHEAD_LOW are left.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference.errors import InvalidInput, SerinusError
from inference.gateway.calls import Call
from inference.gateway.feedback_ids import HEADER
from inference.gateway.flights import Flight
from inference.gateway.table import Variant
from inference.protocol.messages import Answer

if TYPE_CHECKING:
    from inference.gateway.dataplane import DataPlane

AHEAD_HIGH, AHEAD_LOW = 16, 4


@dataclass(slots=True)
class Done:
    """An answered call: what was asked, who answered, the answer and its tensors' bytes. feedback: the id under which
    its score may come back, "" where none is asked for.
    """

    call: Call
    variant: Variant
    answer: Answer
    body: memoryview
    feedback: str = ""

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Who answered, the feedback's id, and the trace context where one was given."""
        own = [(HEADER, self.feedback.encode())] if self.feedback else []
        if self.call.traceparent:
            own.append((b"traceparent", self.call.traceparent.encode("latin-1", "replace")))
        return [*self.variant.headers, *own]


class Awaited(Flight):
    """A request whose one answer ends `future`."""

    __slots__ = ("_plane", "future")

    def __init__(self, plane: DataPlane) -> None:
        super().__init__()
        self._plane = plane
        self.future: asyncio.Future[Done] = asyncio.get_running_loop().create_future()

    def answered(self, answer: Answer, body: memoryview) -> None:
        if answer.final:
            self._plane.answered(self, answer)
            if not self.future.done():
                self.future.set_result(Done(self.call, self.variant, answer, body, self._plane.feedback.of(self)))
        elif not self.future.done():
            self._plane.abandon(self)
            name = self.endpoint.route.name
            self.future.set_exception(InvalidInput(f"model '{name}' gives several answers: ask for a stream"))

    def failed(self, error: SerinusError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Streamed(Flight):
    """A request with any number of answers, and those of them that its reader has not taken yet."""

    __slots__ = ("_is_paused", "_plane", "_waiting", "_wake")

    def __init__(self, plane: DataPlane) -> None:
        super().__init__()
        self._plane = plane
        self._waiting: deque[Done | SerinusError] = deque()
        self._wake = asyncio.Event()
        self._is_paused = False

    def answered(self, answer: Answer, body: memoryview) -> None:
        if answer.final:
            self._plane.answered(self, answer)
        self._waiting.append(Done(self.call, self.variant, answer, body, self._plane.feedback.of(self)))
        self._wake.set()
        if len(self._waiting) >= AHEAD_HIGH and not self._is_paused and not answer.final and self.link is not None:
            self._is_paused = True
            self.link.pause(self)

    def failed(self, error: SerinusError) -> None:
        self._waiting.append(error)
        self._wake.set()

    async def next(self) -> Done:
        """The next answer. Raises the error that ended the request."""
        while not self._waiting:
            self._wake.clear()
            await self._wake.wait()
        found = self._waiting.popleft()
        if self._is_paused and len(self._waiting) <= AHEAD_LOW and self.link is not None:
            self._is_paused = False
            self.link.resume(self)
        if isinstance(found, SerinusError):
            raise found
        return found
