"""The connection itself: one task reads, every request waits on a queue of its own, and each ends with one last frame.

A stream that is iterated over grants credit as it goes: what the program has not taken waits at the server, and a slow
loop holds up no other request of the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from itertools import count
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import websockets
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.protocol import State

from inference.errors import DeadlineExceeded, Forbidden, InvalidInput, NotReady, SequenceLost, SerinusError
from inference.streaming import answers
from inference.streaming.answers import Answer, Parameters

MAX_FRAME_BYTES = 1 << 30
OPEN_S = 10.0
SLACK_S = 5.0
CREDIT = 8
CHAT_S, CHAT_CREDIT = 600.0, 64
PROTOCOL = "serinus.v1"

Frame = tuple[dict[str, Any], memoryview]


class Stream:
    """A connection to the gateway at `url` (http(s):// or ws(s)://) with the API key or token `key`.

    timeout_s: every request's default deadline, from its sending to its last answer. The server keeps it; SLACK_S later
    this end gives up too, with DeadlineExceeded. Raises Forbidden when the key is refused, NotReady when there is no
    connection (any more). Belongs to one event loop.
    """

    def __init__(self, url: str, key: str = "", *, timeout_s: float = 30.0) -> None:
        parts = urlsplit(url)
        scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
        path = parts.path.rstrip("/")
        self._url = f"{scheme}://{parts.netloc}{path if path.startswith('/v2/') else path + '/v2/stream'}"
        self._key = key
        self._timeout_s = timeout_s
        self._ids = count(1)
        self._waiting: dict[str, asyncio.Queue[Frame | SerinusError]] = {}
        self._socket: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._pong: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Connects. Raises Forbidden or NotReady."""
        offered = [PROTOCOL, *([f"serinus.key.{self._key}"] if self._key else [])]
        protocols = [websockets.Subprotocol(name) for name in offered]
        try:
            self._socket = await connect(
                self._url, subprotocols=protocols, max_size=MAX_FRAME_BYTES, compression=None, open_timeout=OPEN_S
            )
        except InvalidStatus as error:
            if error.response.status_code == 403:
                raise Forbidden("The gateway refused the connection: key, endpoint or address") from error
            raise NotReady(f"The gateway answered with status {error.response.status_code}") from error
        except (OSError, TimeoutError, WebSocketException) as error:
            raise NotReady("The gateway cannot be reached", retry_after_s=1.0) from error
        self._reader = asyncio.ensure_future(self._read(self._socket))

    async def close(self) -> None:
        """Ends the connection and whatever is under way on it."""
        if self._socket is not None:
            await self._socket.close()
        if self._reader is not None:
            await asyncio.wait([self._reader])

    # -- what a program asks ----------------------------------------------------------------------------------------

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: int | None = None,
        outputs: list[str] | None = None,
        parameters: Parameters | None = None,
        session: str = "",
        timeout_s: float = 0.0,
    ) -> Answer:
        """One answer. Raises the error that the server answered, DeadlineExceeded after `timeout_s`; a caller who is
        cancelled cancels the request. A model of several answers is for `stream`.
        """
        head = _head(
            model, version, timeout_s or self._timeout_s, outputs=outputs, parameters=parameters, session=session
        )
        found: Answer | None = None
        async with _Request(self, timeout_s or self._timeout_s) as request:
            await request.send(answers.request({"id": request.id, **head}, inputs))
            frame, rest = await request.next()
            found = answers.answer(frame, rest)
            if not found.is_last:
                raise InvalidInput(f"model '{model}' gives several answers: use stream()")
            request.is_over = True
        return found

    async def stream(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: int | None = None,
        outputs: list[str] | None = None,
        parameters: Parameters | None = None,
        session: str = "",
        timeout_s: float = 0.0,
        credit: int = CREDIT,
    ) -> AsyncIterator[Answer]:
        """Every answer as it comes; leaving the loop early cancels the request. credit: how many may lie here untaken.

        Close it (`contextlib.aclosing`) where the loop may be left early and the cancel must not wait.
        """
        head = _head(
            model, version, timeout_s or self._timeout_s, outputs=outputs, parameters=parameters, session=session
        )
        async with _Request(self, timeout_s or self._timeout_s) as request:
            await request.send(answers.request({"id": request.id, "credit": credit, **head}, inputs))
            while not request.is_over:
                frame, rest = await request.next()
                found = answers.answer(frame, rest)
                request.is_over = found.is_last
                if found.outputs:
                    yield found
                if not found.is_last:
                    await request.send(json.dumps({"type": "credit", "id": request.id, "n": 1}))

    async def generate(
        self, model: str, values: Mapping[str, Any], *, version: int | None = None, timeout_s: float = 0.0
    ) -> dict[str, Any]:
        """Values by name in, values by name out. Raises as `infer`."""
        head = _head(model, version, timeout_s or self._timeout_s)
        async with _Request(self, timeout_s or self._timeout_s) as request:
            await request.send(json.dumps({**values, "type": "generate", "id": request.id, **head}))
            frame, _ = await request.next()
            request.is_over = frame.get("final", True)
        return {name: value for name, value in frame.items() if name not in {"id", "type", "final"}}

    async def chat(
        self,
        model: str,
        messages: list[dict[str, Any]],
        *,
        version: int | None = None,
        timeout_s: float = CHAT_S,
        credit: int = CHAT_CREDIT,
        **body: Any,
    ) -> AsyncIterator[dict[str, Any]]:
        """A chat's chunks as OpenAI's API has them; `body` are its other fields (temperature, tools, ...). Leaving the
        loop early ends the generation. Raises as `infer`.
        """
        given = {"model": model, "messages": messages, **body}
        async for chunk in self._chunks("chat", given, version=version, timeout_s=timeout_s, credit=credit):
            yield chunk

    async def completion(
        self,
        model: str,
        prompt: str | list[int],
        *,
        version: int | None = None,
        timeout_s: float = CHAT_S,
        credit: int = CHAT_CREDIT,
        **body: Any,
    ) -> AsyncIterator[dict[str, Any]]:
        """As `chat`, of a plain prompt."""
        given = {"model": model, "prompt": prompt, **body}
        async for chunk in self._chunks("completion", given, version=version, timeout_s=timeout_s, credit=credit):
            yield chunk

    async def _chunks(
        self, kind: str, body: dict[str, Any], *, version: int | None, timeout_s: float, credit: int
    ) -> AsyncIterator[dict[str, Any]]:
        parameters = {"timeout": int(timeout_s * 1e6)}
        frame = {"type": kind, "credit": credit, "parameters": parameters, "body": body}
        if version is not None:
            frame["version"] = version
        async with _Request(self, timeout_s) as request:
            await request.send(json.dumps({**frame, "id": request.id}))
            taken = 0
            while True:
                found, _ = await request.next()
                if found.get("type") == "done":
                    request.is_over = True
                    return
                yield found["data"]
                taken += 1
                if taken >= credit // 2:
                    await request.send(json.dumps({"type": "credit", "id": request.id, "n": taken}))
                    taken = 0

    def sequence(self, model: str, identity: int | str, *, version: int | None = None) -> Sequence:
        """A stateful sequence: `async with stream.sequence("vad", 7) as speaker: await speaker.infer(inputs)`."""
        return Sequence(self, model, identity, version)

    async def ask(self, verb: str, model: str = "", *, version: int | None = None) -> Any:
        """`metadata`, `config`, `stats`: as REST answers; `ready`: True or False. Raises as `infer`."""
        head = {"type": verb, "model": model} | ({"version": version} if version is not None else {})
        async with _Request(self, self._timeout_s) as request:
            await request.send(json.dumps({"id": request.id, **head}))
            frame, _ = await request.next()
            request.is_over = True
        return frame["ready"] if verb == "ready" else frame["body"]

    # -- the wire ---------------------------------------------------------------------------------------------------

    async def _send(self, message: str | bytes) -> None:
        if self._socket is None:
            raise NotReady("The connection is not open")
        try:
            await self._socket.send(message)
        except (ConnectionClosed, OSError) as error:
            raise NotReady("The connection is closed", retry_after_s=1.0) from error
        except AttributeError as error:  # asyncio's, where a connection ends while something waits to be sent on it
            if self._socket.state is not State.CLOSED:
                raise
            raise NotReady("The connection is closed", retry_after_s=1.0) from error

    async def _read(self, socket: ClientConnection) -> None:
        error: SerinusError = NotReady("The connection was closed", retry_after_s=1.0)
        try:
            async for message in socket:
                frame, rest = answers.parse(message)
                if frame.get("type") == "ping":
                    if self._pong is None or self._pong.done():  # what is sent may have to wait, reading must not
                        self._pong = asyncio.ensure_future(self._answer_ping())
                    continue
                waiting = self._waiting.get(frame.get("id") or "")
                if waiting is not None:
                    waiting.put_nowait(answers.error(frame) if "error" in frame else (frame, rest))
        except SerinusError as found:
            error = found
            await socket.close(1002)
        except ConnectionClosed as closed:
            error = NotReady(f"The connection was closed: {closed}", retry_after_s=1.0)
        finally:
            for waiting in self._waiting.values():
                waiting.put_nowait(error)

    async def _answer_ping(self) -> None:
        with contextlib.suppress(NotReady):
            await self._send('{"type":"pong"}')


