"""How many lines of a batch may be on the way at once: more while all goes well, half as many when the gateway refuses.

Additive increase, multiplicative decrease (Chiu and Jain, 1989), so that a batch takes what live traffic leaves. Takes a
clock's readings in seconds, reads none.
"""

from __future__ import annotations

FIRST_WINDOW = 4.0
QUIET_S = 1.0  # refusals of one overload come together: they count once
MAX_PAUSE_S = 30.0


class Pace:
    """window: lines at once, a fraction counts towards the next one. rate_per_s: starts a second, 0 for no bound."""

    def __init__(self, *, most: int, window: float = FIRST_WINDOW, rate_per_s: float = 0.0) -> None:
        self.window = min(max(1.0, window), float(most))
        self.paused_until = 0.0
        self._most = float(most)
        self._gap_s = 1.0 / rate_per_s if rate_per_s else 0.0
        self._next_start = 0.0
        self._refused_at = float("-inf")
        self._refusals = 0

    def may_start(self, now: float, inflight: int) -> bool:
        return inflight < int(self.window) and now >= self.paused_until and now >= self._next_start

    def started(self, now: float) -> None:
        self._next_start = now + self._gap_s

    def answered(self) -> None:
        """A line was answered: one more fits after about a windowful of these."""
        self._refusals = 0
        self.window = min(self._most, self.window + 1.0 / self.window)

    def refused(self, now: float, retry_after_s: float | None) -> None:
        """The gateway had no room, or is away: wait as long as it says, else twice as long each time."""
        if now - self._refused_at >= QUIET_S or self._refusals == 0:
            self.window = max(1.0, self.window / 2)
            self._refusals += 1
            self._refused_at = now
        wait = 0.25 * 2 ** min(self._refusals, 8) if retry_after_s is None else retry_after_s
        self.paused_until = max(self.paused_until, now + min(wait, MAX_PAUSE_S))

    def wait_s(self, now: float) -> float:
        """Seconds until a line may start, were there room for it."""
        return max(0.0, self.paused_until - now, self._next_start - now)
