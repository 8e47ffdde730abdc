"""`python -m inference forkserver`: imports everything, computes nothing, has one thread, and forks children.

It is exec'd by the supervisor with a scrubbed environment, hears one socket pair and dies with the supervisor. It
reaps its children, ends what they leave behind, and reports both.
"""

from __future__ import annotations

import argparse
import gc
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn

from inference.host import newborn, preload, processes, wire
from inference.protocol.child import Exited, Forked, Standby, StartReplica, StartValidation, ToForkServer


def main(argv: list[str]) -> int:
    args = _arguments(argv)
    processes.die_with_parent(args.parent)
    processes.adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()
    found = preload.preload(name for name in args.preload.split(",") if name)
    _tell(found)
    gc.collect()
    # Pages of what was imported stay shared: the collector of a child never touches them.
    gc.freeze()
    server = ForkServer(socket.socket(fileno=args.fd), entry=args.entry, logs=Path(args.logs))
    server.run(found.import_ms)
    return 0


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m inference forkserver")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--logs", required=True)
    parser.add_argument("--entry", default=preload.ENTRY)
    parser.add_argument("--preload", default=",".join(preload.MODULES))
    return parser.parse_args(argv)


def _tell(found: preload.Preloaded) -> None:
    lines = [f"imported in {found.import_ms:.0f} ms, {processes.thread_count()} thread"]
    lines += [f"not imported: {name} ({why})" for name, why in found.missing.items()]
    lines += [f"WARNING: importing {name} started a thread; children may hang" for name in found.threaded]
    sys.stderr.write("".join(f"forkserver: {line}\n" for line in lines))
    sys.stderr.flush()


def carried(message: ToForkServer) -> int:
    """Descriptors beside a message: control, and a replica's listener."""
    return 2 if isinstance(message, StartReplica) else 1


class ForkServer:
    """The loop: a message forks, SIGCHLD reaps, the end of the stream ends everything."""

    def __init__(self, sock: socket.socket, *, entry: str, logs: Path) -> None:
        self._sock = sock
        self._entry = entry
        self._logs = logs
        self._inbox: wire.Inbox[ToForkServer] = wire.Inbox(ToForkServer, carried)
        self._children: set[int] = set()

    def run(self, import_ms: float) -> None:
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        wire.send(self._sock, Standby(import_ms), [])
        heard = self._sock.fileno()
        while True:
            ready, _, _ = select.select([heard, wake_read], [], [])
            if wake_read in ready:
                os.read(wake_read, 4096)
                self._reap()
            if heard in ready and not self._obey():
                return

    def _obey(self) -> bool:
        messages = self._inbox.receive(self._sock)
        if messages is None:
            return False
        for message, descriptors in messages:
            self._fork(message, descriptors)
        return True

    def _fork(self, message: ToForkServer, descriptors: list[int]) -> None:
        token = message.spec.run if isinstance(message, StartValidation) else message.spec.id
        sys.stderr.flush()
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            sys.stderr.write(f"forkserver: cannot fork: {error}\n")
            self._close(descriptors)
            wire.send(self._sock, Forked(token, 0), [])
            return
        if pid == 0:
            self._become(message, descriptors, parent)
        self._children.add(pid)
        self._close(descriptors)
        # Taken before anybody reaps it, so it can never mean another process.
        pidfd = os.pidfd_open(pid)
        wire.send(self._sock, Forked(token, pid), [pidfd])
        os.close(pidfd)

    def _become(self, message: ToForkServer, descriptors: list[int], parent: int) -> NoReturn:
        log = self._logs / newborn.log_name(message)
        newborn.live(message, descriptors, entry=self._entry, log=log, parent=parent)

    @staticmethod
    def _close(descriptors: list[int]) -> None:
        for descriptor in descriptors:
            os.close(descriptor)

    def _reap(self) -> None:
        while self._children or processes.child_pids():
            try:
                # Left as a zombie for a moment: its number stays taken while its group is ended.
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                break
            self._bury(ended.si_pid)
        self._end_orphans()

    def _bury(self, pid: int) -> None:
        known = pid in self._children
        if known:
            _kill_group(pid)
        _, status = os.waitpid(pid, 0)
        if known:
            self._children.discard(pid)
            wire.send(self._sock, Exited(pid, os.waitstatus_to_exitcode(status)), [])

    def _end_orphans(self) -> None:
        for pid in processes.child_pids():
            if pid not in self._children:
                os.kill(pid, signal.SIGKILL)


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
