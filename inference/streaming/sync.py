"""The same without asyncio: a connection whose event loop runs in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from inference.streaming.answers import Answer
from inference.streaming.stream import Stream

T = TypeVar("T")


class SyncStream:
    """As Stream; may be used by several threads at once."""

    def __init__(self, url: str, key: str = "", *, timeout_s: float = 30.0) -> None:
        self._stream = Stream(url, key, timeout_s=timeout_s)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="serinus-stream", daemon=True)

    def __enter__(self) -> Self:
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
        self._run(self._stream.close())
        self._stop()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

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
        found: Any = self._stream.stream(model, inputs, **more)
        try:
            while True:
                try:
                    yield self._run(anext(found))
                except StopAsyncIteration:
                    return
        finally:
            self._run(found.aclose())
