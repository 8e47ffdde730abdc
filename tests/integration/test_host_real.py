"""Supervisor, fork server and the real replica end to end, with the echo model: predictions, kills, verdicts."""

from __future__ import annotations

import os
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from inference.host.preload import ENTRY
from inference.protocol.frames import encode
from inference.protocol.messages import Fault, Hello, Infer, TensorHeader
from inference.protocol.oip import Signature, TensorSpec
from inference.protocol.status import ReplicaPhase
from inference.protocol.supervision import ReplicaSpec, ValidationSpec
from tests.support.hosts import Host, find, running, stored
from tests.support.lines import Line

SIGNATURE = Signature(
    [TensorSpec("input", "FP32", [-1, 4])], [TensorSpec("output", "FP32", [-1, 4])], max_batch_size=32
)
LIGHT_REAL = ("--preload", f"numpy,uvloop,{ENTRY}")


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), LIGHT_REAL, SERINUS_HEARTBEAT_S="3") as one:
        yield one


def echo(
    host: Host, name: str, plan: bytes = b'{"factor": 2.0}', generation: int = 1, **settings: object
) -> ReplicaSpec:
    return ReplicaSpec(
        id=name,
        generation=generation,
        model="echo",
        version=1,
        digest="0" * 64,
        format="echo",
        tier="data",
        files=stored(host, {"echo.json": plan}),
        signature=SIGNATURE,
        settings=settings,
    )


def ask(line: Line, *values: float) -> tuple[float, ...] | Fault:
    answer = line.ask(TensorHeader("input", "FP32", [1, 4], 16), struct.pack("<4f", *values))
    return answer if isinstance(answer, Fault) else struct.unpack("<4f", answer[1])


def test_a_prediction_through_the_supervisors_listener(host: Host) -> None:
    host.client.converge([echo(host, "p")])
    ready = host.wait_ready("p", timeout_s=20.0)
    with Line(ready.address) as line:
        hello, _ = line.hear()
        assert isinstance(hello, Hello)
        assert (hello.replica, hello.generation) == ("p", 1)
        assert ask(line, 1, 2, 3, 4) == (2, 4, 6, 8)
    assert host.client.look().replicas[0].memory_bytes > 0


def test_a_killed_replica_answers_again_without_anybody_doing_anything(host: Host) -> None:
    host.client.converge([echo(host, "k")])
    first = host.wait_ready("k", timeout_s=20.0)
    os.kill(first.pid, signal.SIGKILL)
    began = time.monotonic()
    with Line(first.address) as line:  # waits in the backlog meanwhile
        line.hear()
        assert ask(line, 1, 2, 3, 4) == (2, 4, 6, 8)
    assert time.monotonic() - began < 10
    assert host.wait_ready("k").restarts == 1


def test_an_artifact_that_changed_is_never_served_and_the_reason_is_told(host: Host) -> None:
    spec = echo(host, "c", b'{"factor": 3.0}')
    blob = host.data / "artifacts" / "blobs" / spec.files[0].sha256[:2] / spec.files[0].sha256
    blob.chmod(0o644)
    blob.write_bytes(b'{"factor": 9.0}')
    host.client.converge([spec])
    seen = find(host.wait(lambda s: (one := find(s, "c")) is not None and one.restarts >= 1, 20.0), "c")
    assert seen
    assert "changed" in seen.message or "sha256" in seen.message, seen
    assert seen.phase is not ReplicaPhase.READY


@pytest.mark.parametrize("kind", ["hang", "busy"])
def test_a_forward_pass_that_hangs_costs_the_caller_one_error_and_the_replica_its_life(host: Host, kind: str) -> None:
    plan = b'{"faults": [{"value": 13, "kind": "%s"}]}' % kind.encode()
    host.client.converge([echo(host, f"h-{kind}", plan, hang_timeout_s=1.0)])
    first = host.wait_ready(f"h-{kind}", timeout_s=20.0)
    with Line(first.address) as line:
        line.hear()
        answer = ask(line, 13, 0, 0, 0)
        assert isinstance(answer, Fault)
    second = host.wait_ready(f"h-{kind}", not_pid=first.pid, timeout_s=20.0)
    assert "a forward pass took longer than 1 s" in second.message
    with Line(second.address) as line:
        line.hear()
        assert ask(line, 1, 2, 3, 4) == (1, 2, 3, 4)


