"""A replica, and a validation, each for real: its own sandboxed process, any artifact's folder, the frames of the wire."""

from __future__ import annotations

import hashlib
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from inference.host.preload import ENTRY
from inference.protocol.child import (
    AdapterAt,
    AdaptersReport,
    ChildPaths,
    Drain,
    FromChild,
    PhaseReport,
    SetAdapters,
    StartReplica,
    StartValidation,
    ValidationReport,
)
from inference.protocol.frames import Decoder, encode
from inference.protocol.messages import Answer, FromReplica, Hello, Infer, SequenceControl, TensorHeader
from inference.protocol.oip import Signature
from inference.protocol.status import ReplicaPhase
from inference.protocol.supervision import (
    AdapterSeen,
    AdapterSpec,
    FileRef,
    ReplicaSpec,
    ValidationSeen,
    ValidationSpec,
)
from tests.support import standby as standbys


class Wire:
    """One end of a stream of frames, blocking, with a time limit."""

    def __init__(self, sock: socket.socket, kind: Any) -> None:
        self.sock, self.decoder, self.seen = sock, Decoder[Any](kind), list[Any]()
        sock.settimeout(30)

    def send(self, message: msgspec.Struct, *body: bytes) -> None:
        self.sock.sendall(encode(message, *body))

    def next(self) -> tuple[Any, memoryview]:
        while not self.seen:
            data = self.sock.recv(1 << 16)
            assert data, "the stream ended"
            self.seen += self.decoder.feed(data)
        found: tuple[Any, memoryview] = self.seen.pop(0)
        return found

    def ask(self, number: int, name: str, values: Any, sequence: SequenceControl | None = None, **other: Any) -> None:
        data = np.ascontiguousarray(values)
        kind = {"f4": "FP32", "i4": "INT32"}[data.dtype.str[1:]]
        header = TensorHeader(name, kind, list(data.shape), data.nbytes)
        timeout_ms = other.pop("timeout_ms", 20_000)
        self.send(Infer(number, timeout_ms, [header], sequence=sequence, **other), data.tobytes())

    def answer(self) -> tuple[Any, Any]:
        """The next answer or fault, and its first tensor's values if it has one."""
        message, body = self.next()
        if not isinstance(message, Answer) or not message.tensors:
            return message, None
        return message, np.frombuffer(body, "<f4").reshape(message.tensors[0].shape)


def stored(store: Path, folder: Path) -> list[FileRef]:
    """The folder's files in a content-addressed store."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            blob = store / "blobs" / digest[:2] / digest
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(data)
            found.append(FileRef(path.relative_to(folder).as_posix(), len(data), digest))
    return found


class Replica:
    """The child, its control socket and its listener, as the supervisor would hold them."""

    def __init__(
        self,
        root: Path,
        folder: Path,
        format: str,  # noqa: A002
        settings: dict[str, Any],
        adapters: list[AdapterSpec] | None = None,
        name: str = "r1",
        threads: int = 1,
        env: Mapping[str, str] | None = None,
        model: str = "m",
    ) -> None:
        self.root = root
        self.adapters: list[AdapterSeen] = []
        (root / "work").mkdir(parents=True, exist_ok=True)
        spec = ReplicaSpec(
            name,
            1,
            model,
            1,
            "d",
            format,
            "data",
            stored(root / "store", folder),
            Signature([], []),
            settings,
            adapters=adapters or [],
            threads=threads,
        )
        message = StartReplica(spec, ChildPaths(str(root / "store"), str(root / "work")))
        self.path = str(root / "l")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        ours, theirs = socket.socketpair()
        self._own = standbys.Standby((ENTRY,), env) if env else None
        server = self._own or standbys.standby()
        self.process = server.fork(message, [theirs.fileno(), self.listener.fileno()], root / "log")
        theirs.close()
        self.control = Wire(ours, FromChild)
        ours.settimeout(90)  # a load on a machine that does much else
        self.wires: list[Wire] = []

    def ready(self) -> Replica:
        while True:
            report, _ = self.control.next()
            if isinstance(report, AdaptersReport):
                self.adapters = report.adapters
                continue
            assert isinstance(report, PhaseReport)
            assert report.phase is not ReplicaPhase.FAILED, report.message
            if report.phase is ReplicaPhase.READY:
                return self

    def bring(self, name: str, folder: Path) -> AdapterSpec:
        """Puts an adapter's files where the supervisor does."""
        digest = hashlib.sha256(name.encode() + (folder / "adapter_model.safetensors").read_bytes()).hexdigest()
        shutil.copytree(folder, self.root / "work" / "adapters" / digest)
        return AdapterSpec(name, f"{name}:1", digest, [])

    def set_adapters(self, *adapters: AdapterSpec) -> None:
        self.control.send(SetAdapters([AdapterAt(one.name, one.digest) for one in adapters]))

    def wait_adapters(self, **states: str) -> dict[str, str]:
        """Waits until they stand so; name -> message."""
        while True:
            report, _ = self.control.next()
            if isinstance(report, AdaptersReport):
                self.adapters = report.adapters
            if {one.name: one.state for one in self.adapters} == states:
                return {one.name: one.message for one in self.adapters}

    def connect(self) -> Wire:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self.path)
        self.wires.append(Wire(sock, FromReplica))
        assert isinstance(self.wires[-1].next()[0], Hello)
        return self.wires[-1]

    def drain(self, timeout_s: float) -> None:
        self.control.send(Drain(timeout_s))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        if self._own is not None:
            self._own.close()
        for wire in (self.control, *self.wires):
            wire.sock.close()
        self.listener.close()


def validated(root: Path, folder: Path, settings: dict[str, Any]) -> ValidationSeen:
    """The verdict."""
    (root / "work").mkdir(parents=True, exist_ok=True)
    files = stored(root / "store", folder)
    spec = ValidationSpec("run", 1, "m", 1, "d", "", files, settings)
    message = StartValidation(spec, ChildPaths(str(root / "store"), str(root / "work")))
    ours, theirs = socket.socketpair()
    process = standbys.standby().fork(message, [theirs.fileno()], root / "log")
    theirs.close()
    decoder: Decoder[Any] = Decoder(FromChild, max_body_bytes=0)
    seen: list[ValidationSeen] = []
    with ours:
        ours.settimeout(60)
        while data := ours.recv(1 << 16):
            seen += [m.seen for m, _ in decoder.feed(data) if isinstance(m, ValidationReport)]
    process.wait(20)
    return seen[-1]
