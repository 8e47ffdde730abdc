"""The whole platform as a user without any rights: no root, no capability, a home that is its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.journeys.test_formats import NUMBERS, as_json, from_json
from tests.support import artifacts
from tests.support.house import REPO, House

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("without-root"),
    pytest.mark.skipif(os.getuid() != 0, reason="every other journey shows it where the tests do not run as root"),
]
NOBODY = 65_534
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]


def may_read(path: Path) -> bool:
    return subprocess.run([*AS_NOBODY, "test", "-r", str(path)], check=False).returncode == 0


# In mounts of its own: $1 stays where it is, and its closed parent $2 becomes one that all may enter.
OPENED = """
set -e
mount --bind "$1" "$3"
mount -t tmpfs -o mode=755 tmpfs "$2"
mkdir -p "$1"
mount --bind "$3" "$1"
shift 3
exec "$@"
"""


def opened(path: Path, hold: Path) -> list[str]:
    """How to call a program so that everybody may reach `path`, whatever its parents are closed to."""
    closed = [parent for parent in (*reversed(path.parents), path) if not may_read(parent / ".")]
    if not closed:
        return []
    if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode:
        pytest.skip(f"{closed[0]} is for root alone, and mounts may not be changed here")
    return ["unshare", "--mount", "sh", "-c", OPENED, "sh", str(path), str(closed[0]), str(hold)]


@pytest.fixture
def ground() -> Iterator[Path]:
    """A folder that everybody may enter, which those of pytest are not."""
    folder = Path(tempfile.mkdtemp(prefix="serinus-nobody-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def python(ground: Path) -> list[str]:
    """How nobody calls the interpreter of these tests."""
    if not may_read(REPO / "serinus" / "up.py"):
        pytest.skip("these files are for root alone")
    (ground / "hold").mkdir()
    return [*opened(Path(sys.base_prefix), ground / "hold"), *AS_NOBODY, sys.executable]


def test_a_model_is_uploaded_checked_and_served_without_root(ground: Path, python: list[str], tmp_path: Path) -> None:
    home = ground / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    house = House(home, python=python, SERINUS_COMPILED="")  # what root keeps, it may not read
    try:
        house.start()
        assert house.process is not None
        family = psutil.Process(house.process.pid).children(recursive=True)
        assert len(family) > 10
        assert {process.uids().effective for process in family if process.is_running()} == {NOBODY}
        reference = artifacts.torch_export(tmp_path / "m")
        version = house.upload("plain", tmp_path / "m")
        assert version["status"] == "ready", version["reason"]
        walls = {check["name"]: check["message"] for check in version["report"]["checks"]}["load"]
        assert "Landlock" in walls
        assert "system call filter" in walls
        house.deploy("plain", version["number"])
        house.serves("plain", as_json(NUMBERS))
        found = from_json(house.infer("plain", as_json(NUMBERS)).json())
        np.testing.assert_allclose(found["y"], reference(NUMBERS)["y"], atol=1e-5)
        (replica,) = house.seen()
        assert psutil.Process(replica.pid).uids().effective == NOBODY
    finally:
        status = house.stop()
    assert status == 0
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
