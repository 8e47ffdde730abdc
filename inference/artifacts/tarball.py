"""A tar reader of our own: a stream of regular files and folders. Links, devices, sparse files are refused by type.

The standard library's reader gathers extended headers of any length in memory and follows links; this one knows
only what a packed model folder needs. Source: POSIX.1-2001 ustar and pax, GNU long names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

from inference.artifacts.paths import shown
from inference.errors import Rejected

BLOCK = 512
CHUNK_BYTES = 1 << 20
MAX_EXTENDED_BYTES = 64 << 10
Read = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class TarMember:
    """One member: its name as written, its size in bytes, and whether it is a folder."""

    name: str
    size_bytes: int
    is_folder: bool


def read_tar(read: Read, take: Callable[[TarMember, Iterator[bytes]], None]) -> None:
    """Calls `take` with each member and its chunks, which it need not read to the end. Raises Rejected."""
    extended: dict[str, str] = {}
    while True:
        header = _exactly(read, BLOCK)
        if not any(header):
            return
        size = _number(header[124:136])
        _check_sum(header)
        kind = header[156:157]
        if kind in b"xgL":
            extended |= _extended(kind, _padded(read, size))
            continue
        name = extended.get("path") or _name(header)
        size = int(extended.get("size", size))
        extended = {}
        _check_kind(kind, name)
        is_folder = kind == b"5" or name.endswith("/")
        if is_folder and size:
            _damaged()
        chunks = _chunks(read, size)
        take(TarMember(name=name, size_bytes=size, is_folder=is_folder), chunks)
        for _ in chunks:
            pass


def _check_kind(kind: bytes, name: str) -> None:
    if kind in {b"1", b"2"}:
        _refuse(f"{shown(name)} is a link", "Pack the files themselves (tar --dereference).")
    if kind not in {b"0", b"\0", b"5"}:
        _refuse(f"{shown(name)} is a device or another special file", "Pack plain files only.")


def _extended(kind: bytes, data: bytes) -> dict[str, str]:
    if kind == b"L":
        return {"path": _text(data.rstrip(b"\0"))}
    found: dict[str, str] = {}
    while data:
        length_text, separator, _ = data.partition(b" ")
        if not separator or not length_text.isdigit() or len(length_text) > 8:
            _damaged()
        length = int(length_text)
        if not len(length_text) + 2 < length <= len(data) or data[length - 1 : length] != b"\n":
            _damaged()
        key, separator, value = data[len(length_text) + 1 : length - 1].partition(b"=")
        data = data[length:]
        if key.startswith(b"GNU.sparse"):
            _refuse("the tar file holds a sparse file", "Pack plain files only.")
        if kind == b"x" and key in {b"path", b"size"} and separator:
            found[key.decode()] = _text(value)
    if not found.get("size", "0").isdecimal() or len(found.get("size", "")) > 15:
        _damaged()
    return found


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _number(field: bytes) -> int:
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if digits and set(digits) - set(b"01234567"):
        _damaged()
    return int(digits or b"0", 8)


def _check_sum(header: bytes) -> None:
    if _number(header[148:156]) != sum(header[:148]) + 8 * 32 + sum(header[156:]):
        _damaged()


def _chunks(read: Read, size: int) -> Iterator[bytes]:
    left = size
    while left:
        chunk = read(min(left, CHUNK_BYTES))
        if not chunk:
            _damaged()
        left -= len(chunk)
        yield chunk
    if size % BLOCK:
        _exactly(read, BLOCK - size % BLOCK)


def _padded(read: Read, size: int) -> bytes:
    if size > MAX_EXTENDED_BYTES:
        _refuse("the tar file holds an oversized extended header", "Pack the folder again.")
    return _exactly(read, size + -size % BLOCK)[:size]


def _exactly(read: Read, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = read(size - len(data))
        if not chunk:
            _damaged()
        data += chunk
    return data


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        _refuse("the tar file holds a name that is not UTF-8", "Rename the files and pack the folder again.")


def _damaged() -> NoReturn:
    _refuse("the tar file is damaged or cut short", "Pack the folder again and upload the new file.")


def _refuse(reason: str, remedy: str) -> NoReturn:
    raise Rejected(reason, remedy=remedy, check="archive")
