"""The way of answers from a model's `send` to whoever waits for them: bounded, and it ends when either side leaves."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from inference.errors import ModelFailed, SerinusError

FINAL = 1  # TRITONSERVER_RESPONSE_COMPLETE_FINAL
STEP_S = 0.05
LOOK_S = 0.5


def _stays() -> bool:
    return False


class Channel:
    """Answers of one request. `send` waits while `limit` answers lie unread; a reader that leaves frees it. left: says
    whether whoever asked has left, even while nobody reads.
    """

    def __init__(self, limit: int = 16, left: Callable[[], bool] = _stays) -> None:
        self._answers: queue.Queue[Any] = queue.Queue(limit)
        self._has_left = left
        self._left = threading.Event()
        self._closed = threading.Event()

    @property
    def is_cancelled(self) -> bool:
        """Whether the caller has left."""
        return self._left.is_set() or self._has_left()

    @property
    def is_closed(self) -> bool:
        """Whether the final answer was sent."""
        return self._closed.is_set()

    def send(self, response: Any, flags: int = 0) -> None:
        """Raises ValueError after the final answer; answers to a caller who left go nowhere."""
        if self.is_closed:
            raise ValueError("the response sender was closed: a final response was sent before")
        if response is not None:
            self._put(response)
        if flags & FINAL:
            self._closed.set()
            self._put(None)

    def fail(self, error: SerinusError) -> None:
        """Ends the answers with an error, unless they ended already."""
        if not self.is_closed:
            self._closed.set()
            self._put(error)

    def leave(self) -> None:
        """The reader wants no more."""
        self._left.set()

    def answers(self, patience_s: float) -> Iterator[Any]:
        """Each response as it is sent, until the final one. Raises what `fail` was given, and ModelFailed when nothing
        comes for `patience_s`. It ends too when whoever asked has left.
        """
        until = time.monotonic() + patience_s
        while True:
            try:
                found = self._answers.get(timeout=min(LOOK_S, max(0.0, until - time.monotonic())))
            except queue.Empty:
                if self.is_cancelled:
                    return
                if time.monotonic() < until:
                    continue
                raise ModelFailed(f"the model sent no further answer within {patience_s:g} s") from None
            until = time.monotonic() + patience_s
            if found is None:
                return
            if isinstance(found, SerinusError):
                raise found
            yield found

    def _put(self, what: Any) -> None:
        while not self.is_cancelled:
            try:
                self._answers.put(what, timeout=STEP_S)
            except queue.Full:
                continue
            return
