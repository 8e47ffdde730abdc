"""Where the bytes of files and journals lie: a folder beside the artifacts, which every console and worker shares.

A file is written under another name, synced, and moved to its own; names are made here, never by a client.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from django.conf import settings

from inference.errors import StorageFull, TooLarge
from registry.storage import store as artifacts

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
GRACE_S = 24 * 3600.0


def new_id(prefix: str) -> str:
    return f"{prefix}{secrets.token_hex(12)}"


def folder() -> Path:
    found: Path = settings.ARTIFACTS_DIR / "files"
    found.mkdir(mode=0o700, parents=True, exist_ok=True)
    return found


def path_of(public_id: str) -> Path:
    return folder() / public_id


def journals_of(public_id: str) -> Path:
    return folder() / "journals" / public_id


def forget(public_id: str) -> None:
    path_of(public_id).unlink(missing_ok=True)


def forget_journals(public_id: str) -> None:
    shutil.rmtree(journals_of(public_id), ignore_errors=True)


def require_free(size_bytes: int) -> None:
    """Raises StorageFull."""
    artifacts().require_free(size_bytes)


class NewFile:
    """A file that is being written; `keep` gives it its name, else it is gone at the end. Use as a context manager."""

    def __init__(self, public_id: str, *, limit_bytes: int | None = None) -> None:
        self.public_id = public_id
        self.size_bytes = 0
        self._limit_bytes = limit_bytes
        self._hash = hashlib.sha256()
        self._part = folder() / f"{public_id}.{secrets.token_hex(4)}.part"
        self._file = os.fdopen(os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        """Raises TooLarge, StorageFull."""
        self.size_bytes += len(data)
        if self._limit_bytes is not None and self.size_bytes > self._limit_bytes:
            raise TooLarge(f"a file may have at most {self._limit_bytes} bytes: split it into several batches")
        self._hash.update(data)
        with full_disk():
            self._file.write(data)

    def keep(self) -> None:
        """The bytes are on the disk, under their name, when this returns. Raises StorageFull."""
        with full_disk():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._part.replace(path_of(self.public_id))
            sync_folder(folder())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        self._part.unlink(missing_ok=True)


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """A disk without room becomes StorageFull."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull from error
        raise


def sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def strays(known: set[str], *, grace_s: float = GRACE_S) -> list[Path]:
    """Files and folders of journals older than `grace_s` whose id is not `known`: what a kill has left behind."""
    found = [path for path in folder().iterdir() if path.name != "journals"]
    if (journals := folder() / "journals").is_dir():
        found += journals.iterdir()
    old = time.time() - grace_s
    gone = []
    for path in found:
        with contextlib.suppress(FileNotFoundError):
            if path.name not in known and path.stat().st_mtime < old:
                gone.append(path)
    return gone
