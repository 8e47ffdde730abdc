"""Putting a request to an endpoint: whom a model's name means, and what comes back as events.

A name is an endpoint's, "ENDPOINT@3" its version 3, "ENDPOINT:ADAPTER" or "ENDPOINT/ADAPTER" one of its LoRA adapters.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from inference.errors import NotFound, NotReady
from inference.gateway.admission import Caller
from inference.gateway.calls import Call
from inference.gateway.choosing import HEADER as PIN
from inference.gateway.choosing import Asked, pin
from inference.gateway.dataplane import DataPlane
from inference.gateway.openai.checks import needed
from inference.gateway.openai.gathering import Gathered
from inference.gateway.openai.problems import BadField, NoSuchModel
from inference.gateway.predict import credential_of, timeout_of
from inference.gateway.replicas import Reader
from inference.gateway.table import Endpoint, Variant
from inference.gateway.web import Given, Headers, Request
from inference.protocol import generation
from inference.protocol.generation import Event
from inference.protocol.messages import Answer, TensorHeader

GENERATION_MS = 3_600_000
ABREAST = 16  # requests that one call has under way at once
_NAME = re.compile(r"([^@:/]+)(?:@([0-9]{1,9}))?(?:[:/](.{1,128}))?", re.DOTALL)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Who:
    """What a request's head says, whatever door it came by. trace: its traceparent and tracestate."""

    credential: str
    session: str = ""
    timeout_ms: int = 0
    trace: tuple[str, str] = ("", "")
    request_id: str = ""
    priority: int = 0
    headers: Given = field(default_factory=dict)


def who_of(request: Request) -> Who:
    """Raises InvalidInput for a deadline that is none."""
    headers = request.headers
    session = headers.get(b"x-session-id") or headers.get(b"x-session-affinity", b"")
    priority = headers.get(b"x-priority", b"")
    return Who(
        credential_of(headers),
        session.decode("latin-1"),
        timeout_of(headers),
        (headers.get(b"traceparent", b"").decode("latin-1"), headers.get(b"tracestate", b"").decode("latin-1")),
        request.id,
        int(priority) if priority.isdigit() and len(priority) < 6 else 0,
        headers,
    )


@dataclass(frozen=True, slots=True)
class Target:
    caller: Caller
    endpoint: Endpoint
    version: int | None
    adapter: str

    def asked(self, who: Who, most_ms: int = 0) -> Asked:
        sticky = who.session or self.caller.id or who.request_id
        has_session = bool(who.session)
        return Asked(
            self.caller, self.endpoint, self.version, sticky, who.timeout_ms, most_ms, who.headers, has_session
        )


def split(model: str) -> tuple[str, int | None, str]:
    """(endpoint, version, adapter) of a model's name. Raises BadField or NoSuchModel."""
    match = _NAME.fullmatch(needed(model, "model"))
    if match is None:
        raise no_such(model)
    name, version, adapter = match.groups()
    return name, int(version) if version else None, adapter or ""


def no_such(model: str) -> NoSuchModel:
    return NoSuchModel(f"The model '{model[:128]}' does not exist or you do not have access to it.")


def find(plane: DataPlane, model: str, who: Who) -> Target:
    """Raises Unauthenticated, Forbidden, NoSuchModel, BadField or InvalidInput."""
    name, version, adapter = split(model)
    try:
        caller, endpoint = plane.admit(name, who.credential)
        version = pin(endpoint.route, version, who.headers.get(PIN))
        if version is not None:
            endpoint.pinned(version)
    except NotFound as error:
        raise no_such(model) from error
    if adapter:
        version = holder(endpoint, version, adapter)
    return Target(caller, endpoint, version, adapter)


def holder(endpoint: Endpoint, version: int | None, adapter: str) -> int | None:
    """The version that a request for `adapter` goes to: where only some have it, the one of these with most traffic; None
    where all that have traffic do. Raises NoSuchModel.
    """
    variants = [one for number, one in endpoint.variants.items() if version in {None, number}]
    holding = [one for one in variants if adapter in one.route.adapters]
    if not holding:
        raise no_adapter(endpoint.route.name, adapter)
    if version is None and all(one in holding for one in variants if one.route.weight_bp):
        return None
    return max(holding, key=lambda one: (one.route.weight_bp, one.route.version)).route.version


