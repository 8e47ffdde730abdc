"""ModelStreamInfer: many requests on one call, each with any number of answers, in flight side by side.

At most AT_ONCE requests of a stream are under way: beyond, it is not read, and the transport's flow control holds its
sender. A reader that does not take its answers holds the writing, and so pauses the replica. Answers of a model that
gives one to a request leave in the order of its requests. A failed request is told in an answer and the stream goes
on, unless the client asked for the real status (`triton_grpc_error: true`), which ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from inference.errors import Draining, SerinusError
from inference.gateway.dataplane import DataPlane
from inference.gateway.grpc import answers, infer, requests, statuses, wire
from inference.gateway.grpc.heads import Head
from inference.gateway.grpc.infer import Reading, asked_of
from inference.gateway.grpc.tasks import StreamExchange, Taken
from inference.gateway.grpc.wire import Message, Raw
from inference.gateway.shared_memory import Regions

AT_ONCE = 64


class Streams:
    """The handler of ModelStreamInfer. closing: set when the gateway drains."""

    def __init__(self, plane: DataPlane, closing: asyncio.Event, regions: Regions | None = None) -> None:
        self._plane = plane
        self._closing = closing
        self._regions = regions
        self._open: set[_Stream] = set()

    def __len__(self) -> int:
        return len(self._open)

    async def answer(self, exchange: StreamExchange) -> None:
        """Raises the SerinusError that ends the stream."""
        stream = _Stream(self._plane, exchange, self._regions)
        self._open.add(stream)
        try:
            await stream.run(self._closing)
        finally:
            self._open.discard(stream)


class _Stream:
    def __init__(self, plane: DataPlane, exchange: StreamExchange, regions: Regions | None) -> None:
        self._plane = plane
        self._exchange = exchange
        self._regions = regions
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._writing = asyncio.Lock()
        self._last: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken: asyncio.Future[SerinusError] = asyncio.get_running_loop().create_future()

    async def run(self, closing: asyncio.Event) -> None:
        """1. Reads until the client has said all, the gateway drains or a strict stream failed; 2. waits for what is
        under way; 3. a client that left has cancelled this, and with it all of that.
        """
        # the stream's own deadline is no deadline of its requests
        reading = asyncio.ensure_future(self._read(self._exchange.head.without_deadline()))
        ended = asyncio.ensure_future(closing.wait())
        try:
            first: list[asyncio.Future[Any]] = [reading, ended, self._broken]
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
            while self._tasks and not self._broken.done():
                under_way: list[asyncio.Future[Any]] = [self._broken, *self._tasks]
                await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            if self._broken.done():
                raise self._broken.result()
            if not reading.done():
                raise Draining
        finally:
            await _gone([reading, ended, *self._tasks])

    async def _read(self, head: Head) -> None:
        while True:
            await self._slots.acquire()
            taken = await self._exchange.read()
            if taken is None:
                return
            self._begin(taken, head)

    def _begin(self, taken: Taken, head: Head) -> None:
        """One request's task; in this order they reach the data plane."""
        name = ""
        parsed: tuple[Message, Raw] | SerinusError
        try:
            parsed = infer.read(taken.data)
            name = parsed[0].model_name
        except SerinusError as error:
            parsed = error.with_traceback(None)  # which holds this frame, and with it the message, for the collector
        task = asyncio.ensure_future(self._answer(parsed, head, self._last.get(name)))
        self._last[name] = task
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._ended(done, name, taken))

    def _ended(self, task: asyncio.Task[None], name: str, taken: Taken) -> None:
        taken.release()
        self._tasks.discard(task)
        self._slots.release()
        if self._last.get(name) is task:
            del self._last[name]
        if not task.cancelled() and task.exception() is not None and not self._broken.done():
            error = task.exception()
            self._broken.set_result(error if isinstance(error, SerinusError) else SerinusError())

    async def _answer(
        self, parsed: tuple[Message, Raw] | SerinusError, head: Head, before: asyncio.Task[None] | None
    ) -> None:
        identity, model, version = "", "", ""
        try:
            if isinstance(parsed, SerinusError):
                raise parsed
            request = parsed[0]
            identity, model, version = request.id, request.model_name, request.model_version
            await self._answers(request, parsed[1], head, before)
        except SerinusError as error:
            if head.is_strict:
                raise
            self._plane.refused(model, error)
            await _turn(before)
            await self._write([answers.failed(identity, model, version, statuses.detail_of(error))])

    async def _answers(self, request: Message, raw: Raw, head: Head, before: asyncio.Task[None] | None) -> None:
        asked = asked_of(self._plane, head, request)
        keeps_empty = requests.wants_empty_final(request)
        shared = self._regions.of(asked.caller.id) if self._regions is not None else None
        reading = Reading(request, raw, head.trace, shared, is_streamed=True)
        async with contextlib.aclosing(self._plane.stream(asked, reading)) as coming:
            async for done in coming:
                answer = done.answer
                if answer.final and not answer.tensors and not keeps_empty:
                    continue
                if not done.variant.route.settings.decoupled:
                    await _turn(before)
                extra: dict[str, str | int | float | bool] = {
                    requests.FINAL_PARAMETER: answer.final,
                    "rollout_arm": done.variant.route.arm,
                }
                if done.feedback:
                    extra["feedback_id"] = done.feedback
                await self._write(wire.streamed(answers.parts_of(done, extra)))

    async def _write(self, parts: Sequence[bytes | memoryview]) -> None:
        async with self._writing:
            await self._exchange.write(parts)


async def _turn(before: asyncio.Task[None] | None) -> None:
    """Waits until the request before has been answered, however that ended."""
    if before is not None and not before.done():
        await asyncio.wait([before])


async def _gone(tasks: list[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
