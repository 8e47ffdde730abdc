"""What a host says about its devices, with a driver that is simulated: this repository's tests need no GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest

from inference.host import devices

GIB = 1 << 30


class NVMLError(Exception):
    pass


class Driver(ModuleType):
    """NVML by its documented behaviour: two cards, three processes. `broken` names calls that answer an error."""

    NVMLError = NVMLError

    def __init__(self, *broken: str) -> None:
        super().__init__("pynvml")
        self.broken = broken
        self.shut_down = 0

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name in self.broken:
            raise NVMLError(name)
        return super().__getattribute__(name)

    def nvmlInit(self) -> None: ...  # noqa: N802

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.shut_down += 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(total=80 * GIB, free=(60 + handle) * GIB)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=25 * (handle + 1))

    def nvmlDeviceGetName(self, handle: int) -> bytes:  # noqa: N802
        return b"NVIDIA H100"

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return f"GPU-{handle}abc-0"

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:  # noqa: N802
        both = SimpleNamespace(pid=7, usedGpuMemory=2 * GIB)
        return [both, SimpleNamespace(pid=8 + handle, usedGpuMemory=None if handle else GIB)]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", made)
    return made


def test_each_card_tells_its_memory_and_each_process_what_it_holds(driver: Driver) -> None:
    found = devices.cuda({})
    assert [(d.name, d.kind, d.memory_total_bytes, d.memory_free_bytes, d.utilisation) for d in found.devices] == [
        ("cuda:0", "cuda", 80 * GIB, 60 * GIB, 0.25),
        ("cuda:1", "cuda", 80 * GIB, 61 * GIB, 0.5),
    ]
    assert {d.description for d in found.devices} == {"NVIDIA H100"}
    assert found.held_bytes == {7: 4 * GIB, 8: GIB, 9: 0}
    assert driver.shut_down == 1


@pytest.mark.parametrize(
    ("allowed", "names"),
    [
        ("1", ["cuda:1"]),
        ("1,0", ["cuda:0", "cuda:1"]),
        ("", []),
        ("-1", []),
        ("-1,0", []),
        ("GPU-1abc", ["cuda:1"]),
        ("GPU-0abc-0, 1", ["cuda:0", "cuda:1"]),
        ("5", []),
    ],
)
def test_cards_that_the_operator_hid_are_left_out_and_numbers_stay(
    driver: Driver, allowed: str, names: list[str]
) -> None:
    assert [d.name for d in devices.cuda({"CUDA_VISIBLE_DEVICES": allowed}).devices] == names


def test_a_slice_that_tells_no_utilisation_or_processes_is_still_a_device(driver: Driver) -> None:
    driver.broken = ("nvmlDeviceGetUtilizationRates", "nvmlDeviceGetComputeRunningProcesses")
    found = devices.cuda({})
    assert [d.utilisation for d in found.devices] == [-1.0, -1.0]
    assert found.held_bytes == {}


@pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetMemoryInfo"])
def test_a_driver_that_fails_is_no_device_and_no_error(driver: Driver, call: str) -> None:
    driver.broken = (call,)
    assert devices.cuda({}) == devices.Found()


def test_a_fake_device_never_takes_a_real_ones_place(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = devices.discover("cuda:3,tpu:1")
    by_name = {device.name: device.description for device in found.devices}
    assert by_name["cuda:1"] == "NVIDIA H100"
    assert [name for name in by_name if found.is_fake(name)] == ["cuda:2", "tpu:0"]


@pytest.mark.parametrize(
    ("limit", "used", "stat", "free_gib"),
    [
        (str(2 * GIB), str(GIB), "", 1.0),
        (str(2 * GIB), str(GIB), f"anon 5\ninactive_file {GIB // 2}\n", 1.5),
        (str(2 * GIB), str(3 * GIB), "", 0.0),
    ],
)
def test_in_a_container_the_cpus_memory_is_the_containers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, used: str, stat: str, free_gib: float
) -> None:
    machine = SimpleNamespace(total=64 * GIB, available=8 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    for name, text in (("memory.max", limit), ("memory.current", used), ("memory.stat", stat)):
        (tmp_path / name).write_text(text)
    found = devices.cpu(tmp_path)
    assert (found.memory_total_bytes, found.memory_free_bytes) == (2 * GIB, int(free_gib * GIB))


def test_without_a_bound_the_machine_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    found = devices.cpu(tmp_path)
    assert found.memory_total_bytes == psutil.virtual_memory().total
    assert 0 < found.memory_free_bytes <= found.memory_total_bytes
