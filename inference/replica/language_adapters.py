"""LoRA adapters of a running replica, as its supervisor wants them: loaded into free slots, emptied when nobody runs.

The law: requests can name an adapter only while it lies in its slot. One that is to go cannot be named any more; what
began with it ends with it, and only then is the slot emptied and free for another. All is done in a thread of its own,
so that neither the event loop nor the engine waits for a file.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from inference.errors import OutOfMemory, Rejected, SerinusError
from inference.protocol.child import AdapterAt
from inference.protocol.supervision import AdapterSeen
from inference.replica.language_text import AdapterSlot
from inference.runtime.runner import is_out_of_memory

if TYPE_CHECKING:
    from inference.replica.language import LanguageExecutor
    from inference.replica.language_text import LanguageText

log = logging.getLogger(__name__)
POLL_S = 0.1
ANSWER_S = 60.0  # an iteration may lie between the question and its answer; longer, and it is asked again


class Slots(Protocol):
    """What is needed of a model, see TorchLanguageModel."""

    def load_adapter(self, slot: int, folder: Path) -> object: ...

    def drop_adapter(self, slot: int) -> None: ...


@dataclass(frozen=True, slots=True)
class _Held:
    name: str
    digest: str
    slot: int


class LanguageAdapters:
    """most: slots there are, numbered from 1. folder/DIGEST holds an adapter's files, verified by whoever put them there.
    told: called with where all adapters stand, at every change.
    """

    def __init__(
        self,
        model: Slots,
        text: LanguageText,
        folder: Path,
        *,
        most: int,
        told: Callable[[list[AdapterSeen]], None],
    ) -> None:
        self._model = model
        self._text = text
        self._folder = folder
        self._most = most
        self._told = told
        self._wanted: list[AdapterAt] = []
        self._held: list[_Held] = []
        self._leaving: list[_Held] = []
        self._failed: dict[AdapterAt, str] = {}
        self._last: list[AdapterSeen] = []
        self._inbox: queue.SimpleQueue[list[AdapterAt]] = queue.SimpleQueue()

    def load_first(self, wanted: Sequence[AdapterAt]) -> None:
        """Before the first request, in the caller's thread. One that cannot be loaded is told, and keeps nobody back."""
        self._wanted = list(wanted)
        self._load()
        self._tell()

    def serve(self, executor: LanguageExecutor) -> None:
        """From now on `want` is heard."""
        threading.Thread(target=self._work, args=(executor,), name="adapters", daemon=True).start()

    def want(self, wanted: list[AdapterAt]) -> None:
        """Have exactly these; by any thread. What was wanted before and not done yet is not done any more."""
        self._inbox.put(wanted)

    def _work(self, executor: LanguageExecutor) -> None:
        while True:
            with contextlib.suppress(queue.Empty):
                self._wanted = self._inbox.get(timeout=POLL_S if self._leaving else None)
            try:
                self._converge(executor)
            except Exception:
                log.exception("the adapters could not be changed; the next change tries again")

    def _converge(self, executor: LanguageExecutor) -> None:
        """1. Who is not wanted cannot be named any more. 2. Slots that nobody uses are emptied. 3. Who is new is loaded."""
        wanted = {(one.name, one.digest) for one in self._wanted}
        self._failed = {one: why for one, why in self._failed.items() if one in self._wanted}
        self._held += [one for one in self._leaving if (one.name, one.digest) in wanted]  # wanted again in time
        self._leaving = [one for one in self._leaving if (one.name, one.digest) not in wanted]
        self._leaving += [one for one in self._held if (one.name, one.digest) not in wanted]
        self._held = [one for one in self._held if (one.name, one.digest) in wanted]
        self._name()
        for one in list(self._leaving):
            if not executor.uses_adapter(one.name, one.slot).result(ANSWER_S):
                executor.when_idle(partial(self._model.drop_adapter, one.slot)).result(ANSWER_S)
                self._leaving.remove(one)
                log.info("adapter %s left slot %d", one.name, one.slot)
        self._load()
        self._tell()

    def _load(self) -> None:
        there = {(one.name, one.digest) for one in self._held}
        for one in self._wanted:
            if (one.name, one.digest) in there or one in self._failed:
                continue
            taken = {held.slot for held in (*self._held, *self._leaving)}
            slot = next((number for number in range(1, self._most + 1) if number not in taken), 0)
            if slot and self._loaded(one, slot):
                self._held.append(_Held(one.name, one.digest, slot))
                self._name()

    def _loaded(self, one: AdapterAt, slot: int) -> bool:
        try:
            self._model.load_adapter(slot, self._folder / one.digest)
        except Exception as error:
            log.warning("adapter %s is not loaded", one.name, exc_info=error)
            self._failed[one] = _words(error)
            return False
        log.info("adapter %s (%s) is in slot %d", one.name, one.digest[:12], slot)
        return True

    def _name(self) -> None:
        self._text.adapters = {one.name: AdapterSlot(one.slot, one.digest) for one in self._held}

    def _tell(self) -> None:
        held = {(one.name, one.digest) for one in self._held}
        seen = [AdapterSeen(one.name, one.digest, "leaving", "requests still run with it") for one in self._leaving]
        for one in self._wanted:
            if (one.name, one.digest) in held:
                seen.append(AdapterSeen(one.name, one.digest, "loaded"))
            elif one in self._failed:
                seen.append(AdapterSeen(one.name, one.digest, "failed", self._failed[one]))
            else:
                seen.append(AdapterSeen(one.name, one.digest, "waiting", f"all {self._most} slots are taken"))
        if seen != self._last:
            self._last = seen
            self._told(seen)


def _words(error: BaseException) -> str:
    if isinstance(error, Rejected):
        return f"{error.reason}: {error.remedy}" if error.remedy else error.reason
    if isinstance(error, SerinusError):
        return error.message
    return OutOfMemory().message if is_out_of_memory(error) else f"loading failed with {type(error).__name__}"
