"""Row 28 of the fault matrix through the whole platform: real small file systems under the artifact store and under the
logs, both filled to the last byte while a client sends 50 requests a second.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.journeys.conftest import ECHO_BODY, write_echo
from tests.support import artifacts
from tests.support.house import House, running_house, until
from tests.support.load import Load

pytestmark = [pytest.mark.fault, pytest.mark.timeout(240), pytest.mark.xdist_group("disk")]
STORE_MIB, LOGS_MIB, HEAVY_MIB = 112, 2, 16  # 64 MiB of the store's file system are its reserve


@contextlib.contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[Path]:
    folder.mkdir(parents=True, mode=0o700)
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}M,mode=700", "tmpfs", str(folder)], check=False
    ).returncode:
        pytest.skip("may not mount a tmpfs here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all that is left."""
    file = folder / "somebody-elses"
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as out:
        while out.write(bytes(1 << 16)):
            pass
    return file


def stored(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def cramped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    root = tmp_path_factory.mktemp("cramped")
    with (
        small_disk(root / "store", STORE_MIB) as store,
        small_disk(root / "data" / "logs", LOGS_MIB),
        running_house(root, SERINUS_ARTIFACTS=str(store)) as house,
    ):
        version = house.upload("echo", write_echo(root / "model", factor=2.0))
        house.deploy("echo", version["number"])
        house.serves("echo", ECHO_BODY)
        yield house


def load_on(house: House) -> Load:
    return Load(f"{house.gateway_url}/v2/models/echo/infer", ECHO_BODY, house.key)


def test_row_28_a_full_store_refuses_the_upload_and_disturbs_nobody(cramped: House, tmp_path: Path) -> None:
    store = Path(cramped.environment["SERINUS_ARTIFACTS"])
    artifacts.onnx_heavy(tmp_path / "heavy", HEAVY_MIB)
    before = stored(store)
    with load_on(cramped) as load:
        others = fill(store)
        done = cramped.cli("upload", "heavy", str(tmp_path / "heavy"), "--json", check=False)
        error = json.loads(done.stdout)["error"]
        assert (done.returncode, error["code"]) == (1, "storage_full"), error
        assert error["message"]
        assert stored(store) - {others.name} == before, "a part of it was left behind"
        assert cramped.api("GET", "/api/models/heavy/").status_code == 404
        others.unlink()
        version = cramped.upload("heavy", tmp_path / "heavy")
        assert version["status"] == "ready", "there is room again"
    assert not load.failed, load.explain()


def test_row_28_full_logs_hold_nobody_up(cramped: House) -> None:
    logs = cramped.data_dir / "logs"
    others = fill(logs)
    try:
        with load_on(cramped) as load:
            for _ in range(100):  # each of these is something to write about
                httpx.get(f"{cramped.console_url}/nowhere/", timeout=10)
                cramped.infer("nowhere", ECHO_BODY)
            killed = cramped.kill("agent")
            until("a killed program is started all the same", lambda: cramped.pid("agent") not in {0, killed}, 30)
            (row,) = cramped.ready_replicas("echo")
            cramped.ok("POST", f"/api/replicas/{row['id']}/restart/")
            until(
                "a replica too", lambda: [r for r in cramped.ready_replicas("echo") if r["pid"] != row["pid"]], 60, 0.2
            )
        assert not load.failed, load.explain()
    finally:
        others.unlink()
    cramped.kill("agent", 15)
    until("logs are written again", lambda: others.parent.joinpath("agent.log").stat().st_size, 30)
