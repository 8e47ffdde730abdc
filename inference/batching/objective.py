"""Finds window and batch size for a latency objective: a p99 in, rules out. Pure: it is told the time.

A request waits at worst for the pass that runs and for its own: with the learned step time a*n + b, the largest batch is
the largest n whose two passes stay within the objective, less a margin that is corrected by what is measured, and less
the window, a share of the same budget. Where the line grows the batch is not made smaller, because only larger ones
drain it.

Source: additive-increase multiplicative-decrease on batch size as in Clipper (Crankshaw et al., NSDI 2017), with the
step model of BentoML's dispatcher in place of blind probing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from math import ceil

from inference.batching.window import Rules, StepTime

PERIOD_S = 0.5
MIN_SAMPLES = 50
KEPT = 2000
MAX_WINDOW_S = 0.05
WINDOW_SHARE = 0.25
MARGIN_MIN, MARGIN_MAX, MARGIN_START = 1.1, 8.0, 1.5
GROW, SHRINK = 1.3, 0.97
COMFORT = 0.7


class Objective:
    """explicit: the settings' rules, whose largest batch is never exceeded. A window or delay of the author's own stays:
    then only the size is found.
    """

    def __init__(self, objective_s: float, explicit: Rules, *, keeps_window: bool = False) -> None:
        self._objective_s = objective_s
        self._explicit = explicit
        self._keeps_window = keeps_window or explicit.max_delay_s is not None or bool(explicit.preferred)
        self._latencies: deque[float] = deque(maxlen=KEPT)
        self._next_at = 0.0
        self.margin = MARGIN_START

    def saw(self, now: float, latencies: Iterable[float]) -> None:
        """Requests were answered at `now`, after so many seconds each."""
        self._latencies.extend(latencies)
        if len(self._latencies) < MIN_SAMPLES or now < self._next_at:
            return
        self._next_at = now + PERIOD_S
        found = self.p99()
        if found > self._objective_s:
            self.margin = min(self.margin * GROW, MARGIN_MAX)
            self._latencies.clear()
        elif found < COMFORT * self._objective_s:
            self.margin = max(self.margin * SHRINK, MARGIN_MIN)

    def p99(self) -> float:
        """Of the newest answers since the last correction; 0 without any."""
        ordered = sorted(self._latencies)
        return ordered[ceil(0.99 * len(ordered)) - 1] if ordered else 0.0

    def rules(self, step: StepTime, waiting_rows: int) -> Rules:
        """The rules from now on, for passes that take `step` and a line of `waiting_rows`."""
        budget_s = self._objective_s / self.margin
        largest = self._explicit.max_batch_size
        window_s = self._explicit.window_s
        if not self._keeps_window:
            window_s = min(WINDOW_SHARE * budget_s, MAX_WINDOW_S)
        rows = largest
        if step.per_row_s > 0:
            rows = int(min(max(((budget_s - window_s) / 2 - step.fixed_s) / step.per_row_s, 1), largest))
        # A line that is longer than that drains sooner in larger batches.
        rows = min(largest, max(rows, waiting_rows))
        return replace(self._explicit, max_batch_size=rows, window_s=window_s)
