"""`python -m inference supervisor`: the parent of this host's replicas. No Django, no Celery, no tensor library.

It is told the whole wanted set, keeps it, and makes it so; what the database or the agent does meanwhile changes
nothing here. Killed, it takes its children along; started again, it brings them back from what it kept.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import signal
import sys

import structlog

from inference.config import BadSetting, SupervisorConfig, supervisor_config
from inference.errors import NotFound
from inference.host import devices, preload, wanted
from inference.host.compiling import Compiling
from inference.host.decide import Start, Wanted, accept, decide
from inference.host.door import Door
from inference.host.environment import child_environment
from inference.host.folders import AlreadyRunning, Folders
from inference.host.logs import bound_logs
from inference.host.processes import adopt_orphans, bury_orphans
from inference.host.replica import Ground, Replica
from inference.host.standby import ForkPlan, ForkServerProcess
from inference.host.validations import Validations
from inference.protocol.supervision import Converge, ReplicaSpec, Restart, Seen, ToSupervisor

log = structlog.get_logger()
TICK_S = 0.5
DEVICES_EVERY = 4
LOGS_EVERY = 20
BLIND_S = 2.0
MAX_FENCES = 4096
STOP_SLACK_S = 5.0


class Supervisor:
    """Holds the table of replicas. All its state changes on one thread, between awaits."""

    def __init__(self, config: SupervisorConfig, folders: Folders, plan: ForkPlan) -> None:
        self._config = config
        self._folders = folders
        self._server = ForkServerProcess(plan, self._changed)
        self._compiling = Compiling(plan.environment, folders.logs)
        self._devices = devices.Found()
        self._ground = Ground(config, folders, self._server, found_devices=lambda: self._devices)
        self._validations = Validations(self._ground, self._changed)
        self._door = Door(config.socket, self.answer, self._is_child)
        self._wanted: Wanted = {}
        self._newest: dict[str, int] = {}
        self._replicas: dict[tuple[str, int], Replica] = {}
        self._boot = secrets.token_hex(8)
        self._stirred = asyncio.Event()
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Until `stop`. 1. what was wanted last  2. fork server  3. door  4. converge and watch  5. drain all"""
        kept = wanted.load(self._folders.wanted)
        self._newest = dict(kept.newest)
        self._want(kept.replicas)
        self._devices = await asyncio.to_thread(devices.discover, self._config.fake_devices)
        self._server.start()
        self._validations.start()
        self._compiling.start()
        await self._door.open()
        log.info("supervisor.started", socket=str(self._config.socket), replicas=len(self._wanted))
        watch = asyncio.create_task(self._watch(), name="watch")
        try:
            await self._converge_forever()
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            await self._end()

    def stop(self) -> None:
        self._stopping.set()
        self._stirred.set()

    def answer(self, message: ToSupervisor) -> Seen:
        """Raises NotFound for a restart of what is not there."""
        if isinstance(message, Converge):
            self._want(message.replicas)
            self._validations.converge(message.validations)
            self._step()
        elif isinstance(message, Restart):
            self._restart(message.replica)
        seen = self.seen()
        if isinstance(message, Converge):
            self._validations.mark_delivered()
        return seen

    def seen(self) -> Seen:
        return Seen(
            boot=self._boot,
            pid=os.getpid(),
            replicas=[replica.seen() for replica in self._replicas.values()],
            validations=self._validations.seen(),
            devices=self._devices.devices,
            standby_ready=self._server.is_ready,
        )

    def _want(self, specs: list[ReplicaSpec]) -> None:
        accepted = accept(self._wanted, self._newest, specs)
        if accepted == self._wanted:
            return
        self._wanted = accepted
        for spec in accepted.values():
            # Removed and set again: the fences used last are the last to be forgotten.
            self._newest.pop(spec.id, None)
            self._newest[spec.id] = spec.generation
        for replica_id in list(self._newest)[: max(0, len(self._newest) - MAX_FENCES)]:
            del self._newest[replica_id]
        wanted.save(self._folders.wanted, self._wanted, self._newest)

    def _restart(self, replica_id: str) -> None:
        found = [replica for (held_id, _), replica in self._replicas.items() if held_id == replica_id]
        if not found:
            raise NotFound(f"there is no replica {replica_id} on this host")
        for replica in found:
            replica.restart()

    def _changed(self) -> None:
        self._stirred.set()

    async def _converge_forever(self) -> None:
        while not self._stopping.is_set():
            self._step()
            await self._stirred.wait()
            self._stirred.clear()

    def _step(self) -> None:
        if self._stopping.is_set():
            return
        for key in [key for key, replica in self._replicas.items() if replica.is_over]:
            del self._replicas[key]
        for action in decide(self._wanted, [replica.held() for replica in self._replicas.values()]):
            if isinstance(action, Start):
                replica = Replica(action.spec, self._ground, self._changed)
                self._replicas[action.spec.id, action.spec.generation] = replica
                replica.start()
            else:
                self._replicas[action.id, action.generation].stop()
        for spec in self._wanted.values():
            if (held := self._replicas.get((spec.id, spec.generation))) is not None:
                held.adapt(spec.adapters)

    async def _watch(self) -> None:
        """Every half second: who hangs, who eats, who is an orphan, which devices are free, which logs have grown."""
        loop, count = asyncio.get_running_loop(), 0
        before = self._ground.clock()
        looking: asyncio.Task[None] | None = None
        while True:
            await asyncio.sleep(TICK_S)
            now = self._ground.clock()
            # A supervisor that stood still itself (SIGSTOP, suspend) must not blame its children for the silence.
            blind_s = now - before if now - before > BLIND_S else 0.0
            before = now
            for replica in list(self._replicas.values()):
                replica.check(now, blind_s)
            self._validations.check(now, blind_s)
            bury_orphans({self._server.pid, self._compiling.pid})
            count += 1
            if count % DEVICES_EVERY == 0 and (looking is None or looking.done()):
                looking = asyncio.create_task(self._look_at_devices())
            if count % LOGS_EVERY == 0:
                await loop.run_in_executor(None, bound_logs, self._folders.logs)

    async def _look_at_devices(self) -> None:
        self._devices = await asyncio.to_thread(devices.discover, self._config.fake_devices)

    def _is_child(self, pid: int) -> bool:
        return any(replica.seen().pid == pid for replica in self._replicas.values())

    async def _end(self) -> None:
        """1. nobody new  2. every replica drains  3. validations end  4. the fork server, and with it what is left"""
        log.info("supervisor.stopping", replicas=len(self._replicas))
        self._compiling.end()
        await self._door.close()
        for replica in self._replicas.values():
            replica.stop()
        await self._validations.stop()
        drained = [asyncio.create_task(replica.over()) for replica in self._replicas.values()]
        if drained:
            await asyncio.wait(drained, timeout=self._config.drain_s + STOP_SLACK_S)
        await self._server.stop()
        log.info("supervisor.stopped")


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m inference supervisor")
    parser.add_argument("--entry", default=preload.ENTRY, help="module of run_replica and run_validation")
    parser.add_argument("--preload", default=",".join(preload.MODULES), help="modules that the fork server imports")
    return parser.parse_args(argv)


async def _main(config: SupervisorConfig, args: argparse.Namespace) -> None:
    folders = Folders(config)
    folders.lock()
    folders.prepare()
    plan = ForkPlan(
        environment=child_environment(os.environ, home=folders.home, threads=1),
        logs=folders.logs,
        entry=args.entry,
        modules=tuple(args.preload.split(",")),
    )
    supervisor = Supervisor(config, folders, plan)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.stop)
    await supervisor.run()


def main(argv: list[str]) -> int:
    args = _arguments(argv)
    # The children of a killed fork server fall to this process, not to one that may never reap them.
    adopt_orphans()
    try:
        asyncio.run(_main(supervisor_config(), args))
    except (BadSetting, AlreadyRunning) as error:
        sys.stderr.write(f"supervisor: {error}\n")
        return 2
    return 0
