"""The same without asyncio: a connection whose event loop runs in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from inference.errors import NotReady
from inference.streaming.answers import Answer
from inference.streaming.stream import Sequence, Stream

T = TypeVar("T")


class SyncStream:
    """As Stream, in a `with` block; may be used by several threads at once.

    with SyncStream("http://127.0.0.1:8000", "ser_<id>.<secret>") as stream:
        print(stream.infer("digits", {"x": ("FP32", [1, 64], [0.0] * 64)})["y"].values)
    """

    def __init__(self, url: str, key: str = "", *, timeout_s: float = 30.0) -> None:
        self._stream = Stream(url, key, timeout_s=timeout_s)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="serinus-stream", daemon=True)
        self._thread.start()
        try:
            self._run(self._stream.open())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._run(self._stream.close())
        finally:
            self._stop()

    def _stop(self) -> None:
        loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        assert loop is not None
        assert thread is not None
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            work.close()
            raise NotReady("The connection is not open: use it within its `with` block")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # an interrupted caller cancels what it asked for
            raise

    def infer(self, model: str, inputs: Mapping[str, Any], **more: Any) -> Answer:
        """As Stream.infer."""
        return self._run(self._stream.infer(model, inputs, **more))

    def generate(self, model: str, values: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        """As Stream.generate."""
        return self._run(self._stream.generate(model, values, **more))

    def ask(self, verb: str, model: str = "", **more: Any) -> Any:
        """As Stream.ask."""
        return self._run(self._stream.ask(verb, model, **more))

    def stream(self, model: str, inputs: Mapping[str, Any], **more: Any) -> Iterator[Answer]:
        """As Stream.stream."""
        return self._each(self._stream.stream(model, inputs, **more))

    def chat(self, model: str, messages: list[dict[str, Any]], **more: Any) -> Iterator[dict[str, Any]]:
        """As Stream.chat."""
        return self._each(self._stream.chat(model, messages, **more))

    def completion(self, model: str, prompt: str | list[int], **more: Any) -> Iterator[dict[str, Any]]:
        """As Stream.completion."""
        return self._each(self._stream.completion(model, prompt, **more))

    def sequence(self, model: str, identity: int | str, *, version: int | None = None) -> SyncSequence:
        """As Stream.sequence: `with stream.sequence("vad", 7) as speaker: speaker.infer(inputs)`."""
        return SyncSequence(self._run, self._stream.sequence(model, identity, version=version))

    def _each(self, items: AsyncIterator[T]) -> Iterator[T]:
        found: Any = items
        try:
            while True:
                try:
                    yield self._run(anext(found))
                except StopAsyncIteration:
                    return
        finally:
            if self._loop is not None:
                self._run(found.aclose())


class SyncSequence:
    """As Sequence. run: does its work on the connection's own event loop."""

    def __init__(self, run: Any, sequence: Sequence) -> None:
        self._run = run
        self._sequence = sequence

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._sequence.__aexit__(kind, error, trace))

    def infer(self, inputs: Mapping[str, Any], *, end: bool = False, **more: Any) -> Answer:
        """As Sequence.infer."""
        found: Answer = self._run(self._sequence.infer(inputs, end=end, **more))
        return found
