"""The way of answers from a model's `send` to whoever waits for them: bounded, and it ends when either side leaves."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

from inference.errors import ModelFailed, SerinusError

FINAL = 1  # TRITONSERVER_RESPONSE_COMPLETE_FINAL
STEP_S = 0.05


class Channel:
    """Answers of one request. `send` waits while `limit` answers lie unread; a reader that leaves frees it."""

    def __init__(self, limit: int = 16) -> None:
        self._answers: queue.Queue[Any] = queue.Queue(limit)
        self._left = threading.Event()
        self._closed = threading.Event()

    @property
    def is_cancelled(self) -> bool:
        """Whether the caller has left."""
        return self._left.is_set()

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
        comes for `patience_s`.
        """
        while True:
            try:
                found = self._answers.get(timeout=patience_s)
            except queue.Empty:
                raise ModelFailed(f"the model sent no further answer within {patience_s:g} s") from None
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
