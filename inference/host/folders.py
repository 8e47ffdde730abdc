"""The supervisor's folders and sockets: private (0700), owned by this user, one supervisor per data folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import stat
from pathlib import Path

from inference.config import BadSetting, SupervisorConfig
from inference.host.processes import end_leftovers
from inference.protocol.child import short

MAX_SOCKET_PATH_BYTES = 107
BACKLOG = 1024


class AlreadyRunning(Exception):
    """Another supervisor owns this data folder."""


class Folders:
    """Paths under the data and runtime folders. `prepare` makes them; `lock` keeps a second supervisor out."""

    def __init__(self, config: SupervisorConfig) -> None:
        self.socket = config.socket
        self.runtime = config.runtime_dir
        self.listeners = config.runtime_dir / "r"
        self.host = config.data_dir / "host"
        self.work = config.data_dir / "work"
        self.logs = config.data_dir / "logs"
        self.home = self.host / "home"
        self.wanted = self.host / "wanted.json"
        self.artifacts = config.artifacts_dir
        self._lock = -1
        self._count = 0

    def lock(self) -> None:
        """Raises AlreadyRunning. Held until this process ends, however it ends."""
        private(self.host)
        self._lock = os.open(self.host / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise AlreadyRunning(f"another supervisor runs in {self.host.parent}: stop it first") from None

    def prepare(self) -> None:
        """Only under the lock: what a killed supervisor left behind is removed."""
        for folder in (self.runtime, self.listeners, self.work, self.logs, self.home):
            private(folder)
        end_leftovers([self.work, self.home])
        for left in self.work.iterdir():
            remove(left)
        for left in self.listeners.iterdir():
            left.unlink(missing_ok=True)

    def new_work(self, name: str) -> Path:
        """A fresh empty folder for one child."""
        self._count += 1
        folder = self.work / f"{short(name)}-{self._count}"
        folder.mkdir(mode=0o700)
        return folder

    def listener_path(self, replica_id: str, generation: int) -> Path:
        """Stable over restarts: a replica's address is its id and generation."""
        return self.listeners / f"{short(replica_id)}-{generation}.sock"


def private(folder: Path) -> None:
    """Make `folder` (0700) or check that it is this user's own. Raises BadSetting."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise BadSetting(f"{folder}: must be a folder that belongs to this user")
    if found.st_mode & 0o077:
        folder.chmod(0o700)


def remove(path: Path) -> None:
    """Remove a file, link or folder; what cannot be removed is left for the next start."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def listen(path: Path, *, backlog: int = BACKLOG) -> socket.socket:
    """A listening unix stream socket (0600) at `path`. Raises BadSetting when the path is too long."""
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise BadSetting(
            f"{path}: longer than {MAX_SOCKET_PATH_BYTES} bytes; set SERINUS_RUNTIME_DIR to a shorter folder"
        )
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        # Before bind: the socket is never there with wider rights, not for a moment.
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(str(path))
        path.chmod(0o600)
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock
