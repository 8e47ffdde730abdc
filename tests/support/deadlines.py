"""Promises of time, measured so that a slow machine that tells late does not look like a slow product."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Self


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


class Pace:
    """How many times longer than on an idle machine a computation took while this was open: `factor`, at least 1.

    A promise of seconds is one of an idle machine; a test that shares its machine holds the promise times this.
    """

    BURN_S, PAUSE_S = 0.03, 0.25

    def __enter__(self) -> Self:
        self._wall = self._used = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            began, used = time.monotonic(), time.thread_time()
            while time.thread_time() - used < self.BURN_S:
                pass
            self._wall += time.monotonic() - began
            self._used += self.BURN_S
            self._stop.wait(self.PAUSE_S)

    @property
    def factor(self) -> float:
        return max(1.0, self._wall / self._used) if self._used else 1.0
