"""A real supervisor process on temporary folders, for tests: started, looked at, killed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from inference.errors import ServerError
from inference.host.client import SupervisorClient
from inference.protocol.oip import Signature
from inference.protocol.status import ReplicaPhase
from inference.protocol.supervision import FileRef, ReplicaSeen, ReplicaSpec, Seen, ValidationSeen, ValidationSpec

ROOT = Path(__file__).parents[2]
LIGHT = ("--entry", "tests.support.child_entry", "--preload", "tests.support.child_entry")


def spec(name: str = "a", generation: int = 1, **more: object) -> ReplicaSpec:
    fields: dict[str, object] = {
        "id": name,
        "generation": generation,
        "model": "m",
        "version": 1,
        "digest": "0" * 64,
        "format": "echo",
        "tier": "data",
        "files": [],
        "signature": Signature(inputs=[], outputs=[]),
        "settings": {},
    }
    if "act" in more:
        fields["settings"] = {"act": more.pop("act")}
    return ReplicaSpec(**(fields | more))  # type: ignore[arg-type]


def validation(run: str = "r", lease: int = 1, act: str = "pass") -> ValidationSpec:
    return ValidationSpec(run, lease, "m", 1, "0" * 64, "data", [], {"act": act})


def stored(host: Host, files: dict[str, bytes]) -> list[FileRef]:
    """Put `files` (path -> content) into the host's store, as an upload would."""
    refs = []
    for path, data in files.items():
        digest = hashlib.sha256(data).hexdigest()
        blob = host.data / "artifacts" / "blobs" / digest[:2] / digest
        blob.parent.mkdir(parents=True, exist_ok=True)
        if not blob.exists():
            blob.write_bytes(data)
            blob.chmod(0o444)
        refs.append(FileRef(path, len(data), digest))
    return refs


class Host:
    """One supervisor process. `act` methods are the client's; `wait_*` poll until true or fail with what was seen."""

    def __init__(self, folder: Path, args: tuple[str, ...] = LIGHT, **env: str) -> None:
        self.data = folder
        self.runtime = Path(tempfile.mkdtemp(prefix="sh-", dir="/tmp"))
        self.args = args
        self.env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SERINUS_DATA_DIR": str(folder),
            "SERINUS_RUNTIME_DIR": str(self.runtime),
            "DATABASE_URL": "postgresql://u:hunter2@host/db",
            "REDIS_URL": "redis://:hunter2@host",
            "SERINUS_SECRET_KEY": "hunter2",
            "SERINUS_REPLICA_DRAIN_S": "2",
            **env,
        }
        self.env.pop("SERINUS_ARTIFACTS", None)
        self.client = SupervisorClient(self.runtime / "supervisor.sock")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, standby: bool = True, timeout_s: float = 30.0) -> Host:
        log = (self.data / "supervisor.log").open("ab")
        with log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "inference", "supervisor", *self.args],
                env=self.env,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if standby:
            self.wait(lambda seen: seen.standby_ready, timeout_s)
        return self

    def family(self) -> list[psutil.Process]:
        """Fork server and children, as processes."""
        assert self.process
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def forkserver(self) -> psutil.Process:
        assert self.process
        return psutil.Process(self.process.pid).children()[0]

    def wait(self, true: Callable[[Seen], bool], timeout_s: float = 10.0) -> Seen:
        end, seen = time.monotonic() + timeout_s, None
        while time.monotonic() < end:
            with contextlib.suppress(ServerError):
                seen = self.client.look()
                if true(seen):
                    return seen
            time.sleep(0.01)
        log = (self.data / "supervisor.log").read_text()[-3000:]
        raise AssertionError(f"not seen within {timeout_s} s: {seen}\n{log}")

    def wait_ready(
        self, name: str = "a", generation: int = 1, timeout_s: float = 10.0, not_pid: int = 0
    ) -> ReplicaSeen:
        def is_ready(seen: Seen) -> bool:
            one = find(seen, name, generation)
            return one is not None and one.phase is ReplicaPhase.READY and one.pid != not_pid

        found = find(self.wait(is_ready, timeout_s), name, generation)
        assert found
        return found

    def wait_verdict(self, run: str = "r", timeout_s: float = 10.0) -> ValidationSeen:
        def verdict(seen: Seen) -> ValidationSeen | None:
            return next((v for v in seen.validations if v.run == run and v.state != "running"), None)

        found = verdict(self.wait(lambda seen: verdict(seen) is not None, timeout_s))
        assert found
        return found

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait(10)

    def close(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()
        self.client.close()
        shutil.rmtree(self.runtime, ignore_errors=True)


def find(seen: Seen, name: str = "a", generation: int = 1) -> ReplicaSeen | None:
    return next((r for r in seen.replicas if r.id == name and r.generation == generation), None)


@contextlib.contextmanager
def running(folder: Path, args: tuple[str, ...] = LIGHT, **env: str) -> Iterator[Host]:
    host = Host(folder, args, **env)
    try:
        yield host.start()
    finally:
        host.close()
