"""The real preload list: one thread, nothing computed, and a child that computes with torch and JAX at once."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from inference.host.preload import ENTRY, MODULES
from tests.support.hosts import running, spec

HEAVY = (
    "--entry",
    "tests.support.computing_entry",
    "--preload",
    ",".join((*MODULES, "tests.support.computing_entry")),
)


@pytest.mark.timeout(300)
def test_the_warm_fork_server_has_one_thread_and_its_children_compute_with_torch_and_jax(tmp_path: Path) -> None:
    with running(tmp_path, HEAVY) as host:
        host.wait(lambda seen: seen.standby_ready, 200.0)
        server = host.forkserver()
        assert server.num_threads() == 1, (tmp_path / "logs" / "forkserver.log").read_text()
        assert not [line for line in server.open_files() if "nvidia" in line.path or "accel" in line.path]
        log = (tmp_path / "logs" / "forkserver.log").read_text()
        assert "WARNING" not in log
        began = time.monotonic()
        host.client.converge([spec("a"), spec("b")])
        both = [host.wait_ready(name, timeout_s=60.0) for name in ("a", "b")]
        took_s = time.monotonic() - began
        for one in both:
            told = json.loads(one.message)
            assert told["torch"] == told["jax"] == 30.0
            assert told["stood_ms"] < 2000
        assert took_s < 30
        assert server.num_threads() == 1
        os.kill(both[0].pid, 9)
        host.wait_ready("a", not_pid=both[0].pid, timeout_s=30.0)


def test_the_entry_is_preloaded_last() -> None:
    assert MODULES[-1] == ENTRY
