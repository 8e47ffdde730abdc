"""Files that are there whole or not at all, readable by their owner alone."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def put(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Puts them in the place of what was there, and makes the folder if need be. durable: they outlast a loss of power
    too. Blocks while it writes. Raises OSError, and leaves what was there.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
