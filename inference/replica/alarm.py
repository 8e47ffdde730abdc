"""The kernel's alarm clock over all lanes of this process. There is one (ITIMER_REAL), so it is set for the earliest.

The event loop's own watchdog cannot run while native code holds the interpreter's lock; the kernel's can: nobody handles
SIGALRM, so it ends the process. A lane that holds the lock for ever keeps the others from setting the clock forward, so
it rings at the earliest time that was set, which no pass may outlast.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from math import inf

SetTimer = Callable[[float], object]


def _set_timer(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, seconds)


class Alarm:
    """`began` and `ended` are called around each pass by the thread that runs it."""

    def __init__(
        self, after_s: float, *, clock: Callable[[], float] = time.monotonic, set_timer: SetTimer = _set_timer
    ) -> None:
        self._after_s = after_s
        self._clock = clock
        self._set_timer = set_timer
        self._lock = threading.Lock()
        self._rings_at: dict[int, float] = {}
        self._set_for = inf

    def began(self, lane: int) -> None:
        with self._lock:
            self._rings_at[lane] = self._clock() + self._after_s
            self._adjust()

    def ended(self, lane: int) -> None:
        with self._lock:
            del self._rings_at[lane]
            self._adjust()

    def _adjust(self) -> None:
        earliest = min(self._rings_at.values(), default=inf)
        if earliest != self._set_for:
            self._set_for = earliest
            # 0 takes the clock back, so what is overdue already gets the smallest time that does not.
            self._set_timer(0.0 if earliest == inf else max(earliest - self._clock(), 1e-6))
