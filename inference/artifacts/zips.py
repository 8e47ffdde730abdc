"""Opening a foreign zip file: the directory is bounded and consistent before any member is read."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import BinaryIO, NoReturn

from inference.artifacts.paths import shown
from inference.errors import Rejected

MAX_DIRECTORY_BYTES = 8 << 20
_END = b"PK\x05\x06"
_END64 = b"PK\x06\x07"
_LOCAL_BYTES = 30
_ENCRYPTED = 0x1 | 0x40 | 0x2000


def open_zip(path: Path, *, entries: int) -> zipfile.ZipFile:
    """The zip file at `path`, after its directory was found to be bounded, without overlap, plain and unencrypted.

    Members are stored or deflated, their names hold no NUL and are no duplicates. Raises Rejected.
    """
    with path.open("rb") as source:
        _check_directory(source, entries)
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error, UnicodeDecodeError):
        _refuse("the zip file is damaged or cut short", "Make the file again and upload it anew.")
    try:
        _check_members(archive.infolist(), entries, path.stat().st_size)
    except BaseException:
        archive.close()
        raise
    return archive


def _check_directory(source: BinaryIO, entries: int) -> None:
    source.seek(0, 2)
    size = source.tell()
    source.seek(max(0, size - (1 << 16) - 22))
    tail = source.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < 22:
        _refuse("the zip file is damaged or cut short", "Make the file again and upload it anew.")
    count, length = struct.unpack_from("<HI", tail, at + 10)
    if length == 0xFFFFFFFF or count == 0xFFFF:
        if tail[max(0, at - 20) : at - 16] != _END64:
            _refuse("the zip file's directory is inconsistent", "Make the file again and upload it anew.")
        (offset,) = struct.unpack_from("<Q", tail, at - 20 + 8)
        if offset > size - 56:
            _refuse("the zip file is damaged or cut short", "Make the file again and upload it anew.")
        source.seek(offset)
        count, length = struct.unpack("<QQ", source.read(56)[32:48])
    if count > entries:
        _refuse(f"the zip file has more than {entries} entries", "Leave out what the model does not need.")
    if length > MAX_DIRECTORY_BYTES:
        _refuse("the zip file's directory is too large", "Leave out what the model does not need.")


def _check_members(infos: list[zipfile.ZipInfo], entries: int, size: int) -> None:
    if len(infos) > entries:
        _refuse(f"the zip file has more than {entries} entries", "Leave out what the model does not need.")
    seen: set[str] = set()
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        name = info.filename
        if "\0" in info.orig_filename:
            _refuse(f"the zip member {shown(name)} has a NUL in its name", "Pack the folder again.")
        if name in seen:
            _refuse(f"the zip file holds {shown(name)} twice", "Pack the folder again.")
        seen.add(name)
        if info.flag_bits & _ENCRYPTED:
            _refuse("the zip file is encrypted", "Pack the folder again without a password.")
        if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            _refuse(f"the zip member {shown(name)} is packed in an unusual way", "Pack with 'stored' or 'deflate'.")
        if info.header_offset < end:
            _refuse("members of the zip file overlap", "Pack the folder again.")
        end = info.header_offset + _LOCAL_BYTES + info.compress_size
        if end > size:
            _refuse("the zip file is damaged or cut short", "Make the file again and upload it anew.")


def read_member(archive: zipfile.ZipFile, name: str, limit_bytes: int) -> bytes:
    """The bytes of one member. Raises Rejected when it is longer than `limit_bytes` or damaged."""
    info = archive.getinfo(name)
    if info.file_size > limit_bytes:
        _refuse(f"{shown(name)} is larger than {limit_bytes} bytes", "Export the model again.")
    try:
        with archive.open(info) as source:
            data = source.read(limit_bytes + 1)
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, struct.error):
        _refuse(f"{shown(name)} is damaged", "Export the model again and upload it anew.")
    except zipfile.zlib.error:  # type: ignore[attr-defined]
        _refuse(f"{shown(name)} is damaged", "Export the model again and upload it anew.")
    if len(data) != info.file_size:
        _refuse(f"{shown(name)} is damaged", "Export the model again and upload it anew.")
    return data


def _refuse(reason: str, remedy: str) -> NoReturn:
    raise Rejected(reason, remedy=remedy, check="archive")
