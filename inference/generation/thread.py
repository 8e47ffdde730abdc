"""The engine's thread: it takes in what the event loop asks, steps while there is work, and hands outputs back.

The law: the engine is touched by this thread only. Outputs reach the loop in the order in which they were made, and no
more than `AHEAD` iterations wait there unread: a busy loop slows the engine down instead of filling the memory.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from inference.errors import ModelFailed
from inference.generation.engine import Engine
from inference.generation.requests import Output

log = logging.getLogger(__name__)
AHEAD = 4
PATIENCE_S = 0.5
STUCK_S = 0.005
Action = Callable[[Engine], list[Output] | None]


class EngineThread:
    """deliver: called in the loop with each iteration's outputs. guard: entered around each iteration."""

    def __init__(
        self,
        engine: Engine,
        loop: asyncio.AbstractEventLoop,
        deliver: Callable[[list[Output]], None],
        *,
        guard: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._engine = engine
        self._loop = loop
        self._deliver = deliver
        self._guard = guard
        self._inbox: deque[Action] = deque()
        self._changed = threading.Condition()
        self._unread = threading.BoundedSemaphore(AHEAD)
        self._is_stopped = False
        self.busy_since: float | None = None
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def ask(self, action: Action) -> None:
        """`action` runs in the engine's thread before its next iteration; what it returns is delivered."""
        with self._changed:
            self._inbox.append(action)
            self._changed.notify()

    def stop(self) -> None:
        """No further iterations; one that runs may finish."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()

    def join(self, timeout_s: float) -> bool:
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        is_stuck = False
        while True:
            actions = self._wait(is_stuck=is_stuck)
            if actions is None:
                return
            outputs = self._acted(actions)
            is_stuck = False
            if self._engine.has_work:
                before = self._engine.spent.iterations
                outputs += self._stepped()
                is_stuck = self._engine.spent.iterations == before and not outputs
            if outputs and not self._hand_over(outputs):
                return

    def _wait(self, *, is_stuck: bool) -> list[Action] | None:
        """What was asked since; waits while there is nothing to do. None when it is over."""
        with self._changed:
            while not (self._inbox or self._is_stopped):
                if is_stuck:
                    self._changed.wait(STUCK_S)
                    break
                if self._engine.has_work:
                    break
                self._changed.wait()
            if self._is_stopped:
                return None
            actions = list(self._inbox)
            self._inbox.clear()
            return actions

    def _acted(self, actions: list[Action]) -> list[Output]:
        outputs: list[Output] = []
        for action in actions:
            try:
                outputs += action(self._engine) or []
            except Exception:
                log.exception("the engine could not do what it was asked")
                outputs += self._engine.fail_all(ModelFailed())
        return outputs

    def _stepped(self) -> list[Output]:
        self.busy_since = time.monotonic()
        try:
            with self._guard():
                return self._engine.step()
        except Exception:
            # A fault of the engine itself: what runs is lost, what comes next is not.
            log.exception("an iteration failed")
            outputs = self._engine.fail_all(ModelFailed())
            self._engine.scheduler.restart()
            return outputs
        finally:
            self.busy_since = None

    def _hand_over(self, outputs: list[Output]) -> bool:
        while not self._unread.acquire(timeout=PATIENCE_S):
            if self._is_stopped:
                return False
        try:
            self._loop.call_soon_threadsafe(self._arrived, outputs)
        except RuntimeError:
            return False  # the loop is closed: nobody is left to be told
        return True

    def _arrived(self, outputs: list[Output]) -> None:
        self._unread.release()
        self._deliver(outputs)
