"""One wanted replica: its listener, its child of the moment, its restarts, its end.

The listener outlives the child, so that clients wait in its backlog while a crashed replica is replaced.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import structlog

from inference.config import BadSetting, SupervisorConfig
from inference.errors import NotReady
from inference.host import folders as places
from inference.host.adapters import ReplicaAdapters
from inference.host.child import Child
from inference.host.decide import Held
from inference.host.devices import Found
from inference.host.exits import Exit, size_words
from inference.host.folders import Folders
from inference.host.processes import resident_bytes
from inference.host.restarts import RestartPolicy, after_crash
from inference.host.standby import ForkServerProcess
from inference.protocol.child import AdaptersReport, ChildPaths, FromChild, PhaseReport, StartReplica
from inference.protocol.status import ReplicaPhase, check_move
from inference.protocol.supervision import AdapterSpec, ReplicaSeen, ReplicaSpec

log = structlog.get_logger()
TERM_WAIT_S = 2.0
RETRY_S = 1.0
RISING = (ReplicaPhase.STARTING, ReplicaPhase.LOADING, ReplicaPhase.WARMING, ReplicaPhase.READY)
MAX_MESSAGE = 1000


@dataclass(frozen=True, slots=True)
class Ground:
    """What every replica and validation stands on."""

    config: SupervisorConfig
    folders: Folders
    server: ForkServerProcess
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    clock: Callable[[], float] = time.monotonic
    # Jitter, not a secret.
    chance: Callable[[], float] = random.random
    found_devices: Callable[[], Found] = Found


class Replica:
    """Runs from `start` until `stop` or failure; `changed` is called at every move of its phase."""

    def __init__(self, spec: ReplicaSpec, ground: Ground, changed: Callable[[], None]) -> None:
        self.spec = spec
        self.phase = ReplicaPhase.STARTING
        self.stopping = False
        self._ground = ground
        self._changed = changed
        self._adapters = ReplicaAdapters(ground.folders.artifacts, spec.adapters)
        self._path = ground.folders.listener_path(spec.id, spec.generation)
        self._listener: socket.socket | None = None
        self._child: Child | None = None
        self._report = PhaseReport(ReplicaPhase.STARTING)
        self._message = ""
        self._last_exit = ""
        self._last_words = ""
        self._ending: asyncio.Task[None] | None = None
        self._cleaning: asyncio.Task[None] | None = None
        self._restarts = 0
        self._crashes: tuple[float, ...] = ()
        self._ready_at = 0.0
        self._shared_bytes = 0
        self._began = self._heard = ground.clock()
        self._wake = asyncio.Event()
        self._asked_to_restart = False
        self._task: asyncio.Task[None] | None = None

    # What others see

    def held(self) -> Held:
        return Held(self.spec.id, self.spec.generation, self.phase, self.stopping)

    def seen(self) -> ReplicaSeen:
        child, ready = self._child, self.phase is ReplicaPhase.READY
        return ReplicaSeen(
            id=self.spec.id,
            generation=self.spec.generation,
            phase=self.phase,
            address=f"unix:{self._path}",
            pid=child.pid if child else 0,
            restarts=self._restarts,
            message=self._message or (f"last exit: {self._last_exit}" if self._last_exit else ""),
            memory_bytes=(self._report.memory_bytes or child.resident_bytes()) if child else 0,
            queue_depth=self._report.queue_depth if ready else 0,
            ready_since_s=self._ground.clock() - self._ready_at if ready else 0.0,
            device_memory_bytes=self._device_memory_bytes(child.pid) if child else 0,
            compiles_after_ready=self._report.compiles_after_ready,
            adapters=self._adapters.seen(),
        )

    def _device_memory_bytes(self, pid: int) -> int:
        # The driver counts all of it, but in a container names pids that are not ours; the child knows its allocator.
        return max(self._ground.found_devices().held_bytes.get(pid, 0), self._report.device_memory_bytes)

    @property
    def is_over(self) -> bool:
        return self.phase is ReplicaPhase.STOPPED

    # What others ask

    def start(self) -> None:
        self._task = asyncio.create_task(self._live(), name=f"replica {self.spec.id}")

    def stop(self) -> None:
        """Drain and end; once."""
        if not self.stopping:
            self.stopping = True
            self._wake.set()
            self._close_listener()
            if self.phase is ReplicaPhase.READY:
                self._move(ReplicaPhase.DRAINING)
            if self._child:
                self._ending = asyncio.create_task(self._end(self._child))
                self._ending.add_done_callback(_told)

    def restart(self) -> None:
        """Kill it; it comes back at once, with its crashes forgotten."""
        if self.stopping:
            return
        self._crashes = ()
        self._asked_to_restart = True
        self._wake.set()
        if self._child:
            self._child.kill("the process was restarted by a person")

    def adapt(self, adapters: list[AdapterSpec]) -> None:
        """Have exactly these adapters; the process goes on."""
        if not self.stopping:
            self.spec = msgspec.structs.replace(self.spec, adapters=adapters)
            self._adapters.want(adapters)

    async def over(self) -> None:
        if self._task:
            await asyncio.gather(self._task, return_exceptions=True)

    def check(self, now_s: float, blind_s: float) -> None:
        """The watchdog. blind_s: time that this supervisor itself stood still and heard nobody."""
        self._heard += blind_s
        self._began += blind_s
        if self._child and not self.stopping:
            cause = self._fault(self._child, now_s)
            if cause:
                self._child.kill(cause)

    def _fault(self, child: Child, now_s: float) -> str:
        config, limit = self._ground.config, self.spec.memory_bytes
        if self.phase is not ReplicaPhase.READY:
            if now_s - self._began > config.load_timeout_s:
                return f"the process was ended because loading took longer than {config.load_timeout_s} s"
        elif now_s - self._heard > config.heartbeat_s:
            return f"the process was ended because it gave no sign of life for {config.heartbeat_s} s"
        if limit and child.resident_bytes() > limit + self._shared_bytes:
            return f"the process was ended because it used more than {size_words(limit)} of memory"
        return ""

    # Its life

    async def _live(self) -> None:
        try:
            while not self.stopping:
                self._wake.clear()
                self._asked_to_restart = False
                try:
                    ended = await self._one_life()
                except (OSError, BadSetting) as error:
                    log.warning("replica.not_started", replica=self.spec.id, error=str(error))
                    self._message, ended = f"cannot be started here: {error}", None
                if self.stopping or not await self._may_return(ended):
                    break
        finally:
            self._adapters.stop()
            self._close_listener()
            self._move(ReplicaPhase.STOPPED)

    async def _one_life(self) -> Exit | None:
        """From fork to exit. None when there was no process to be had."""
        work = self._ground.folders.new_work(self.spec.id)
        try:
            self._listener = self._listener or places.listen(self._path)
            child = await self._fork(work)
            if child is None:
                return None
            self._child, self._message, self._last_words = child, "", ""
            self._adapters.attach(child)
            if self.stopping:
                child.kill("the process was stopped")
            self._move(ReplicaPhase.LOADING)
            async for report in child.reports():
                self._hear(report)
            return await child.exit()
        finally:
            self._child = None
            self._adapters.attach(None)
            self._report = PhaseReport(self.phase)
            # Not waited for: between the child's end and the next phase nobody may look.
            self._cleaning = asyncio.create_task(asyncio.to_thread(places.remove, work))

    async def _fork(self, work: Path) -> Child | None:
        """Waits for standby, but no longer than this replica is wanted."""
        paths = ChildPaths(artifacts_dir=str(self._ground.folders.artifacts), work_dir=str(work))
        spec = msgspec.structs.replace(self.spec, adapters=await self._adapters.begin(work))
        start = StartReplica(spec, paths, is_fake_device=self._ground.found_devices().is_fake(self.spec.device))
        forking = asyncio.create_task(Child.fork(self._ground.server, start, self._listener))
        waking = asyncio.create_task(self._stopped())
        try:
            await asyncio.wait({forking, waking}, return_when=asyncio.FIRST_COMPLETED)
            if not forking.done():
                return None
            self._began = self._heard = self._ground.clock()
            # What every child holds from the start, nearly all of it shared, is not the model's.
            self._shared_bytes = resident_bytes(self._ground.server.pid)
            return forking.result()
        except NotReady as error:
            self._message = error.message
            return None
        finally:
            forking.cancel()
            waking.cancel()
            await asyncio.gather(forking, waking, return_exceptions=True)

    async def _stopped(self) -> None:
        while not self.stopping:
            await self._wake.wait()
            self._wake.clear()

    def _hear(self, report: FromChild) -> None:
        if isinstance(report, AdaptersReport):
            self._adapters.hear(report.adapters)
        if not isinstance(report, PhaseReport):
            return
        self._heard = self._ground.clock()
        self._report = report
        if report.phase is ReplicaPhase.FAILED:
            self._last_words = report.message[:MAX_MESSAGE] or self._last_words
        else:
            self._message = report.message[:MAX_MESSAGE]
        if report.phase in RISING and self.phase in RISING:
            self._rise(report.phase)

    def _rise(self, to: ReplicaPhase) -> None:
        for step in RISING[RISING.index(self.phase) + 1 : RISING.index(to) + 1]:
            if step is ReplicaPhase.READY:
                self._ready_at = self._ground.clock()
            self._move(step)

    async def _may_return(self, ended: Exit | None) -> bool:
        """What follows an end that nobody asked for: back at once, back later, or not before somebody asks."""
        if ended is None:
            await self._pause(RETRY_S)
        elif self._asked_to_restart or ended.status is None:
            self._fall(ended, counts=False)
        else:
            delay_s = self._fall(ended, counts=True)
            if delay_s is None:
                await self._fail()
            elif delay_s > 0:
                await self._pause(delay_s)
        if self.stopping:
            return False
        if self.phase is not ReplicaPhase.STARTING:
            self._move(ReplicaPhase.STARTING)
        return True

    def _fall(self, ended: Exit, *, counts: bool) -> float | None:
        self._message = self._last_exit = self._last_words or ended.words
        log.warning("replica.ended", replica=self.spec.id, generation=self.spec.generation, how=ended.words)
        self._restarts += 1
        self._move(ReplicaPhase.BACKOFF)
        if not counts:
            return 0.0
        verdict = after_crash(self._ground.policy, self._crashes, self._ground.clock(), self._ground.chance())
        self._crashes = verdict.crashes
        return verdict.delay_s

    async def _fail(self) -> None:
        self._message = f"given up after {len(self._crashes)} crashes: {self._message}"
        self._close_listener()
        self._move(ReplicaPhase.FAILED)
        self._crashes = ()
        await self._pause(None)

    async def _pause(self, delay_s: float | None) -> None:
        """Wait, or until it is stopped or restarted."""
        if not (self.stopping or self._asked_to_restart):
            await asyncio.wait({waiting := asyncio.create_task(self._wake.wait())}, timeout=delay_s)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    # Its end

    async def _end(self, child: Child) -> None:
        """1. ask it to drain  2. SIGTERM when its time is over, or at once if it serves nobody  3. SIGKILL"""
        drain_s = float(self._ground.config.drain_s) if self.phase is ReplicaPhase.DRAINING else 0.0
        child.drain(drain_s)
        if drain_s and await self._gone(drain_s):
            return
        child.terminate()
        if not await self._gone(TERM_WAIT_S):
            child.kill("the process did not stop in time")

    async def _gone(self, timeout_s: float) -> bool:
        assert self._task is not None
        done, _ = await asyncio.wait({self._task}, timeout=timeout_s)
        return bool(done)

    def _close_listener(self) -> None:
        """New clients are refused at once and go elsewhere; the child keeps its own copy until it has drained."""
        if self._listener:
            self._path.unlink(missing_ok=True)
            self._listener.close()
            self._listener = None

    def _move(self, to: ReplicaPhase) -> None:
        if self.phase is not to:
            self.phase = check_move(self.phase, to)
            log.info("replica.phase", replica=self.spec.id, generation=self.spec.generation, phase=to)
            self._changed()


def _told(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.error("replica.end_failed", error=str(error))
