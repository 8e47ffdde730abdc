"""The Linux calls that tie processes together: parent-death signal, subreaper, out-of-memory order, threads."""

from __future__ import annotations

import ctypes
import os
import signal
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
    """Direct children of this (single-threaded) process, adopted ones too."""
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii")
    return [int(pid) for pid in text.split()]


def resident_bytes(pid: int) -> int:
    """Resident memory of `pid`; 0 when it is gone."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
