"""Where compiled loops are kept on disk, so that a machine compiles them once: bytes by name, in a folder for exactly this
code, these versions and this processor.

A process within the walls of the sandbox can only read there. What it finds is code that it will run, so the folder must
belong to its own user or to root, and be writable by nobody else; and what was torn or changed on disk is not taken.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

import inference
from inference.protocol import files

VARIABLE = "SERINUS_COMPILED"  # the folder; empty: none
ROOM = "models/on_torch"
_PROCESSOR = ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_OPT")
_DIGEST_BYTES = 32
_COMPLETE = "complete"
_UNUSED_S = 30 * 86_400.0


def folder(env: Mapping[str, str] = os.environ) -> Path | None:
    """The folder that this environment names, else one for this user, code and processor. None: nothing is kept."""
    if VARIABLE in env:
        return Path(env[VARIABLE]) if env[VARIABLE] else None
    home = env.get("XDG_CACHE_HOME") or (f"{env['HOME']}/.cache" if env.get("HOME") else "")
    return Path(home) / "serinus" / "compiled" / _key() if home.startswith("/") else None


@cache
def _key() -> str:
    """Another for other code, other libraries, another processor."""
    code = hashlib.sha256()
    for path in sorted((Path(inference.__file__ or "").parent / ROOM).rglob("*.py")):
        code.update(path.read_bytes())
    for library in ("numba", "llvmlite"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            code.update(metadata.version(library).encode())
    code.update(repr([os.environ.get(name) for name in _PROCESSOR]).encode())
    with contextlib.suppress(OSError):
        about = Path("/proc/cpuinfo").read_text(errors="replace").partition("\n\n")[0]
        named = [line for line in about.splitlines() if line.startswith(("model", "flags", "Features", "CPU"))]
        code.update("".join(named).encode())
    return code.hexdigest()[:24]


def is_trusted(place: Path) -> bool:
    """Whether nobody but this user or root can have written there."""
    try:
        found = place.stat()
    except OSError:
        return False
    return found.st_uid in {os.geteuid(), 0} and not found.st_mode & 0o022


def read(name: str, place: Path | None) -> bytes | None:
    """What is kept under that name; None when nothing is, or when it cannot be trusted."""
    if place is None or not is_trusted(place):
        return None
    try:
        held = (place / name).read_bytes()
    except OSError:
        return None
    digest, data = held[:_DIGEST_BYTES], held[_DIGEST_BYTES:]
    return data if hashlib.sha256(data).digest() == digest else None


def write(name: str, data: bytes, place: Path | None) -> None:
    """Keeps it, at once and whole; who may not write there keeps nothing."""
    if place is None:
        return
    with contextlib.suppress(OSError):
        files.put(place / name, hashlib.sha256(data).digest() + data)


def is_complete(place: Path | None) -> bool:
    """Whether everything that could be kept is: also where nothing can be."""
    if place is None:
        return True
    with contextlib.suppress(OSError):
        os.utime(place / _COMPLETE)  # it is in use
    return (place / _COMPLETE).exists()


def finish(place: Path) -> None:
    """Everything is kept there; the folders of other versions, unused for a month, go."""
    write(_COMPLETE, b"", place)
    for other in place.parent.iterdir():
        with contextlib.suppress(OSError):
            if other != place and time.time() - (other / _COMPLETE).stat().st_mtime > _UNUSED_S:
                shutil.rmtree(other)
