"""The content-addressed store: a blob is named by its sha256, published whole or not at all, never changed.

Layout: ROOT/blobs/ab/abcdef... (mode 0444) and ROOT/tmp/ on the same file system, so that publishing is one rename.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from inference.artifacts.paths import check_paths, shown
from inference.errors import Malformed, NotFound, Rejected, StorageFull, TooLarge
from inference.protocol.supervision import FileRef

CHUNK_BYTES = 1 << 20
MAX_FILE_BYTES = 20 << 30
RESERVE_BYTES = 64 << 20
GRACE_S = 3600.0
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Store:
    """Blobs under one folder. Any number of processes may use it at once; every method may raise StorageFull.

    reserve_bytes: space that stays free for everything else on that file system.
    """

    def __init__(self, root: Path, *, reserve_bytes: int = RESERVE_BYTES) -> None:
        self.root = root
        self.reserve_bytes = reserve_bytes

    def path(self, sha256: str) -> Path:
        """Where the blob lies or would lie. Raises Malformed when that is no sha256 in small hex digits."""
        if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
            raise Malformed("a sha256 is 64 small hexadecimal digits")
        return self.root / "blobs" / sha256[:2] / sha256

    def has(self, sha256: str) -> bool:
        return self.path(sha256).is_file()

    def size(self, sha256: str) -> int:
        """Bytes of a blob. Raises NotFound."""
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError:
            raise NotFound("the store has no file with this sha256") from None

    def free_bytes(self) -> int:
        self._make(self.root)
        return max(0, shutil.disk_usage(self.root).free - self.reserve_bytes)

    def require_free(self, size_bytes: int) -> None:
        """Raises StorageFull when `size_bytes` more would not fit."""
        if size_bytes > self.free_bytes():
            raise StorageFull

    def put_stream(
        self, chunks: Iterable[bytes], *, sha256: str = "", limit_bytes: int = MAX_FILE_BYTES
    ) -> tuple[str, int]:
        """Writes a blob and answers (sha256, size). Nothing is left behind when it fails.

        1. Writes to a temporary file on the store's file system. 2. Compares with `sha256` when that is given
        (Rejected). 3. Publishes. Raises TooLarge beyond `limit_bytes`.
        """
        with self._temporary() as (descriptor, temporary):
            digest, size = self._write(descriptor, chunks, limit_bytes)
            _expect(sha256, digest)
            self._publish(temporary, digest)
        return digest, size

    def adopt(self, temporary: Path, *, sha256: str = "") -> tuple[str, int]:
        """Takes a finished file over (it is gone from its place) and answers (sha256, size).

        A file on another file system is copied. Raises Rejected when its content is not `sha256`.
        """
        digest, size = hash_file(temporary)
        _expect(sha256, digest)
        try:
            same = temporary.stat().st_dev == self._make(self.root / "blobs").stat().st_dev
            if same:
                self._publish(temporary, digest)
            else:
                with temporary.open("rb") as source:
                    self.put_stream(_chunks(source.fileno()), sha256=digest)
                temporary.unlink()
        except OSError as error:
            _raise(error)
        return digest, size

    def targets(self, files: Iterable[FileRef]) -> list[Path]:
        """The blobs behind `files`: what a sandbox must let its process read when they are laid out as links."""
        return sorted({self.path(file.sha256) for file in files})

    def lay_out(self, files: Iterable[FileRef], folder: Path, *, copy: bool = False) -> None:
        """Makes `folder` hold `files` as symbolic links to their blobs (or as copies).

        Never hard links: a process that may write to `folder` would own the blob itself. Raises Rejected for bad
        paths and NotFound for a blob that is not here.
        """
        listed = list(files)
        check_paths(file.path for file in listed)
        for file in listed:
            if self.size(file.sha256) != file.size_bytes:
                _changed(file)
        try:
            for file in listed:
                place = folder / file.path
                place.parent.mkdir(parents=True, exist_ok=True)
                self._lay(self.path(file.sha256), place, copy=copy)
        except OSError as error:
            _raise(error)

    def verify(self, files: Iterable[FileRef], folder: Path) -> None:
        """Reads every file under `folder` and compares its sha256 and size. Raises Rejected at the first difference."""
        for file in files:
            try:
                digest, size = hash_file(folder / file.path)
            except FileNotFoundError:
                raise Rejected(
                    f"the file {shown(file.path)} is missing", remedy="Upload the version again.", check="hashes"
                ) from None
            if digest != file.sha256 or size != file.size_bytes:
                _changed(file)

    def collect(self, digests: Iterable[str], *, grace_s: float = GRACE_S) -> int:
        """Deletes the given unreferenced blobs and answers the bytes won.

        One that was published or asked for again within `grace_s` stays: its version may be on the way.
        """
        freed = 0
        for digest in digests:
            with contextlib.suppress(FileNotFoundError):
                path = self.path(digest)
                stat = path.stat()
                if time.time() - stat.st_mtime >= grace_s:
                    path.unlink()
                    freed += stat.st_size
        return freed

    def sweep(self, *, grace_s: float = GRACE_S) -> int:
        """Deletes what killed writers left in ROOT/tmp longer than `grace_s` ago; answers how many files."""
        count = 0
        for path in (self.root / "tmp").glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime >= grace_s:
                    path.unlink()
                    count += 1
        return count

    def _make(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[tuple[int, Path]]:
        try:
            descriptor, name = tempfile.mkstemp(dir=self._make(self.root / "tmp"), prefix="put-")
        except OSError as error:
            _raise(error)
        try:
            yield descriptor, Path(name)
        except OSError as error:
            _raise(error)
        finally:
            os.close(descriptor)
            Path(name).unlink(missing_ok=True)

    def _write(self, descriptor: int, chunks: Iterable[bytes], limit_bytes: int) -> tuple[str, int]:
        digest, size, checked = hashlib.sha256(), 0, 0
        for chunk in chunks:
            size += len(chunk)
            if size > limit_bytes:
                raise TooLarge(f"the file is larger than {limit_bytes} bytes")
            if size >= checked:
                self.require_free(len(chunk))
                checked = size + 16 * CHUNK_BYTES
            digest.update(chunk)
            view = memoryview(chunk)
            while view:
                view = view[os.write(descriptor, view) :]
        return digest.hexdigest(), size

    def _publish(self, temporary: Path, sha256: str) -> None:
        """1. Makes the bytes durable. 2. Takes the right to write away. 3. Renames. 4. Makes the name durable."""
        place = self.path(sha256)
        self._make(place.parent)
        if place.is_file():
            with contextlib.suppress(FileNotFoundError):
                _touch(place)
                temporary.unlink()
                return
        _sync(temporary)
        temporary.chmod(0o444)
        temporary.replace(place)
        _touch(place)
        _sync(place.parent)

    def _lay(self, blob: Path, place: Path, *, copy: bool) -> None:
        if copy:
            shutil.copyfile(blob, place)
            place.chmod(0o444)
            return
        place.symlink_to(blob.resolve())


def hash_file(path: Path) -> tuple[str, int]:
    """(sha256, size in bytes) of a file's content."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as source:
        for chunk in _chunks(source.fileno()):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def _chunks(descriptor: int) -> Iterator[bytes]:
    while chunk := os.read(descriptor, CHUNK_BYTES):
        yield chunk


def _touch(path: Path) -> None:
    # Another user's process may have published it; then its own time counts for the grace period.
    with contextlib.suppress(PermissionError):
        os.utime(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _expect(wanted: str, found: str) -> None:
    if wanted and wanted != found:
        raise Rejected(
            f"the content has the sha256 {found[:12]}..., not {wanted[:12]}... as was said",
            remedy="Upload the file again.",
            check="hashes",
        )


def _changed(file: FileRef) -> NoReturn:
    raise Rejected(
        f"artifact changed: {shown(file.path)} no longer has the content it was uploaded with",
        remedy="Upload the version again; somebody or something has changed the store.",
        check="hashes",
    )


def _raise(error: OSError) -> NoReturn:
    if error.errno in _FULL:
        raise StorageFull from error
    raise error
