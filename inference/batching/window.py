"""Decides when the waiting requests become a batch. Pure: values and a clock in, a value out.

The law: a batch is released when it is full, when its oldest row has been held for the window, when waiting longer
would miss the earliest deadline, or when waiting does not pay. Of rows that would miss it together, fewer are
released. The window counts from the oldest waiting request, but not while the executor is busy: who came during a
pass longer than the window would else always run without those who are answered at its end, and a closed loop of 32
clients would run as 1 and 31 for ever. Waiting pays while rows that were here a moment ago are still to come back (a
closed loop of clients), they come quickly, and the time lost by those who wait stays below what one pass saves. So a
request that is alone runs at once. All times are seconds of one monotonic clock.

Two settings have Triton's meaning instead: a preferred size goes as soon as the line begins with exactly that many rows,
and a maximum delay, where one is set, holds a smaller batch for so long even when nobody is expected.

Sources: Triton's dynamic batcher (release when an instance is idle), BentoML's CorkDispatcher (marginal gain).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

# Timers of the event loop are up to a millisecond late, so a deadline is aimed at with this much to spare.
DEADLINE_MARGIN_S = 0.002
PATIENCE_GAPS = 4.0
GAIN_SHARE = 0.25
MAX_PATIENCE_FLOOR_S = 0.002
SHARE_GAIN = 0.75  # a part must take at most this share of the whole's time to be worth a second pass


@dataclass(frozen=True, slots=True)
class Release:
    """Run the oldest `rows` rows now."""

    rows: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again at `until`, or earlier when a request arrives or the executor becomes idle; inf: only then."""

    until: float


@dataclass(frozen=True, slots=True)
class Rules:
    """What the version's settings say. max_batch_size >= 1 rows, window_s from 0 to 0.05.

    preferred: batch sizes, each at most the largest; max_delay_s replaces the window where it is not None.
    """

    max_batch_size: int
    window_s: float
    preferred: tuple[int, ...] = ()
    max_delay_s: float | None = None

    @property
    def enough_rows(self) -> int:
        """A batch of so many rows is not held for more."""
        return max(self.preferred, default=self.max_batch_size)


@dataclass(frozen=True, slots=True)
class StepTime:
    """One forward pass over n rows takes about per_row_s * n + fixed_s."""

    per_row_s: float = 0.0
    fixed_s: float = 0.0

    def of(self, rows: int) -> float:
        return self.per_row_s * rows + self.fixed_s


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the recent past says about the near future.

    gap_s: usual time between two arrivals (inf: not known); expected_rows: rows that were in the system together of
    late; last_arrival_at: when the newest request came.
    """

    gap_s: float = inf
    expected_rows: int = 0
    last_arrival_at: float = -inf


@dataclass(frozen=True, slots=True)
class Waiting:
    """Rows that may run together, oldest first. present_rows counts all that are in the system, mergeable or not.

    preferred_rows: the largest preferred size with which the line begins, 0 for none. idle_lanes: executors that are
    free to take them, side by side. urgent_rows: how many rows the line has up to the one that is due first; asked for
    only where all of them together would miss its deadline, else 0.
    """

    rows: int
    present_rows: int
    oldest_at: float
    earliest_deadline: float = inf
    preferred_rows: int = 0
    idle_lanes: int = 1
    urgent_rows: int = 0


def decide(
    waiting: Waiting, *, rules: Rules, step: StepTime, outlook: Outlook, idle_since: float | None, now: float
) -> Release | Wait:
    """Release or wait, for an executor that has been idle since `idle_since`; None: it is busy."""
    if waiting.rows <= 0 or idle_since is None:
        return Wait(inf)
    slack_until = waiting.earliest_deadline - step.of(waiting.rows) - DEADLINE_MARGIN_S
    if waiting.preferred_rows and now < min(slack_until, waiting.oldest_at + (rules.max_delay_s or inf)):
        return Release(min(waiting.preferred_rows, rules.max_batch_size))
    if waiting.rows >= rules.max_batch_size:
        return Release(_in_time(waiting, rules.max_batch_size, step, now))
    until = min(slack_until, _held_until(waiting, rules, step, outlook, idle_since))
    return Wait(until) if until > now else Release(_in_time(waiting, _share(waiting, rules, step), step, now))


def _in_time(waiting: Waiting, rows: int, step: StepTime, now: float) -> int:
    """Fewer than `rows` where only so whoever is due first, being among them, is answered in time."""
    left_s = waiting.earliest_deadline - now
    urgent = waiting.urgent_rows
    if not 0 < urgent < rows or step.of(rows) <= left_s or step.of(urgent) > left_s:
        return rows
    fitting = int((left_s - DEADLINE_MARGIN_S - step.fixed_s) / step.per_row_s)
    return min(max(urgent, fitting), rows)


def _held_until(waiting: Waiting, rules: Rules, step: StepTime, outlook: Outlook, idle_since: float) -> float:
    if waiting.rows >= rules.enough_rows:
        return -inf
    if rules.max_delay_s is not None:
        return waiting.oldest_at + rules.max_delay_s
    window_end = max(waiting.oldest_at, idle_since) + rules.window_s
    return min(window_end, _patient_until(waiting, step, outlook, idle_since))


def _share(waiting: Waiting, rules: Rules, step: StepTime) -> int:
    """All rows, or their part of one lane where several are free and a smaller pass ends much sooner."""
    if waiting.idle_lanes < 2 or rules.preferred or rules.max_delay_s is not None:
        return waiting.rows
    part = -(-waiting.rows // waiting.idle_lanes)
    return part if step.of(part) < SHARE_GAIN * step.of(waiting.rows) else waiting.rows


def _patient_until(waiting: Waiting, step: StepTime, outlook: Outlook, idle_since: float) -> float:
    if waiting.present_rows >= outlook.expected_rows:
        return -inf
    if (waiting.rows + 1) * outlook.gap_s > _gain_s(waiting.rows, step):
        return -inf
    floor_s = min(MAX_PATIENCE_FLOOR_S, GAIN_SHARE * step.of(waiting.rows))
    # Those who were answered when the executor became idle are only now on their way back.
    return max(outlook.last_arrival_at, idle_since) + max(PATIENCE_GAPS * outlook.gap_s, floor_s)


def _gain_s(rows: int, step: StepTime) -> float:
    # One pass fewer saves its fixed part. A quarter of a pass is granted even where the fixed part is nothing,
    # because whoever just misses a pass waits for all of it.
    return max(step.fixed_s, GAIN_SHARE * step.of(rows))
