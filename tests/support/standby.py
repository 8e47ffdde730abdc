"""A warm standby of the tests' own process: the product's fork server, which has imported all that replicas import and
compiled the language models' loops once, where each replica alone would take many seconds of work for both.
"""

from __future__ import annotations

import atexit
import functools
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from inference.host import newborn, preload, wire
from inference.host.environment import child_environment
from inference.protocol.child import Exited, Forked, FromForkServer, StartReplica, StartValidation
from inference.protocol.child import Standby as Warm

ROOT = Path(__file__).parents[2]
COMPILED = "tests.support.compiled"
IMPORTS_S = 300.0  # on a busy machine


class Child:
    """A forked child, by the names of `subprocess.Popen`."""

    def __init__(self, standby: Standby, pid: int, pidfd: int) -> None:
        self.pid, self.returncode = pid, None
        self._standby, self._pidfd = standby, pidfd

    def __del__(self) -> None:
        os.close(self._pidfd)

    def poll(self) -> int | None:
        """As `Popen.poll`."""
        if self.returncode is None and select.select([self._pidfd], [], [], 0)[0]:
            self.returncode = self._standby.status_of(self.pid)
        return self.returncode

    def wait(self, timeout_s: float = 60.0) -> int:
        """As `Popen.wait`."""
        if not select.select([self._pidfd], [], [], timeout_s)[0]:
            raise subprocess.TimeoutExpired(f"child {self.pid}", timeout_s)
        found = self.poll()
        assert found is not None
        return found

    def send_signal(self, number: int) -> None:
        """To it alone, whoever has its number afterwards."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Standby:
    """A fork server, and what it tells."""

    def __init__(self, modules: tuple[str, ...], env: Mapping[str, str] | None = None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="standby-"))
        ours, theirs = socket.socketpair()
        command = [
            *(sys.executable, "-m", "inference", "forkserver", "--fd", str(theirs.fileno())),
            *("--parent", str(os.getpid()), "--logs", str(self._folder), "--preload", ",".join(modules)),
        ]
        environment = child_environment(
            os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | dict(env or {}),
            home=self._folder,
            threads=1,
        )
        with theirs, (self._folder / "forkserver.log").open("wb") as out:
            self._process = subprocess.Popen(
                command, env=environment, cwd=ROOT, pass_fds=[theirs.fileno()], stdout=out, stderr=out
            )
        self._sock, self._lock = ours, threading.RLock()
        ours.settimeout(IMPORTS_S)
        self._inbox = wire.Inbox[FromForkServer](FromForkServer, lambda m: int(isinstance(m, Forked) and m.pid > 0))
        self._statuses: dict[int, int] = {}
        self._forked: list[Child] = []
        self._warm = False
        self._hear(lambda: self._warm)

    def fork(self, message: StartReplica | StartValidation, descriptors: list[int], log: Path) -> Child:
        """A child for the message, which writes into `log`."""
        with self._lock:
            kept = self._folder / newborn.log_name(message)
            kept.unlink(missing_ok=True)
            log.touch()
            os.link(log, kept)
            wire.send(self._sock, message, descriptors)
            self._hear(lambda: self._forked)
            return self._forked.pop()

    def status_of(self, pid: int) -> int:
        """The exit status of a child that has ended."""
        with self._lock:
            self._hear(lambda: pid in self._statuses)
            return self._statuses.pop(pid)

    def _hear(self, enough) -> None:
        end = time.monotonic() + IMPORTS_S
        while not enough():
            messages = self._inbox.receive(self._sock)
            assert messages is not None, (self._folder / "forkserver.log").read_text()[-2000:]
            assert time.monotonic() < end
            for message, descriptors in messages:
                if isinstance(message, Warm):
                    self._warm = True
                elif isinstance(message, Exited):
                    self._statuses[message.pid] = message.status
                elif isinstance(message, Forked):
                    assert message.pid, "the system has no process to give"
                    self._forked.append(Child(self, message.pid, descriptors[0]))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._sock.close()
        shutil.rmtree(self._folder, ignore_errors=True)


@functools.cache
def standby() -> Standby:
    """The one of this process; it ends with it."""
    found = Standby((*preload.MODULES, COMPILED))
    atexit.register(found.close)
    return found
