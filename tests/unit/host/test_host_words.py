"""Exits in words, the scrubbed environment, devices, and what validation makes of a child's reports."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.config import BadSetting
from inference.host import devices, validations
from inference.host.environment import child_environment
from inference.host.exits import Exit, size_words, status_words
from inference.protocol.child import CheckReport, PhaseReport, ValidationReport
from inference.protocol.status import ReplicaPhase
from inference.protocol.supervision import CheckSeen, FileRef, ValidationSeen, ValidationSpec


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "exit code 0"),
        (7, "exit code 7"),
        (-11, "SIGSEGV (it touched memory that is not its own)"),
        (-9, "SIGKILL"),
        (-31, "sandbox forbids"),
        (-35, "signal 35"),
        (None, "fork server"),
    ],
)
def test_every_exit_has_words(status: int | None, words: str) -> None:
    assert words in status_words(status)


def test_every_signal_of_this_system_has_words() -> None:
    assert all(number.name in status_words(-number) for number in signal.Signals)


def test_the_supervisors_own_reason_comes_before_the_signal() -> None:
    assert Exit(-9, "it hung").words == "it hung"
    assert (size_words(2 << 30), size_words(512 << 20)) == ("2.0 GiB", "512 MiB")


ALLOWED = {"PATH", "PYTHONPATH", "LANG"}


@given(st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=5), max_size=10))
def test_a_name_that_nobody_allowed_is_never_passed(env: dict[str, str]) -> None:
    secret = {f"X_{name}": "hunter2" for name in env} | {"DATABASE_URL": "hunter2", "AWS_SECRET_ACCESS_KEY": "hunter2"}
    made = child_environment(secret | {"PATH": "/bin"}, home=Path("/h"), threads=3)
    assert "hunter2" not in made.values()
    assert (made["PATH"], made["HOME"], made["OMP_NUM_THREADS"]) == ("/bin", "/h", "3")


def test_the_path_to_the_code_survives_a_change_of_folder() -> None:
    made = child_environment({"PYTHONPATH": ".:platform"}, home=Path("/h"), threads=1)
    assert made["PYTHONPATH"] == f"{Path.cwd()}:{Path.cwd() / 'platform'}"


def test_fake_devices_are_listed_and_a_bad_list_names_the_variable() -> None:
    assert [d.name for d in devices.fake("cuda:2, tpu:1")] == ["cuda:0", "cuda:1", "tpu:0"]
    assert devices.fake("") == []
    with pytest.raises(BadSetting, match="SERINUS_FAKE_DEVICES"):
        devices.fake("gpu:1")


def test_tpus_are_found_by_their_device_files(tmp_path: Path) -> None:
    dev = tmp_path / "dev"
    dev.mkdir()
    assert devices.tpu(dev, tmp_path) == []
    for name in ("accel0", "accel1", "accelerate"):
        (dev / name).touch()
    assert [d.name for d in devices.tpu(dev, tmp_path)] == ["tpu:0", "tpu:1"]


def test_only_googles_vfio_functions_are_tpus(tmp_path: Path) -> None:
    (tmp_path / "dev/vfio").mkdir(parents=True)
    for group, vendor in (("7", "0x1ae0"), ("8", "0x10de")):
        (tmp_path / "dev/vfio" / group).touch()
        function = tmp_path / "sys/bus/pci/devices" / f"0000:0{group}"
        function.mkdir(parents=True)
        (function / "vendor").write_text(vendor + "\n")
        (tmp_path / "groups" / group).mkdir(parents=True)
        (function / "iommu_group").symlink_to(tmp_path / "groups" / group)
    assert [d.name for d in devices.tpu(tmp_path / "dev", tmp_path / "sys")] == ["tpu:0"]


RUNNING = ValidationSeen("r", 3, "running")


def test_a_line_of_the_checklist_is_replaced_in_its_place() -> None:
    seen = RUNNING
    for check in (CheckSeen("a", "running"), CheckSeen("b", "running"), CheckSeen("a", "passed")):
        seen = validations.merge(seen, CheckReport(check))
    assert [(c.name, c.state) for c in seen.checks] == [("a", "passed"), ("b", "running")]


def test_a_child_chooses_neither_its_run_nor_its_lease_nor_a_state_of_its_own() -> None:
    told = ValidationReport(ValidationSeen("other", 99, "approved"))
    seen = validations.merge(RUNNING, told)
    assert (seen.run, seen.lease, seen.state) == ("r", 3, "rejected")
    assert validations.merge(RUNNING, PhaseReport(ReplicaPhase.READY)) == RUNNING


def test_a_flood_of_checks_is_cut() -> None:
    seen = RUNNING
    for index in range(200):
        seen = validations.merge(seen, CheckReport(CheckSeen(str(index), "passed")))
    assert len(seen.checks) == validations.MAX_CHECKS


def test_a_rejection_marks_the_line_that_was_under_way() -> None:
    seen = validations.merge(RUNNING, CheckReport(CheckSeen("load", "running")))
    rejected = validations.reject(seen, "it hung", "make it faster")
    assert rejected.checks == [CheckSeen("load", "failed", "it hung", "make it faster")]
    assert (rejected.state, rejected.reason, rejected.remedy) == ("rejected", "it hung", "make it faster")


@pytest.mark.parametrize(
    ("size_bytes", "limit"), [(1, 2 << 30), (512 << 20, 2 << 30), ((512 << 20) + 1, (2 << 30) + 4)]
)
def test_memory_is_the_larger_of_2_gib_and_four_artifacts(size_bytes: int, limit: int) -> None:
    files = [FileRef("w", size_bytes, "0" * 64)]
    assert validations.memory_limit_bytes(ValidationSpec("r", 1, "m", 1, "d", "data", files, {})) == limit