class _Request:
    """One request under way: its id, its frames, and the cancel when it is left before its end."""

    def __init__(self, stream: Stream, timeout_s: float) -> None:
        self._stream = stream
        self._frames: asyncio.Queue[Frame | SerinusError] = asyncio.Queue()
        self._until = asyncio.get_running_loop().time() + timeout_s + SLACK_S
        self.id = str(next(stream._ids))  # noqa: SLF001 (one file, one idea)
        self.is_over = False

    async def __aenter__(self) -> Self:
        self._stream._waiting[self.id] = self._frames  # noqa: SLF001
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stream._waiting.pop(self.id, None)  # noqa: SLF001
        if not self.is_over:
            with contextlib.suppress(NotReady, TimeoutError):
                async with asyncio.timeout(SLACK_S):
                    await self._stream._send(json.dumps({"type": "cancel", "id": self.id}))  # noqa: SLF001

    async def send(self, message: str | bytes) -> None:
        reader = self._stream._reader  # noqa: SLF001
        if reader is None or reader.done():
            self.is_over = True
            raise NotReady("The connection is closed", retry_after_s=1.0)
        try:
            async with asyncio.timeout_at(self._until):  # a server that is busy does not read for a while
                await self._stream._send(message)  # noqa: SLF001
        except TimeoutError:
            raise DeadlineExceeded from None

    async def next(self) -> Frame:
        try:
            async with asyncio.timeout_at(self._until):
                found = await self._frames.get()
        except TimeoutError:
            raise DeadlineExceeded from None
        if isinstance(found, SerinusError):
            self.is_over = True
            raise found
        return found


