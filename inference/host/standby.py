"""The supervisor's side of the fork server: exec it with a clean environment, ask it for children, replace it.

Its children die with it (parent-death signal), so its loss is told to each of them; they come back from the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from inference.errors import ClientError, NotReady
from inference.host import preload, wire
from inference.host.restarts import RestartPolicy, wait_s
from inference.protocol.child import Exited, Forked, FromForkServer, Standby, StartReplica, StartValidation

log = structlog.get_logger()
IMPORT_TIMEOUT_S = 180.0
FORK_TIMEOUT_S = 10.0
STEADY_S = 60.0
POLICY = RestartPolicy(low_s=0.5, cap_s=30.0)


@dataclass(frozen=True, slots=True)
class ForkPlan:
    """How the fork server is started. entry: the module that holds run_replica and run_validation."""

    environment: dict[str, str]
    logs: Path
    entry: str = preload.ENTRY
    modules: tuple[str, ...] = preload.MODULES

    def command(self, fd: int) -> list[str]:
        return [
            *(sys.executable, "-m", "inference", "forkserver", "--fd", str(fd), "--parent", str(os.getpid())),
            *("--logs", str(self.logs), "--entry", self.entry, "--preload", ",".join(self.modules)),
        ]


@dataclass(slots=True)
class Birth:
    """A forked child: its pid, a pidfd owned by the receiver, and its exit status to come (None: never known)."""

    pid: int
    pidfd: int
    status: asyncio.Future[int | None]


class ForkServerProcess:
    """Keeps one fork server alive from `start` to `stop`. `changed` is called when standby comes or goes."""

    def __init__(self, plan: ForkPlan, changed: Callable[[], None]) -> None:
        self._plan = plan
        self._changed = changed
        self._ready = asyncio.Event()
        self._lock = asyncio.Lock()
        self._forked: asyncio.Future[Birth] | None = None
        self._statuses: dict[int, asyncio.Future[int | None]] = {}
        self._sock: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.import_ms = 0.0

    @property
    def is_ready(self) -> bool:
        return self._ready.is_set()

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def start(self) -> None:
        self._keeper = asyncio.create_task(self._keep(), name="forkserver")

    async def stop(self) -> None:
        if self._keeper:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    async def fork(self, message: StartReplica | StartValidation, descriptors: list[int]) -> Birth:
        """A child for `message`; waits for standby. Raises NotReady if the fork server fails meanwhile.

        One at a time: an answer belongs to the question before it, also when the asker has left.
        """
        async with self._lock:
            await self._ready.wait()
            copies = [os.dup(descriptor) for descriptor in descriptors]
            asked = asyncio.create_task(self._ask(message, copies))
            try:
                return await asyncio.shield(asked)
            except asyncio.CancelledError:
                with contextlib.suppress(NotReady):
                    _unwanted((await asked).pidfd)
                raise

    async def _ask(self, message: StartReplica | StartValidation, copies: list[int]) -> Birth:
        assert self._sock is not None
        self._forked = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(FORK_TIMEOUT_S):
                await wire.send_soon(self._sock, message, copies)
                return await self._forked
        except TimeoutError:
            self._kill()
            raise NotReady("the fork server did not answer") from None
        except OSError as error:
            raise NotReady(f"the fork server is gone: {error}") from error
        finally:
            self._forked = None
            for copy in copies:
                os.close(copy)

    async def _keep(self) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            try:
                await self._life()
            except (OSError, ClientError, TimeoutError) as error:
                log.warning("forkserver.failed", error=str(error) or type(error).__name__)
            except Exception:
                log.exception("forkserver.failed")
            failures = 1 if time.monotonic() - began > STEADY_S else failures + 1
            await asyncio.sleep(wait_s(POLICY, failures, 0.5))

    async def _life(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        self._sock = ours
        try:
            with theirs:
                self._process = self._spawn(theirs)
            await self._hear(ours)
        finally:
            self._end(ours)

    def _spawn(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        with (self._plan.logs / "forkserver.log").open("wb") as out:
            return subprocess.Popen(
                self._plan.command(theirs.fileno()),
                env=self._plan.environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                # A Ctrl-C in the terminal is the supervisor's business: it drains first.
                start_new_session=True,
            )

    async def _hear(self, sock: socket.socket) -> None:
        inbox: wire.Inbox[FromForkServer] = wire.Inbox(
            FromForkServer, lambda m: int(isinstance(m, Forked) and m.pid > 0)
        )
        try:
            async with asyncio.timeout(IMPORT_TIMEOUT_S) as patience:
                while True:
                    await wire.readable(sock)
                    messages = inbox.receive(sock)
                    if messages is None:
                        log.warning("forkserver.ended")
                        return
                    for message, descriptors in messages:
                        self._take(message, descriptors)
                    if self._ready.is_set():
                        patience.reschedule(None)
        finally:
            inbox.close()

    def _take(self, message: FromForkServer, descriptors: list[int]) -> None:
        match message:
            case Standby():
                self.import_ms = message.import_ms
                self._ready.set()
                self._changed()
            case Forked():
                self._born(message, descriptors)
            case Exited():
                status = self._statuses.pop(message.pid, None)
                if status and not status.done():
                    status.set_result(message.status)

    def _born(self, message: Forked, descriptors: list[int]) -> None:
        if message.pid == 0:
            if self._forked and not self._forked.done():
                self._forked.set_exception(NotReady("the system has no process to give"))
            return
        status: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._statuses[message.pid] = status
        if self._forked and not self._forked.done():
            self._forked.set_result(Birth(message.pid, descriptors[0], status))
            return
        _unwanted(descriptors[0])

    def _end(self, sock: socket.socket) -> None:
        self._ready.clear()
        self._kill()
        if self._process:
            self._process.wait()
        sock.close()
        if self._forked and not self._forked.done():
            self._forked.set_exception(NotReady("the fork server ended"))
        for status in self._statuses.values():
            if not status.done():
                status.set_result(None)
        self._statuses.clear()
        self._changed()

    def _kill(self) -> None:
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()


def _unwanted(pidfd: int) -> None:
    """Nobody waits for this child any more: it must not live."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)
