"""Uploaded zip and tar files, unpacked member by member into a sink; nothing here ever chooses a path on disk.

Only regular files; entries, bytes, ratio and paths are bounded before and while reading (robustness rules B1).
"""

from __future__ import annotations

import gzip
import lzma
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, NoReturn

from inference.artifacts.paths import check_paths, member_path, shown, strip_top
from inference.artifacts.store import Store
from inference.artifacts.tarball import TarMember, read_tar
from inference.artifacts.zips import open_zip
from inference.errors import Rejected
from inference.protocol.supervision import FileRef

CHUNK_BYTES = 1 << 20
RATIO_FLOOR_BYTES = 10 << 20
Sink = Callable[[str, Iterator[bytes]], None]


class Kind(StrEnum):
    """Containers that people pack a model's folder into."""

    ZIP = "zip"
    TAR = "tar"
    TAR_GZ = "tar.gz"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one archive. ratio: bytes that may come out per byte that went in (from 10 MiB on)."""

    entries: int = 2000
    total_bytes: int = 20 << 30
    ratio: int = 100


def kind_of(path: Path) -> Kind | None:
    """The container's kind when `path` is one to unpack; None for anything else.

    A .pt2, TorchScript or torch weights file, and a Keras or NumPy archive, is a zip too, but is itself the model.
    """
    with path.open("rb") as source:
        head = source.read(512)
    if head.startswith(b"\x1f\x8b"):
        return Kind.TAR_GZ
    if head[257:262] == b"ustar":
        return Kind.TAR
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return None if _is_model(path) else Kind.ZIP
    return None


def _is_model(path: Path) -> bool:
    with open_zip(path, entries=1 << 16) as archive:
        names = [name.rsplit("/", 1)[-1] for name in archive.namelist()]
    marks = {"archive_format", "data.pkl", "constants.pkl", "model.weights.h5"}
    return bool(marks.intersection(names)) or (bool(names) and all(name.endswith(".npy") for name in names))


def unpack(path: Path, sink: Sink, limits: Limits = Limits()) -> list[str]:
    """Gives every regular file of the archive to `sink` as (path, chunks) and answers the paths, in order.

    `sink` must read each iterator to its end before it returns. Raises Rejected at the first rule that is broken;
    what `sink` has kept until then is its own to throw away.
    """
    kind = kind_of(path)
    if kind is None:
        _refuse("this is not a zip or tar file that could be unpacked", "Upload a .zip, .tar or .tar.gz file.")
    meter = _Meter(path.stat().st_size, limits)
    try:
        if kind is Kind.ZIP:
            return _unpack_zip(path, sink, meter)
        with path.open("rb") as raw:
            source = gzip.GzipFile(fileobj=raw) if kind is Kind.TAR_GZ else raw
            return _unpack_tar(source, sink, meter)  # type: ignore[arg-type]
    except (zipfile.BadZipFile, EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, NotImplementedError):
        _refuse("the archive is damaged or cut short", "Pack the folder again and upload the new file.")


def unpack_into(store: Store, path: Path, limits: Limits = Limits()) -> list[FileRef]:
    """Streams every member into the store; answers the files, a single common top folder stripped.

    Raises Rejected, StorageFull. Blobs of an archive that fails half-way are garbage, collected later.
    """
    files: list[FileRef] = []

    def keep(name: str, chunks: Iterator[bytes]) -> None:
        sha256, size = store.put_stream(chunks)
        files.append(FileRef(path=name, size_bytes=size, sha256=sha256))

    unpack(path, keep, limits)
    top = strip_top(file.path for file in files)
    kept = [FileRef(file.path[len(top) :], file.size_bytes, file.sha256) for file in files]
    return sorted(kept, key=lambda file: file.path)


class _Meter:
    """Counts what comes out of an archive and stops it at its limits."""

    def __init__(self, packed_bytes: int, limits: Limits) -> None:
        self.limits = limits
        self.allowed = min(limits.total_bytes, max(RATIO_FLOOR_BYTES, packed_bytes * limits.ratio))
        self.seen = 0
        self.entries = 0

    def enter(self, size_bytes: int) -> None:
        self.entries += 1
        if self.entries > self.limits.entries:
            _refuse(
                f"the archive has more than {self.limits.entries} entries", "Leave out what the model does not need."
            )
        if size_bytes > self.allowed - self.seen:
            self._bomb()

    def count(self, size_bytes: int) -> None:
        self.seen += size_bytes
        if self.seen > self.allowed:
            self._bomb()

    def _bomb(self) -> NoReturn:
        _refuse(
            f"the archive unpacks to more than {self.allowed} bytes, {self.limits.ratio} times its own size or the most "
            "that a version may have",
            "Upload the files themselves instead of an archive.",
        )


def _unpack_zip(path: Path, sink: Sink, meter: _Meter) -> list[str]:
    with open_zip(path, entries=meter.limits.entries) as archive:
        members = [info for info in archive.infolist() if not _is_folder(info) and not is_litter(info.filename)]
        for info in members:
            _check_zip_member(info)
        check_paths(info.filename for info in members)
        for info in members:
            meter.enter(info.file_size)
            with archive.open(info) as source:
                sink(info.filename, _metered(iter(lambda: source.read(CHUNK_BYTES), b""), meter))
    return [info.filename for info in members]


def _is_folder(info: zipfile.ZipInfo) -> bool:
    if not info.filename.endswith("/"):
        return False
    member_path(info.filename.rstrip("/"))
    return info.file_size == 0


def _check_zip_member(info: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in {0, stat.S_IFREG}:
        _refuse(f"{shown(info.filename)} is a link or a device, not a file", "Pack plain files only.")


def is_litter(path: str) -> bool:
    """Files that desktops add to archives and nobody means: resource forks and folder settings."""
    name = path.rsplit("/", 1)[-1]
    return path.startswith("__MACOSX/") or name in {".DS_Store", "Thumbs.db", "desktop.ini"} or name.startswith("._")


def _unpack_tar(source: BinaryIO, sink: Sink, meter: _Meter) -> list[str]:
    paths: list[str] = []

    def take(member: TarMember, chunks: Iterator[bytes]) -> None:
        meter.enter(member.size_bytes)
        name = member.name.removeprefix("./")
        if member.is_folder:
            if name.rstrip("/") not in {"", "."}:
                member_path(name.rstrip("/"))
            return
        if is_litter(name):
            return
        paths.append(name)
        check_paths(paths[-1:])
        sink(name, chunks)

    read_tar(_metered_reader(source, meter), take)
    return check_paths(paths)


def _metered(chunks: Iterable[bytes], meter: _Meter) -> Iterator[bytes]:
    for chunk in chunks:
        meter.count(len(chunk))
        yield chunk


def _metered_reader(source: BinaryIO, meter: _Meter) -> Callable[[int], bytes]:
    def read(size: int) -> bytes:
        data = source.read(size)
        meter.count(len(data))
        return data

    return read


def _refuse(reason: str, remedy: str) -> NoReturn:
    raise Rejected(reason, remedy=remedy, check="archive")
