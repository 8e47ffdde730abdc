"""What the echo model does to its process on a magic value: each in a process of its own."""

import os
import signal
import subprocess
import sys

import pytest

from tests.support import artifacts

SCRIPT = """
import resource, sys
from pathlib import Path
from inference.artifacts.manifest import RuntimeSettings
from inference.models import LoadContext, load
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
load("echo", LoadContext(Path(sys.argv[1]), RuntimeSettings()))
"""


def child(folder):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)], stderr=subprocess.DEVNULL, env=dict(os.environ)
    )


def test_abort_ends_the_process_by_a_signal(tmp_path):
    artifacts.echo(tmp_path, at_load="abort")
    assert child(tmp_path).wait(30) == -signal.SIGABRT


@pytest.mark.parametrize("kind", ["hang", "busy"])
def test_hang_and_busy_do_not_come_back(tmp_path, kind):
    artifacts.echo(tmp_path, at_load=kind)
    process = child(tmp_path)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
    finally:
        process.kill()
        process.wait()


def test_allocate_fails_by_memory_under_a_limit(tmp_path):
    artifacts.echo(tmp_path, at_load="allocate")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
    done = subprocess.run(
        [sys.executable, "-c", limit + SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=30, check=False
    )
    assert "MemoryError" in done.stderr


def test_it_imports_no_framework(tmp_path):
    artifacts.echo(tmp_path)
    check = "assert not {'torch', 'jax', 'onnxruntime', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", SCRIPT + check, str(tmp_path)], check=True, timeout=30)
