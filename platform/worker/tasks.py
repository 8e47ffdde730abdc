"""The agent's Celery side: a message only wakes it. The thread starts before the broker is asked for anything."""

from __future__ import annotations

import logging
import os

from celery import shared_task
from celery.signals import worker_init, worker_shutting_down
from django.conf import settings

from inference.config import supervisor_config
from inference.host.client import SupervisorClient
from worker.agent import Agent
from worker.permanent import AgentThread

log = logging.getLogger(__name__)
_threads: list[AgentThread] = []


def new_agent() -> Agent:
    """The agent of this host, speaking to the supervisor of this host."""
    return Agent(settings.HOST_NAME, SupervisorClient(supervisor_config().socket))


@shared_task(name="worker.converge")  # type: ignore[untyped-decorator]  # celery brings no types
def converge(host: str) -> str:
    """Wakes this host's agent; where none runs as a thread, makes one pass. Doubled messages change nothing."""
    if host != settings.HOST_NAME:
        log.warning("a message for host %s came to host %s", host, settings.HOST_NAME)
        return "not mine"
    if _threads and _threads[0].alive:
        _threads[0].wake()
        return "woken"
    new_agent().pass_once()
    return "converged"


# Not worker_ready: that one waits for the broker, and hosts must converge without it.
@worker_init.connect(weak=False)  # type: ignore[untyped-decorator]
def start_agent(**_: object) -> None:
    if os.environ.get("SERINUS_ROLE") == "agent" and not _threads:
        thread = AgentThread(new_agent())
        _threads.append(thread)
        thread.start()


@worker_shutting_down.connect(weak=False)  # type: ignore[untyped-decorator]
def stop_agent(**_: object) -> None:
    while _threads:
        _threads.pop().stop()
