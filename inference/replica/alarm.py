"""The kernel's alarm clock over passes that may run side by side.

The event loop's own watchdog cannot run while native code holds the interpreter's lock; the kernel's can.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

SHORTEST_S = 0.001


class Alarm:
    """SIGALRM comes, and ends the process, when any pass takes longer than `alarm_s`."""

    def __init__(self, alarm_s: float) -> None:
        self._alarm_s = alarm_s
        self._lock = threading.Lock()
        self._due: dict[int, float] = {}
        self._numbers = count()

    @contextmanager
    def over(self) -> Iterator[None]:
        """Around one pass, in any thread."""
        number = next(self._numbers)
        with self._lock:
            self._due[number] = time.monotonic() + self._alarm_s
            self._set()
        try:
            yield
        finally:
            with self._lock:
                del self._due[number]
                self._set()

    def _set(self) -> None:
        soonest = min(self._due.values(), default=None)
        left_s = 0.0 if soonest is None else max(soonest - time.monotonic(), SHORTEST_S)
        signal.setitimer(signal.ITIMER_REAL, left_s)
