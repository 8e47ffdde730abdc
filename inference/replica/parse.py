"""The parse stage: `python -m inference validate --stage parse FOLDER`, a process of its own without any framework.

It closes its sandbox (10 s of CPU, 512 MiB), looks at the files and prints one JSON verdict. Whoever started it reads
the verdict by `verdict_of`, which knows what a missing one means.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec

import inference
from inference.artifacts.causal import Language
from inference.artifacts.inspect import Inspection, inspect
from inference.errors import Rejected, SerinusError
from inference.protocol.oip import Signature
from inference.replica import sandbox
from inference.replica.sandbox import Limits, Plan

CPU_S = 10.0
WALL_S = 60.0
MEMORY_BYTES = 512 << 20
MAX_VERDICT_BYTES = 4 << 20


class Verdict(msgspec.Struct, frozen=True):
    """What the parse stage prints. Without `reason` the artifact may be loaded; with one, `format` says what is refused."""

    format: str = ""
    tier: str = ""
    entry: str = ""
    notes: list[str] = msgspec.field(default_factory=list)
    labels: list[str] = msgspec.field(default_factory=list)
    task: str = ""
    signature: Signature | None = None
    needs_conversion: bool = False
    language: Language | None = None
    draft: Language | None = None
    reason: str = ""
    remedy: str = ""
    check: str = ""


def main(argv: list[str]) -> int:
    """Exit status 0 with a verdict on stdout, whichever it is; 1 when the sandbox cannot be built here."""
    parser = argparse.ArgumentParser(prog="python -m inference validate")
    parser.add_argument("--stage", choices=["parse"], default="parse")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args(argv)
    folder = arguments.folder.resolve()
    if not folder.is_dir():
        parser.error(f"{folder} is no folder")
    try:
        _enter(folder)
    except SerinusError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    sys.stdout.write(msgspec.json.encode(judge(folder)).decode() + "\n")
    return 0


def judge(folder: Path) -> Verdict:
    """The verdict about an artifact's folder, whatever reading it raises."""
    try:
        return _passed(inspect(folder))
    except Rejected as error:
        return Verdict(format=error.format, reason=error.reason, remedy=error.remedy, check=error.check)
    except (MemoryError, RecursionError, OverflowError) as error:
        return Verdict(
            reason=f"reading the files took more than they can be worth ({type(error).__name__})",
            remedy="export the model again; the file is damaged or made to hurt",
            check="parse",
        )


def verdict_of(folder: Path) -> Verdict:
    """Runs the parse stage on `folder` in a process of its own. Raises Rejected when it gives no verdict."""
    command = [
        sys.executable,
        "-m",
        "inference",
        "validate",
        "--stage",
        "parse",
        str(folder),
    ]
    root = str(Path(inference.__file__ or "").resolve().parent.parent)
    environment = {"PYTHONPATH": root, "LANG": "C.UTF-8"} | {
        name: os.environ[name] for name in ("SERINUS_SANDBOX", "LD_LIBRARY_PATH") if name in os.environ
    }
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, timeout=WALL_S, cwd="/", check=False
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise _no_verdict(f"it took longer than {WALL_S:g} s") from None
    try:
        if len(done.stdout) <= MAX_VERDICT_BYTES:
            return msgspec.json.decode(done.stdout, type=Verdict)
    except msgspec.MsgspecError:
        sys.stderr.write(done.stderr.decode(errors="replace")[-2000:])
    raise _no_verdict(_cause(done.returncode))


def _passed(found: Inspection) -> Verdict:
    return Verdict(
        format=found.format.value,
        tier=found.tier.value,
        entry=found.entry,
        notes=found.notes,
        labels=found.labels,
        task=found.task,
        signature=found.signature,
        needs_conversion=found.needs_conversion,
        language=found.language,
        draft=found.draft,
    )


def _enter(folder: Path) -> None:
    targets = [path.resolve() for path in folder.rglob("*") if path.is_symlink()]
    limits = Limits(memory_bytes=MEMORY_BYTES, mapped_bytes=_size_bytes(folder), cpu_s=CPU_S, file_bytes=1 << 20)
    sandbox.enter(Plan(None, (folder, *targets), limits=limits))


def _size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _cause(status: int) -> str:
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"it took more than {CPU_S:g} s of CPU time or more memory than it may have"
    if status < 0:
        return f"it ended by signal {-status}"
    return f"it ended with status {status}"


def _no_verdict(cause: str) -> Rejected:
    return Rejected(
        f"the files could not be read within their limits: {cause}",
        remedy="export the model again; the file is damaged or made to hurt",
        check="parse",
    )