class Sequence:
    """Requests that share a state on the replica: the first begins it, `end` or leaving the context ends it. After
    SequenceLost, and after a first request that failed, the next one begins it anew.
    """

    def __init__(self, stream: Stream, model: str, identity: int | str, version: int | None) -> None:
        self._stream = stream
        self._model = model
        self._version = version
        self._identity = identity
        self._last: Mapping[str, Any] | None = None
        self._is_begun = False
        self._is_ended = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_begun and not self._is_ended and self._last is not None and kind is None:
            await self.infer(self._last, end=True)

    async def infer(self, inputs: Mapping[str, Any], *, end: bool = False, **more: Any) -> Answer:
        """The next request. end: it is the last; without it, leaving the context ends the sequence by one more request
        with the last inputs, whose answer is dropped. Raises as Stream.infer, and InvalidInput after the end.
        """
        if self._is_ended:
            raise InvalidInput("this sequence has ended")
        parameters = {**(more.pop("parameters", None) or {}), "sequence_id": self._identity}
        parameters |= {"sequence_start": not self._is_begun, "sequence_end": end}
        is_first, self._is_begun, self._is_ended, self._last = not self._is_begun, True, end, inputs
        try:
            return await self._stream.infer(self._model, inputs, version=self._version, parameters=parameters, **more)
        except SerinusError as error:
            if is_first or isinstance(error, SequenceLost):
                self._is_begun = self._is_ended = False
            raise


def _head(
    model: str,
    version: int | None,
    timeout_s: float,
    *,
    outputs: list[str] | None = None,
    parameters: Parameters | None = None,
    session: str = "",
) -> dict[str, Any]:
    head: dict[str, Any] = {"model": model, "parameters": {**(parameters or {}), "timeout": int(timeout_s * 1e6)}}
    if version is not None:
        head["version"] = version
    if outputs:
        head["outputs"] = [{"name": name} for name in outputs]
    if session:
        head["session"] = session
    return head
