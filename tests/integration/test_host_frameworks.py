"""Every framework through the whole house of one host: validated, served from the warm standby, compared, killed."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from inference.protocol.messages import Fault, TensorHeader
from inference.protocol.supervision import FileRef, ReplicaSpec, ValidationSeen, ValidationSpec
from tests.support import artifacts
from tests.support.hosts import Host, stored
from tests.support.lines import Line

X = np.random.default_rng(7).standard_normal((3, 6)).astype("<f4")


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with tempfile.TemporaryDirectory() as folder:
        warm = Host(Path(folder), ())
        try:
            yield warm.start(timeout_s=180.0)
        finally:
            warm.close()


def uploaded(host: Host, folder: Path) -> list[FileRef]:
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    return stored(host, files)


def validated(host: Host, name: str, files: list[FileRef]) -> ValidationSeen:
    host.client.converge([], [ValidationSpec(name, 1, name, 1, "0" * 64, "data", files, {"max_batch_size": 8})])
    seen = host.wait_verdict(name, timeout_s=100.0)
    assert seen.state == "ready", (seen.reason, seen.checks)
    return seen


def served(name: str, files: list[FileRef], seen: ValidationSeen) -> ReplicaSpec:
    assert seen.signature
    return ReplicaSpec(
        id=name,
        generation=1,
        model=name,
        version=1,
        digest="0" * 64,
        format=seen.format,
        tier=seen.tier,
        files=files,
        signature=seen.signature,
        settings=seen.settings,
        threads=2,
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("make", [artifacts.torch_export, artifacts.jax_export, artifacts.onnx_matmul])
def test_a_version_is_validated_served_and_back_after_a_kill(host: Host, tmp_path: Path, make: artifacts.Maker) -> None:
    reference, name = make(tmp_path / "artifact"), make.__name__
    files = uploaded(host, tmp_path / "artifact")
    spec = served(name, files, validated(host, name, files))
    host.client.converge([spec])
    first = host.wait_ready(name, timeout_s=60.0)
    assert np.allclose(predict(first.address), reference({"x": X})["y"], atol=1e-5)
    os.kill(first.pid, signal.SIGKILL)
    began = time.monotonic()
    assert np.allclose(predict(first.address), reference({"x": X})["y"], atol=1e-5)
    assert time.monotonic() - began < 20
    assert host.wait_ready(name).restarts == 1


def predict(address: str) -> np.ndarray:
    with Line(address) as line:
        line.hear()
        answer = line.ask(TensorHeader("x", "FP32", list(X.shape), X.nbytes), X.tobytes())
        assert not isinstance(answer, Fault), answer
        head, body = answer
        return np.frombuffer(body, "<f4").reshape(head.tensors[0].shape)