def test_what_is_under_way_is_answered_when_a_replica_drains(host: Host) -> None:
    host.client.converge([echo(host, "d", b'{"sleep_ms": 700}')])
    ready = host.wait_ready("d", timeout_s=20.0)
    with Line(ready.address) as line:
        line.hear()
        body = struct.pack("<4f", 1, 2, 3, 4)
        line.sock.sendall(encode(Infer(1, 9000, [TensorHeader("input", "FP32", [1, 4], len(body))]), body))
        time.sleep(0.2)
        host.client.converge([])
        kinds = []
        while "Answer" not in kinds:
            message, _ = line.hear()
            kinds.append(type(message).__name__)
        assert set(kinds) <= {"Answer", "Goodbye"}
    host.wait(lambda s: not s.replicas)


def test_real_replicas_die_with_their_fork_server_and_with_their_supervisor(tmp_path: Path) -> None:
    with running(tmp_path, LIGHT_REAL) as host:
        host.client.converge([echo(host, "a")])
        first = host.wait_ready("a", timeout_s=20.0)
        stopped = psutil.Process(first.pid)
        os.kill(first.pid, signal.SIGSTOP)  # so that it cannot leave by itself when its socket closes
        host.forkserver().kill()
        second = host.wait_ready("a", not_pid=first.pid, timeout_s=20.0)
        assert psutil.wait_procs([stopped], timeout=1.0)[1] == []
        os.kill(second.pid, signal.SIGSTOP)
        family = host.family()
        host.kill()
        _, alive = psutil.wait_procs(family, timeout=2.0)
        assert not alive


def verdict(host: Host, run: str, plan: bytes, **settings: object) -> tuple[str, str, str, dict[str, str]]:
    files = stored(host, {"echo.json": plan})
    host.client.converge([], [ValidationSpec(run, 1, "echo", 1, "0" * 64, "data", files, settings)])
    seen = host.wait_verdict(run, timeout_s=40.0)
    return seen.state, seen.reason, seen.remedy, {check.name: check.state for check in seen.checks}


def test_a_good_version_is_ready_with_its_signature_and_figures(host: Host) -> None:
    state, reason, _, checks = verdict(host, "good", b"{}")
    assert state == "ready", reason
    seen = host.wait_verdict("good")
    assert seen.signature is not None
    assert [spec.name for spec in seen.signature.inputs] == ["input"]
    assert seen.measurements.latency_ms
    assert set(checks.values()) <= {"passed", "skipped"}
    assert seen.format == "echo"


@pytest.mark.parametrize(
    ("kind", "words"),
    [("abort", "SIGABRT"), ("raise", "RuntimeError"), ("exit", "SystemExit"), ("allocate", "memory")],
)
def test_a_version_that_dies_is_rejected_with_reason_and_remedy(host: Host, kind: str, words: str) -> None:
    state, reason, remedy, checks = verdict(host, f"bad-{kind}", b'{"at_load": "%s"}' % kind.encode())
    assert state == "rejected"
    assert words.lower() in reason.lower()
    assert remedy
    assert checks["load"] == "failed"


def test_a_version_that_hangs_is_rejected(tmp_path: Path) -> None:
    with running(tmp_path, LIGHT_REAL, SERINUS_VALIDATION_TIMEOUT_S="5") as host:
        state, reason, _, checks = verdict(host, "hang", b'{"at_load": "busy"}')
    assert (state, checks["load"]) == ("rejected", "failed")
    assert "longer than 5 s" in reason


def test_the_supervisor_itself_has_imported_no_tensor_library() -> None:
    import subprocess

    code = "import inference.host.supervisor, inference.host.client, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "torch", "jax", "transformers", "django", "celery"} & set(loaded)
