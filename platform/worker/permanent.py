"""The agent's permanent thread: a pass every 2 s, more often while something moves, whatever the broker does."""

from __future__ import annotations

import logging
import threading

from django.db import close_old_connections

from worker.agent import BUSY_S, Agent

log = logging.getLogger(__name__)


class AgentThread:
    """Runs an agent's passes until it is stopped; `wake` makes the next one come now.

    Wake-ups that come during a pass become one pass after it, so fifty doubled messages cost two passes.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="host-agent", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._wake.set()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Ends after the running pass. The host's replicas serve on."""
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout_s)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        log.info("agent of host %s converges", self._agent.host)
        while not self._stop.is_set():
            self._wake.clear()
            self._wake.wait(self._pass())

    def _pass(self) -> float:
        try:
            return self._agent.pass_once()
        except Exception:  # the thread outlives any defect of one pass: its host would be lost with it
            log.exception("a pass of the agent failed")
            return BUSY_S
        finally:
            close_old_connections()
