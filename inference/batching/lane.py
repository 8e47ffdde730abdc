"""The one thread that forward passes run on, so that the event loop goes on assembling the next batch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class Lane(Generic[T]):
    """Runs one job after another; tells the event loop how each ended. A daemon: a hung pass keeps no process alive."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: SimpleQueue[tuple[Callable[[], T], Callable[[T | BaseException], None]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="lane", daemon=True)
        self._thread.start()

    def run(self, job: Callable[[], T], done: Callable[[T | BaseException], None]) -> None:
        """`done` is called in the event loop with the job's result or whatever it raised."""
        self._jobs.put((job, done))

    def close(self) -> None:
        """No further jobs; one that is running may finish."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, done = item
            result: T | BaseException
            try:
                result = job()
            except BaseException as error:  # noqa: BLE001 (native code panics must not end the only lane)
                result = error
            try:
                self._loop.call_soon_threadsafe(done, result)
            except RuntimeError:
                return  # the loop is closed: nobody is left to be told
            del item, job, done, result  # a batch and its answers, which would live on until the next one has run
