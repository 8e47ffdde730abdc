"""Promises of time, measured so that a slow machine that tells late does not look like a slow product."""

from __future__ import annotations

import time
from collections.abc import Callable


def accepted_for_s(ask: Callable[[], int], patience_s: float = 10.0) -> float:
    """Asks until it is refused with 401: for how long from now on requests that were *sent* were still accepted."""
    began, last = time.monotonic(), 0.0
    while True:
        sent = time.monotonic() - began
        status = ask()
        if status == 401:
            return last
        assert status == 200, status
        assert sent < patience_s, f"still accepted after {sent:.1f} s"
        last = sent
        time.sleep(0.01)


def slowness(sample_s: float = 0.2) -> float:
    """How many times longer than on an idle machine a computation takes here and now: 1.0 when nobody else computes.

    A promise of seconds is one of an idle machine; a test that shares its machine holds the promise times this.
    """
    began, used = time.monotonic(), time.thread_time()
    while time.thread_time() - used < sample_s:
        pass
    return max(1.0, (time.monotonic() - began) / sample_s)
