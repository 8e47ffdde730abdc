"""The ends of replicas' log files, followed for live topics: bounded in lines, in bytes a second and in files.

A replica's file lies in the data folder of the host that runs it, under a name made of the replica's id alone. So this
works for hosts that share the console's data folder (a single machine does); for others `missing` names them.
"""

from __future__ import annotations

import os
import re
import stat
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.conf import settings

from fleet.models import Replica
from inference.protocol.child import replica_log

KEPT_LINES = 500
FIRST_BYTES = 64 << 10
BYTES_AT_ONCE = 64 << 10
LINES_AT_ONCE = 200
MAX_LINE_CHARS = 2000
MAX_FILES = 32
_STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR|CRITICAL) ")
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(slots=True)
class Follower:
    """One file from near its end on. Whatever happens to it (cut, replaced, gone), the next read goes on from there."""

    path: Path
    level: str = "INFO"
    _inode: int = 0
    _at: int = -1
    _rest: bytes = b""

    def read(self) -> list[tuple[str, str]] | None:
        """[(level, text)] of the lines that are new; None without a file. Lines that came too fast are counted, not told."""
        try:
            number = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            state = os.fstat(number)
            if not stat.S_ISREG(state.st_mode):
                return None
            skipped = self._place(state)
            data = os.pread(number, BYTES_AT_ONCE, self._at)
        finally:
            os.close(number)
        self._at += len(data)
        return self._lines(data, skipped)

    def _place(self, state: os.stat_result) -> int:
        """Where to read on; the bytes that are left out."""
        begins = self._inode != state.st_ino or state.st_size < self._at
        if begins:
            first, self._rest = self._at < 0, b""
            self._inode, self._at = state.st_ino, max(0, state.st_size - FIRST_BYTES) if first else 0
            if first and self._at:
                return -1
        behind = state.st_size - self._at - BYTES_AT_ONCE
        if behind <= 0:
            return 0
        self._at += behind
        self._rest = b""
        return behind

    def _lines(self, data: bytes, skipped: int) -> list[tuple[str, str]]:
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_CHARS * 4:
            whole.append(self._rest)
            self._rest = b""
        if skipped and whole:
            whole.pop(0)  # the end of a line whose begin is not known
        left_out = max(0, len(whole) - LINES_AT_ONCE)
        found = [self._line(line) for line in whole[left_out:]]
        if skipped > 0 or left_out:
            said = f"{skipped} bytes" if skipped > 0 else f"{left_out} lines"
            found.insert(0, ("WARNING", f"… {said} came faster than can be shown here: they are in the log file"))
        return found

    def _line(self, line: bytes) -> tuple[str, str]:
        text = _CONTROL.sub("", line[: MAX_LINE_CHARS * 4].decode("utf-8", "replace"))[:MAX_LINE_CHARS]
        if stamped := _STAMP.match(text):
            self.level = stamped[1]
        return self.level, text


@dataclass(slots=True)
class Tail:
    """The newest lines of some replicas. replicas: asked at every read, for they come and go."""

    replicas: Callable[[], list[Replica]]
    _followers: dict[str, Follower] = field(default_factory=dict)
    _lines: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))
    _number: int = 0
    _name: str = field(default_factory=lambda: os.urandom(4).hex())

    def read(self) -> dict[str, Any]:
        """A feed's data: `points` are the lines, each with its number in `at`, which counts from 1 in each `tail`;
        `missing`: whose file is not here.
        """
        held = self.replicas()[:MAX_FILES]
        names = {replica_log(str(one.id), one.generation): one for one in held}
        for gone in self._followers.keys() - names.keys():
            del self._followers[gone]
        missing = []
        for name, replica in names.items():
            follower = self._followers.setdefault(name, Follower(folder() / name))
            lines = follower.read()
            if lines is None:
                missing.append([str(replica.id)[:8], replica.host_id or "", name])
            for level, text in lines or ():
                self._number += 1
                self._lines.append({"at": self._number, "from": str(replica.id)[:8], "level": level, "text": text})
        return {"tail": self._name, "window_s": KEPT_LINES, "points": list(self._lines), "missing": missing}


def folder() -> Path:
    """Where this machine's supervisor lets its replicas write."""
    return Path(settings.DATA_DIR) / "logs"
