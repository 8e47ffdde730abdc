"""Files that a sandboxed conversion made enter the store: copied, hashed while copying, renamed in one step.

The folder belongs to a process that is not trusted: no link in it is followed, no name leaves it, no size is believed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import tempfile
from pathlib import Path, PurePosixPath

from inference.errors import Rejected
from inference.protocol.supervision import FileRef

SHA256 = re.compile(r"[0-9a-f]{64}")
PIECE_BYTES = 1 << 20
MAX_FILES = 2_000
MAX_TOTAL_BYTES = 64 << 30


def adopt(files: list[FileRef], folder: Path, artifacts_dir: Path) -> None:
    """Copy each of `files` from `folder` to artifacts_dir/blobs/ab/abcd... . Raises Rejected when one is not as told."""
    if len(files) > MAX_FILES or sum(max(file.size_bytes, 0) for file in files) > MAX_TOTAL_BYTES:
        raise _rejected("the conversion made too many or too large files")
    for file in files:
        _adopt_one(file, folder, artifacts_dir / "blobs")


def _rejected(reason: str) -> Rejected:
    return Rejected(reason, remedy="convert the model to safetensors yourself and upload that", check="convert")


def _adopt_one(file: FileRef, folder: Path, blobs: Path) -> None:
    parts = PurePosixPath(file.path).parts
    if not SHA256.fullmatch(file.sha256) or not parts or {"/", "..", "."} & set(parts) or "\0" in file.path:
        raise _rejected(f"the conversion named a file that cannot be taken: {file.path!r}")
    target = blobs / file.sha256[:2] / file.sha256
    if target.exists():
        return
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        source = _open_inside(folder, parts)
    except OSError as error:
        raise _rejected(f"the conversion did not leave {file.path!r}: {error.strerror}") from error
    try:
        _copy(source, file, target)
    finally:
        os.close(source)


def _open_inside(folder: Path, parts: tuple[str, ...]) -> int:
    """Open a regular file below `folder`, following no link on the way."""
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for name in parts[:-1]:
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = inner
        # Not blocking: a named pipe in its place must not hold the supervisor.
        found = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(found).st_mode):
        os.close(found)
        raise OSError(0, "not a regular file")
    return found


def _copy(source: int, file: FileRef, target: Path) -> None:
    descriptor, partial = tempfile.mkstemp(prefix=".adopt-", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as out:
            digest, size = hashlib.sha256(), 0
            while size <= file.size_bytes and (piece := os.read(source, PIECE_BYTES)):
                digest.update(piece)
                size += out.write(piece)
            out.flush()
            os.fsync(out.fileno())
        if size != file.size_bytes or digest.hexdigest() != file.sha256:
            raise _rejected(f"the conversion's {file.path!r} is not what its hash says")
        Path(partial).chmod(0o444)
        Path(partial).replace(target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(partial).unlink()
