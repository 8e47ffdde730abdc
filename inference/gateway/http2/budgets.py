"""How much of what costs a peer nothing it may send: token buckets, with the clock handed in."""

from __future__ import annotations

from inference.gateway.http2.frames import Code, ConnectionFault


class Budget:
    """`burst` at once, `per_s` in the long run."""

    __slots__ = ("_at", "_burst", "_left", "_per_s", "_words")

    def __init__(self, burst: float, per_s: float, words: str) -> None:
        self._burst = self._left = burst
        self._per_s = per_s
        self._words = words
        self._at = 0.0

    def spend(self, now: float) -> None:
        """now: monotonic s. Raises ConnectionFault."""
        self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, self._words)
        self._left -= 1


class Budgets:
    """One connection's."""

    __slots__ = ("idle", "pings", "resets", "settings")

    def __init__(self) -> None:
        self.resets = Budget(1000, 33, "too many streams were reset")
        self.pings = Budget(200, 20, "too_many_pings")  # in words that gRPC's clients know
        self.settings = Budget(50, 1, "too many settings")
        self.idle = Budget(1000, 100, "too many frames that say nothing")
