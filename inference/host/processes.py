"""The Linux calls that tie processes together: parent-death signal, subreaper, out-of-memory order, threads."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Container, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
CHILD_OOM_SCORE = 500


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def die_with_parent(parent_pid: int) -> None:
    """Be killed when the thread that made this process ends; end at once if `parent_pid` is gone already."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(0)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies, so that none can hide."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def be_killed_first() -> None:
    """When memory runs out, the kernel takes this process before its supervisor."""
    Path("/proc/self/oom_score_adj").write_text(str(CHILD_OOM_SCORE), encoding="ascii")


def thread_count() -> int:
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208 (called between fork and exec-like moments: keep it bare)


def child_pids() -> list[int]:
    """Direct children of this process's main thread, adopted ones too."""
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii")
    return [int(pid) for pid in text.split()]


def resident_bytes(pid: int) -> int:
    """Resident memory of `pid`; 0 when it is gone."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def bury_orphans(known: Container[int]) -> None:
    """Kill and reap the children that this process has got from dead ones; `known` are its own."""
    for pid in child_pids():
        if pid not in known:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)


def end_leftovers(homes: Sequence[Path]) -> list[int]:
    """Kill processes of this user that were started with a HOME in `homes`; returns their pids.

    For the folders of a supervisor that was killed together with its fork server: nobody was left to end what its
    children had started.
    """
    marks = tuple(f"HOME={home}".encode() for home in homes)
    ended: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        try:
            values = (folder / "environ").read_bytes().split(b"\0")
            if pid != os.getpid() and any(value.startswith(marks) for value in values):
                os.kill(pid, signal.SIGKILL)
                ended.append(pid)
        except OSError:
            continue
    return ended
