"""Logs of children stay bounded: a file that has grown is copied aside once and begun anew."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

MAX_LOG_BYTES = 4 << 20
MAX_FILES = 500


def bound_logs(folder: Path, *, max_bytes: int = MAX_LOG_BYTES, max_files: int = MAX_FILES) -> None:
    """Cut files over `max_bytes`, keeping one older copy; remove the oldest files above `max_files`.

    Children append (O_APPEND), so a file can be cut while it is written to.
    """
    found: list[tuple[float, Path]] = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            state = path.lstat()
            found.append((state.st_mtime, path))
            if path.suffix == ".log" and state.st_size > max_bytes:
                _cut(path, max_bytes)
    found.sort(reverse=True)
    for _, path in found[max_files:]:
        path.unlink(missing_ok=True)


def _cut(path: Path, keep_bytes: int) -> None:
    with path.open("rb+") as file:
        file.seek(-keep_bytes, 2)
        with path.with_suffix(".log.1").open("wb") as older:
            shutil.copyfileobj(file, older)
        file.truncate(0)
