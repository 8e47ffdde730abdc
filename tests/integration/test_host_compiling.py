"""The process that compiles language models' loops ahead: once a machine, beside everything else, never longer than its
supervisor.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from inference.host.compiling import LOCK, NICE, Compiling
from inference.protocol import compiled
from tests.support.gateway_house import until

PARENT = """
import os, sys, time
from pathlib import Path
from inference.host.compiling import Compiling
one = Compiling(os.environ, Path(sys.argv[1]))
one.start()
print(one.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, compiled.VARIABLE: str(tmp_path / "kept")}


def is_over(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_it_works_while_there_is_something_to_do_and_ends_when_it_is_told(tmp_path, env):
    one = Compiling(env, tmp_path)
    one.start()
    try:
        until((tmp_path / "kept" / LOCK).exists, 60)
        assert psutil.Process(one.pid).nice() >= NICE
    finally:
        one.end()
    assert one.pid == 0
    assert "Traceback" not in (tmp_path / "compile.log").read_text()
    compiled.finish(tmp_path / "kept")
    one.start()
    assert one.pid == 0, "all is there"


def test_it_ends_with_a_supervisor_that_is_killed(tmp_path, env):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        until((tmp_path / "kept" / LOCK).exists, 60)
        parent.send_signal(signal.SIGKILL)
        until(lambda: is_over(pid), 10)
    finally:
        parent.kill()
        parent.wait()
