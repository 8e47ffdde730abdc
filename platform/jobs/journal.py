r"""Journals: append-only files of answered lines, one a fence (see jobs.slices for the law that they serve).

A record is `<line> <ok|no> <JSON>\n`, the JSON being the line of the output or error file. What a killed writer left
torn at the end has no newline and is not a record.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from jobs.slices import firsts
from jobs.store import full_disk, journals_of, sync_folder

_HEAD = re.compile(rb"(\d{1,9}) (ok|no) ")
HEAD_BYTES = 16


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a journal a record's JSON (with its newline) lies, and whether it is an answer or an error."""

    ok: bool
    offset: int
    size: int


class Journal:
    """The journal that the holder of a fence writes. Use as a context manager."""

    def __init__(self, batch: str, fence: int) -> None:
        self.path = path_of(batch, fence)
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = self.path.open("ab")
        sync_folder(self.path.parent)

    def append(self, line: int, record: bytes, *, ok: bool) -> None:
        """record: JSON without a newline in it. Raises StorageFull."""
        with full_disk():
            self._file.write(b"%d %s %s\n" % (line, b"ok" if ok else b"no", record))

    def sync(self) -> None:
        """All that was appended is on the disk when this returns. Raises StorageFull."""
        with full_disk():
            self._file.flush()
            os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


def path_of(batch: str, fence: int) -> Path:
    return journals_of(batch) / f"{fence}.jsonl"


def records(path: Path) -> Iterator[tuple[int, Place]]:
    """(line, place) of every whole record, in the order they were written; nothing when there is no such journal."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        offset = 0
        for row in file:
            head = _HEAD.match(row, 0, HEAD_BYTES)
            if head and row.endswith(b"\n"):
                yield int(head[1]), Place(head[2] == b"ok", offset + head.end(), len(row) - head.end())
            offset += len(row)


def index(batch: str, fence: int) -> dict[int, Place]:
    """Line -> its first record in that fence's journal."""
    return firsts(records(path_of(batch, fence)))


def read(path: Path, place: Place) -> bytes:
    """The record's JSON, with its newline."""
    with path.open("rb") as file:
        file.seek(place.offset)
        return file.read(place.size)


def adoptable(batch: str, fence: int, first: int, last: int) -> Iterator[tuple[int, bool, bytes]]:
    """(line, ok, JSON) of lines first .. last - 1 that stand whole in journals of fences before `fence`."""
    taken: set[int] = set()
    for path in older(batch, fence):
        for line, place in records(path):
            if first <= line < last and line not in taken:
                taken.add(line)
                yield line, place.ok, read(path, place).rstrip(b"\n")


def older(batch: str, fence: int) -> list[Path]:
    """The journals of fences before this one, the newest first."""
    folder = journals_of(batch)
    if not folder.is_dir():
        return []
    fences = [int(path.stem) for path in folder.glob("*.jsonl") if path.stem.isdigit()]
    return [path_of(batch, one) for one in sorted(fences, reverse=True) if one < fence]
