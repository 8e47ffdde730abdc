"""What a batcher learns while it runs: how long a pass takes, and how requests arrive. Pure: it is told the time."""

from __future__ import annotations

from collections import deque
from math import inf

from inference.batching.window import Outlook, StepTime

DECAY = 0.97
OUTLIER_FACTOR = 4.0
OUTLIER_AFTER = 8
GAPS_KEPT = 32
PEAKS_KEPT = 8


class StepEstimate:
    """Least squares of pass time over rows, older passes counting less. Seed it with the warm-up's measurements."""

    def __init__(self) -> None:
        self._weight = self._n = self._t = self._nn = self._nt = 0.0
        self._seen = 0
        self.value = StepTime()

    def observe(self, rows: int, seconds: float) -> None:
        if self._seen >= OUTLIER_AFTER:
            seconds = min(seconds, OUTLIER_FACTOR * self.value.of(rows))
        self._seen += 1
        self._weight = self._weight * DECAY + 1
        self._n = self._n * DECAY + rows
        self._t = self._t * DECAY + seconds
        self._nn = self._nn * DECAY + rows * rows
        self._nt = self._nt * DECAY + rows * seconds
        self.value = self._solve()

    def _solve(self) -> StepTime:
        mean_n, mean_t = self._n / self._weight, self._t / self._weight
        variance = self._nn / self._weight - mean_n * mean_n
        slope = self.value.per_row_s
        if variance > 1e-3 * max(1.0, mean_n * mean_n):
            slope = (self._nt / self._weight - mean_n * mean_t) / variance
        slope = min(max(slope, 0.0), mean_t / mean_n)
        return StepTime(per_row_s=slope, fixed_s=mean_t - slope * mean_n)


class Arrivals:
    """The rhythm of arrivals: the lower median of recent gaps, and the recent peak of rows in the system."""

    def __init__(self) -> None:
        self._gaps: deque[float] = deque(maxlen=GAPS_KEPT)
        self._peaks: deque[int] = deque(maxlen=PEAKS_KEPT)
        self._peak = 0
        self._last_at = -inf
        self._gap_s: float | None = None

    def arrived(self, now: float, present_rows: int) -> None:
        """A request came; `present_rows` rows are now in the system, waiting or running."""
        gap_s = now - self._last_at
        if gap_s < inf:
            self._gaps.append(gap_s if gap_s > 0 else 0.0)
            self._gap_s = None
        self._last_at = now
        self._peak = max(self._peak, present_rows)

    def released(self) -> None:
        """A batch was formed: one period of the rhythm is over."""
        self._peaks.append(self._peak)
        self._peak = 0

    def outlook(self) -> Outlook:
        if self._gap_s is None:
            ordered = sorted(self._gaps)
            self._gap_s = ordered[(len(ordered) - 1) // 2] if ordered else inf
        return Outlook(self._gap_s, max(self._peak, max(self._peaks, default=0)), self._last_at)
