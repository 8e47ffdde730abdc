"""`python -m inference compile`: the loops of encoders and language models, compiled once a machine beside everything else,
so that no replica waits for it. What a replica compiles within its walls, it cannot keep.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from inference.host.processes import die_with_parent
from inference.protocol import compiled

WORK = "inference.models.on_torch.ahead"
NICE = 10
LOCK = ".lock"


class Compiling:
    """The process, while there is something to compile. pid: 0 when there is none."""

    def __init__(self, environment: Mapping[str, str], logs: Path) -> None:
        self._environment = dict(environment)
        self._logs = logs
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None and self._process.poll() is None else 0

    def start(self) -> None:
        """Begins unless everything is there. Whatever goes wrong with it, replicas compile for themselves."""
        if compiled.is_complete(compiled.folder(self._environment)):
            return
        with (self._logs / "compile.log").open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "inference", "compile", "--parent", str(os.getpid())],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def main(argv: list[str]) -> int:
    """The process itself: ends with its parent, and lets everybody else go first. 0 when all is kept, or another process
    is at it; 1 when there is nowhere to keep it.
    """
    parser = argparse.ArgumentParser(prog="python -m inference compile")
    parser.add_argument("--parent", type=int, help="end when this process does")
    parent = parser.parse_args(argv).parent
    if parent is not None:
        die_with_parent(parent)
    place = compiled.folder()
    if place is None:
        sys.stderr.write(f"nothing is kept: {compiled.VARIABLE} is empty, or there is no home\n")
        return 1
    if compiled.is_complete(place):
        return 0
    os.nice(NICE)
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (place / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            began = time.perf_counter()
            what = importlib.import_module(WORK).compile_ahead()
            sys.stderr.write(f"compiled {what} in {time.perf_counter() - began:.0f} s\n")
            compiled.finish(place)
    except BlockingIOError:
        return 0
    except OSError as error:
        sys.stderr.write(f"nothing is kept in {place}: {error}\n")
        return 1
    return 0
