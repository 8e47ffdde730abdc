"""A light stand-in for the replica's entry: obeys `settings["act"]`, so that each fault can be had on demand.

It is a real child of the real fork server; only the model is missing. It answers "pid\n" to whoever connects.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from inference.protocol.child import (
    AdaptersReport,
    CheckReport,
    PhaseReport,
    SetAdapters,
    StartReplica,
    StartValidation,
    ToChild,
    ValidationReport,
)
from inference.protocol.frames import Decoder, encode
from inference.protocol.status import ReplicaPhase
from inference.protocol.supervision import AdapterSeen, CheckSeen, FileRef, ValidationSeen


def run_replica(message: StartReplica, control_fd: int, listener_fd: int) -> int:
    act = str(message.spec.settings.get("act", "serve"))
    control = socket.socket(fileno=control_fd)
    listener = socket.socket(fileno=listener_fd)
    _tell_what_i_see(Path(message.paths.work_dir), is_fake_device=message.is_fake_device)
    if act == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if act == "leave_orphan":
        subprocess.Popen(["sleep", "300"], start_new_session=True)
    control.sendall(encode(PhaseReport(ReplicaPhase.LOADING)))
    if act == "refuse":
        control.sendall(encode(PhaseReport(ReplicaPhase.FAILED, "the artifact changed")))
        return 3
    if act == "garbage":
        control.sendall(b"\xff" * 64)
    if act == "hang_load":
        time.sleep(600)
    if act == "slow_load":
        time.sleep(float(message.spec.settings.get("load_s", 0.5)))
    work = Path(message.paths.work_dir)
    if message.spec.adapters:
        control.sendall(encode(_held(work, [(one.name, one.digest) for one in message.spec.adapters])))
    control.sendall(encode(PhaseReport(ReplicaPhase.WARMING)))
    return _serve(control, listener, act, work)


def _serve(control: socket.socket, listener: socket.socket, act: str, work: Path) -> int:
    decoder: Decoder[ToChild] = Decoder(ToChild)
    listener.setblocking(False)
    held = bytearray(400 << 20) if act == "eat" else bytearray()
    began = time.monotonic()
    while True:
        busy_s = time.monotonic() - began if act == "busy" else 0.0
        control.sendall(
            encode(PhaseReport(ReplicaPhase.READY, memory_bytes=1 + len(held), queue_depth=2, busy_s=busy_s))
        )
        ready, _, _ = select.select([control, listener], [], [], 0.2)
        if listener in ready:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(f"{os.getpid()}\n".encode())
        if control in ready:
            data = control.recv(4096)
            if not data:
                return 0
            for drain, _ in decoder.feed(data):
                if isinstance(drain, SetAdapters):
                    control.sendall(encode(_held(work, [(one.name, one.digest) for one in drain.adapters])))
                    continue
                if act == "deaf":
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                    time.sleep(600)
                assert drain.timeout_s >= 0
                Path(os.environ["HOME"], "..", "..", "drained").resolve().write_text(str(os.getpid()))
                return 0


def _held(work: Path, adapters: list[tuple[str, str]]) -> AdaptersReport:
    """Each is loaded, and says what its folder holds."""
    folders = [work / "adapters" / digest for _, digest in adapters]
    texts = [",".join(f"{p.name}={p.read_text()}" for p in sorted(folder.iterdir())) for folder in folders]
    return AdaptersReport(
        [AdapterSeen(name, digest, "loaded", text) for (name, digest), text in zip(adapters, texts, strict=True)]
    )


def _tell_what_i_see(work: Path, **more: object) -> None:
    fds: dict[str, str] = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing itself was one of them
            fds[name] = os.readlink(f"/proc/self/fd/{name}")
    seen = {
        "environ": dict(os.environ),
        "fds": fds,
        "cwd": os.getcwd(),
        "oom": int(Path("/proc/self/oom_score_adj").read_text()),
        "sid": os.getsid(0),
        "pid": os.getpid(),
        "threads": len(os.listdir("/proc/self/task")),
        **more,
    }
    work.joinpath("..", "..", "witness.json").resolve().write_text(json.dumps(seen))
    sys.stdout.write("child speaking\n")


def run_validation(message: StartValidation, control_fd: int) -> int:
    act = str(message.spec.settings.get("act", "pass"))
    control = socket.socket(fileno=control_fd)
    _tell_what_i_see(Path(message.paths.work_dir))
    control.sendall(encode(CheckReport(CheckSeen("hashes", "passed", ms=1.0))))
    control.sendall(encode(CheckReport(CheckSeen("load", "running"))))
    if act == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if act == "hang":
        time.sleep(600)
    if act == "eat":
        held = [bytearray(b"x" * (64 << 20)) for _ in range(64)]
        time.sleep(600)
        del held
    if act == "quit":
        return 7
    control.sendall(encode(CheckReport(CheckSeen("load", "passed", ms=2.0))))
    converted = _convert(message, act) if act.startswith("convert") else []
    seen = ValidationSeen("another run", -1, "ready", format="echo", tier="data", converted=converted)
    control.sendall(encode(ValidationReport(seen)))
    return 0


def _convert(message: StartValidation, act: str) -> list[FileRef]:
    out = Path(message.paths.work_dir, "out")
    out.mkdir()
    data = b"weights" * 100
    target = out / "model.safetensors"
    if act == "convert_link":
        target.symlink_to("/etc/passwd")
        data = Path("/etc/passwd").read_bytes()
    else:
        target.write_bytes(data)
    digest = hashlib.sha256(data if act != "convert_lie" else b"other").hexdigest()
    return [FileRef("model.safetensors", len(data), digest)]
