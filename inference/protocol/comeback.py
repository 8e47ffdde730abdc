"""When whom a full line refused should come back: once it has emptied, in whole seconds, and not all at the same time.

Pure: it is told the time, and may be told what was drawn.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from math import ceil

MIN_S, MAX_S = 1, 30
SPREAD = 4  # a wait grows by up to a fourth of itself, and by up to a second where that is less
KEPT_S = 20.0
KEPT_COUNT = 1024


def retry_after_s(empty_in_s: float, draw: Callable[[], float] = random.random) -> float:
    """Whole seconds from MIN_S to MAX_S for a line that is empty in `empty_in_s`; `draw` gives numbers in [0, 1).

    Every door tells this number, so that a caller is told the same by each of them.
    """
    longest = MAX_S * SPREAD // (SPREAD + 1)  # so that the longest waits are spread too
    seconds = min(max(ceil(empty_in_s), MIN_S), longest)
    return float(seconds + int(draw() * (max(1, seconds // SPREAD) + 1)))


class Emptying:
    """How fast a line has been getting shorter since somebody stood in it. Long times are forgotten by halves."""

    __slots__ = ("_left", "_since")

    def __init__(self) -> None:
        self._since = 0.0
        self._left = 0.0

    def began(self, now: float) -> None:
        """The line was empty, and is no more."""
        self._since, self._left = now, 0.0

    def left(self, now: Callable[[], float]) -> None:
        """One has left. The clock is asked once in a while only: this is on every request's path."""
        self._left += 1
        if self._left >= KEPT_COUNT:
            self._halve(now())

    def empty_in_s(self, waiting: int, now: float) -> float:
        """How long a line of `waiting` takes; where nobody has left yet, as long again as it has stood."""
        took_s = max(now - self._since, 0.0)
        found = took_s * waiting / self._left if self._left else took_s
        if took_s > KEPT_S:
            self._halve(now)
        return found

    def _halve(self, now: float) -> None:
        self._since, self._left = now - (now - self._since) / 2, self._left / 2
