"""What a validation run measures of its own process, and sizes as a person reads them."""

from __future__ import annotations

import os
from pathlib import Path

MAX_THREADS = 4


def threads() -> int:
    """How many CPU threads a validated model may use here."""
    return min(MAX_THREADS, len(os.sched_getaffinity(0)))


def peak_bytes() -> int:
    """The most resident memory that this process has had; 0 where the system does not say."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def size(size_bytes: int) -> str:
    """In the largest unit of which there is one."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes} bytes"