def no_adapter(name: str, adapter: str) -> NoSuchModel:
    return NoSuchModel(f"The model '{name}:{adapter[:128]}' does not exist: there is no adapter of that name.")


def language_call(message: generation.Asked, name: str, trace: tuple[str, str]) -> Reader:
    """A reader that hands `message` to a language model, and refuses any other. Raises BadField."""

    def reader(variant: Variant) -> Call:
        if variant.route.signature.platform != generation.PLATFORM:
            raise BadField(
                f"The model '{name}' is no language model. Text encoders answer at /v1/embeddings, every model at "
                f"/v2/models/{name}/infer.",
                "model",
                "model_not_supported",
            )
        data = packed(message)
        header = TensorHeader(generation.REQUEST, "BYTES", [1], len(data))
        parent, state = trace
        return Call("", [header], [data], [generation.EVENT], binary=None, traceparent=parent, tracestate=state)

    return reader


def packed(message: generation.Asked) -> bytes:
    """As one BYTES element. Raises BadField for what msgpack cannot carry."""
    try:
        data = generation.encode_asked(message)
    except (OverflowError, UnicodeError, RecursionError, ValueError, msgspec.MsgspecError) as error:
        raise BadField(f"The request holds a value that cannot be passed on: {error}.", None) from error
    return len(data).to_bytes(4, "little") + data


def event_of(answer: Answer, body: memoryview) -> Event | None:
    """The event in an answer, None where it has no tensors. Raises NotReady for what is none."""
    if not answer.tensors:
        return None
    try:
        return generation.decode_event(body[4:])
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise NotReady("the replica sent an unreadable answer") from error


class Asking:
    """One request to a language model. headers: what its answer carries, once the first event is there."""

    def __init__(self, plane: DataPlane, target: Target, who: Who, message: generation.Asked) -> None:
        self._plane = plane
        self._asked = target.asked(who, GENERATION_MS)
        self._reader = language_call(message, target.endpoint.route.name, who.trace)
        self.headers: Headers = []

    async def events(self) -> AsyncGenerator[Event, None]:
        """Closing the iterator abandons the request. Raises SerinusError; NoSuchModel where there is no such adapter."""
        async with contextlib.aclosing(self._plane.stream(self._asked, self._reader)) as answers:
            try:
                async for done in answers:
                    if not self.headers:
                        self.headers = done.headers
                    event = event_of(done.answer, done.body)
                    if event is not None:
                        yield event
            except NotFound as error:
                raise NoSuchModel(error.message) from error

    async def gathered(self, *, one_call: bool = False) -> Gathered:
        """All of it."""
        found = Gathered(one_call=one_call)
        async with contextlib.aclosing(self.events()) as events:
            async for event in events:
                found.add(event)
        return found


async def together(makers: Sequence[Callable[[], Coroutine[Any, Any, T]]]) -> list[T]:
    """What each gives, in order, ABREAST at once. The first failure ends the others."""
    if len(makers) == 1:
        return [await makers[0]()]
    found: dict[int, T] = {}
    left = deque(enumerate(makers))

    async def work() -> None:
        while left:
            number, maker = left.popleft()
            found[number] = await maker()

    await _all([work() for _ in range(min(ABREAST, len(makers)))])
    return [found[number] for number in range(len(makers))]


async def _all(works: Sequence[Coroutine[Any, Any, None]]) -> None:
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def merged(askings: Sequence[Asking]) -> AsyncGenerator[tuple[int, Event], None]:
    """The events of several requests as they come, each with its request's number, ABREAST requests at once. Who does
    not take them pauses all of them. The first failure ends the others, and is raised.
    """
    ready: asyncio.Queue[tuple[int, Event] | Exception | None] = asyncio.Queue(ABREAST)
    left = deque(enumerate(askings))

    async def work() -> None:
        while left:
            number, asking = left.popleft()
            async with contextlib.aclosing(asking.events()) as events:
                async for event in events:
                    await ready.put((number, event))

    async def run() -> None:
        last: Exception | None = None
        try:
            await _all([work() for _ in range(min(ABREAST, len(askings)))])
        except Exception as error:  # noqa: BLE001 (handed on: whoever reads raises it)
            last = error
        await ready.put(last)

    task = asyncio.ensure_future(run())
    try:
        while (found := await ready.get()) is not None:
            if isinstance(found, Exception):
                raise found
            yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
