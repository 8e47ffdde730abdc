"""Threads that go through a compiled function together: each is one member of it, and they meet at barriers.

Within the function they wait for each other by looking (and, after a while, by giving the core away): a step has two
hundred barriers, and waking a thread costs as much as a small layer. Between functions the others sleep.
"""

# mypy: disable-error-code="misc, no-untyped-call, untyped-decorator, call-arg, var-annotated, unreachable"
from __future__ import annotations

import os
import threading
from functools import cache
from queue import SimpleQueue
from typing import Any

import numba
import numpy as np
import torch
from numba.core import types

from inference.models.on_torch.language import vectors

LOOKS = 2000  # before the core is given away
_give_way = types.ExternalFunction("sched_yield", types.int32())


@numba.njit(nogil=True)
def meet(members: int, place: int) -> None:
    """Returns when all members are here. place: address of two whole numbers, 0 at first."""
    if members == 1:
        return
    turn = vectors.look(place + 8)
    if vectors.add_up(place, 1) == members - 1:
        vectors.add_up(place, -members)
        vectors.add_up(place + 8, 1)
        return
    looks = 0
    while vectors.look(place + 8) == turn:
        looks += 1
        if looks > LOOKS:
            _give_way()


class Team:
    """`members` threads, the caller's own among them. Callers take turns."""

    def __init__(self, members: int) -> None:
        self.members = members
        self._sync = np.zeros(16, np.int64)
        self.place = int(self._sync.ctypes.data)
        self._jobs: list[SimpleQueue[tuple[Any, ...] | None]] = [SimpleQueue() for _ in range(members - 1)]
        self._done = threading.Semaphore(0)
        self._turn = threading.Lock()
        self.threads = [
            threading.Thread(target=_serve, args=(number, jobs, self._done), daemon=True, name=f"team-{number}")
            for number, jobs in enumerate(self._jobs, 1)
        ]
        for thread in self.threads:
            thread.start()

    def run(self, function: Any, *args: Any) -> None:
        """Each member calls function(member, members, place of the barrier, *args); returns when all have. It must not
        raise.
        """
        whole = (self.members, self.place, *args)
        with self._turn:
            for jobs in self._jobs:
                jobs.put((function, *whole))
            function(0, *whole)
            for _ in self._jobs:
                self._done.acquire()

    def close(self) -> None:
        """Its threads end."""
        for jobs in self._jobs:
            jobs.put(None)


def _serve(number: int, jobs: SimpleQueue[tuple[Any, ...] | None], done: threading.Semaphore) -> None:
    while (job := jobs.get()) is not None:
        function, *args = job
        try:
            function(number, *args)
        finally:
            done.release()


def shared() -> Team:
    """This process's team, of as many threads as torch has for its products."""
    return _shared(os.getpid(), torch.get_num_threads())


@cache
def _shared(_process: int, members: int) -> Team:
    return Team(members)
