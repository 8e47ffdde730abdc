"""The first moments of a forked child: tied to its parent, alone with its descriptors, then the entry by name.

Everything here runs in the child. Nothing of the fork server may be left open or left running in it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import gc
import importlib
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NoReturn

from inference.host import processes
from inference.protocol.child import StartReplica, StartValidation, ToForkServer, replica_log, short

CONTROL_FD = 3
LISTENER_FD = 4
ROTATE_BYTES = 1 << 20
_PARKED_FD = 64


def log_name(message: ToForkServer) -> str:
    """The child's log file: the same for every life of one replica."""
    if isinstance(message, StartValidation):
        return f"validation-{short(message.spec.run)}.log"
    return replica_log(message.spec.id, message.spec.generation)


def live(message: ToForkServer, descriptors: list[int], *, entry: str, log: Path, parent: int) -> NoReturn:
    """Never returns.

    1. die with the parent  2. own session, default signals  3. only std, control and listener stay open
    4. own folder  5. the entry, whose result is the exit code
    """
    code = 1
    try:
        processes.die_with_parent(parent)
        os.setsid()
        _default_signals()
        _arrange(descriptors, log)
        with contextlib.suppress(OSError):
            processes.be_killed_first()
        _settle(message.paths.work_dir)
        gc.enable()
        code = _enter(message, entry, len(descriptors))
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except BaseException:  # noqa: BLE001 (whatever it was, this process ends here and its log says why)
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code & 0xFF)


def _enter(message: ToForkServer, entry: str, descriptor_count: int) -> int:
    module = importlib.import_module(entry)
    if isinstance(message, StartReplica):
        return int(module.run_replica(message, CONTROL_FD, LISTENER_FD) or 0)
    assert descriptor_count == 1
    return int(module.run_validation(message, CONTROL_FD) or 0)


def _default_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _arrange(descriptors: list[int], log: Path) -> None:
    """Put null, log, log, control, listener on 0..4 and close everything above."""
    rotate(log)
    null = os.open(os.devnull, os.O_RDONLY)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    parked = [fcntl.fcntl(number, fcntl.F_DUPFD, _PARKED_FD) for number in (null, out, out, *descriptors)]
    for target, number in enumerate(parked):
        os.dup2(number, target, inheritable=target < CONTROL_FD)
    os.closerange(len(parked), os.sysconf("SC_OPEN_MAX"))
    faulthandler.enable(file=2)


def rotate(log: Path) -> None:
    """Keep one older log file; a new life begins a new one when the last has grown."""
    with contextlib.suppress(OSError):
        if log.stat().st_size > ROTATE_BYTES:
            log.replace(log.with_suffix(".log.1"))


def _settle(work_dir: str) -> None:
    os.umask(0o077)
    os.chdir(work_dir)
    os.environ["HOME"] = os.environ["TMPDIR"] = work_dir
    # Some library asked for it while it was imported, and it is remembered.
    tempfile.tempdir = None
