"""The suite has the same tests each time it is collected: workers that count different ones run none.

A name must not hang on the clock, on hashing, or on what was drawn by chance.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
FOLDERS = tuple(f"tests/{folder}" for folder in ("unit", "integration", "journeys", "devices"))

WHOLE_FILES = 2000  # tests: a session with that many was given no part of a file
MOST_FILES = 100


def collecting(seed: str) -> subprocess.Popen[str]:
    """Another collection of the whole suite, with a hash seed of its own."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    return subprocess.Popen(
        [*command, *FOLDERS], cwd=REPO, env=clean | {"PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def names(process: subprocess.Popen[str]) -> list[str]:
    said, _ = process.communicate(timeout=550)
    assert process.returncode == 0, said[-3000:]
    return [line for line in said.splitlines() if line.startswith("tests/") and "::" in line]


@pytest.mark.timeout(600)
def test_the_suite_has_the_same_names_each_time(request: pytest.FixtureRequest) -> None:
    """Two collections, begun more than a second apart and with different hash seeds.

    Where this session has collected whole files itself, that is one of the two: collecting takes half a minute.
    """
    here = [item.nodeid for item in request.session.items]
    first = collecting("1") if len(here) < WHOLE_FILES else None
    time.sleep(1.1)
    second = collecting("2")
    there = names(second)
    if first is not None:
        here = names(first)
        assert here == there, "parameters in another order: xdist compares that too"
    files = {name.split("::")[0] for name in here}
    assert len(files) > MOST_FILES
    assert sorted(here) == sorted(name for name in there if name.split("::")[0] in files)
    assert len(there) == len(set(there)), "two tests have one name"
