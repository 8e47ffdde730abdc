"""What this host computes on, found without a tensor library: CPU, CUDA by NVML, TPU by its device files.

CUDA devices bear the driver's numbers in PCI order, and CUDA_VISIBLE_DEVICES of this process leaves out what others
own. Fake devices (SERINUS_FAKE_DEVICES="cuda:2,tpu:4") are for tests only: they are listed, placed on and narrowed to
like real ones, and a replica on one computes on the CPU.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from inference.config import BadSetting
from inference.protocol.supervision import DeviceSeen

FAKE = re.compile(r"(cuda|tpu):([0-9]{1,3})")
FAKE_MEMORY_BYTES = 16 << 30
FAKE_DESCRIPTION = "fake device for tests"
GOOGLE_VENDOR = "0x1ae0"


@dataclass(frozen=True, slots=True)
class Found:
    """devices: the CPU first, each with its free memory now. held_bytes: pid -> memory that it holds of CUDA devices,
    as far as the driver tells (in a container it names other pids than we see).
    """

    devices: list[DeviceSeen] = field(default_factory=list)
    held_bytes: dict[int, int] = field(default_factory=dict)

    def is_fake(self, name: str) -> bool:
        return any(device.name == name and device.description == FAKE_DESCRIPTION for device in self.devices)


def discover(fake_devices: str = "") -> Found:
    """What is there now. Raises BadSetting for a bad list of fake devices."""
    found = cuda()
    real = [cpu(), *found.devices, *tpu()]
    taken = {device.name for device in real}
    return Found([*real, *(one for one in fake(fake_devices) if one.name not in taken)], found.held_bytes)


def cpu(cgroup: Path = Path("/sys/fs/cgroup")) -> DeviceSeen:
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    limit, used = _cgroup_memory(cgroup)
    if 0 < limit < total:
        total, free = limit, max(0, min(free, limit - used))
    return DeviceSeen(
        name="cpu",
        kind="cpu",
        memory_total_bytes=total,
        memory_free_bytes=free,
        utilisation=psutil.cpu_percent(None) / 100,
        description=f"{psutil.cpu_count() or 1} x {platform.machine()}",
    )


def _cgroup_memory(folder: Path) -> tuple[int, int]:
    """The container's memory limit and what it uses of it, without file cache that can go; 0 where there is none."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):
            bound = int((folder / limit).read_text(encoding="ascii"))
            taken = int((folder / used).read_text(encoding="ascii"))
            return bound, max(0, taken - _cache_bytes((folder / limit).parent / "memory.stat"))
    return 0, 0


def _cache_bytes(stat: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in stat.read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(" ")
            if name in {"inactive_file", "total_inactive_file"}:
                return int(value)
    return 0


def cuda(env: Mapping[str, str] = os.environ) -> Found:
    """CUDA devices by NVML's order, with what each process holds; none without its driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 (no driver, no library, no rights: there is no device that we could use)
        return Found()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        mine = {
            index: handle
            for index, handle in enumerate(handles)
            if _is_visible(env.get("CUDA_VISIBLE_DEVICES"), index, _text(pynvml.nvmlDeviceGetUUID(handle)))
        }
        held: dict[int, int] = {}
        for handle in mine.values():
            for pid, size_bytes in _held(pynvml, handle).items():
                held[pid] = held.get(pid, 0) + size_bytes
        return Found([_cuda(pynvml, index, handle) for index, handle in mine.items()], held)
    except pynvml.NVMLError:
        return Found()
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _is_visible(allowed: str | None, index: int, uuid: str) -> bool:
    """By CUDA_VISIBLE_DEVICES: numbers or (beginnings of) UUIDs, up to the first that is neither; None is all."""
    if allowed is None:
        return True
    for name in (part.strip() for part in allowed.split(",")):
        if name.isdecimal():
            if int(name) == index:
                return True
        elif not name.startswith("GPU-"):
            return False
        elif uuid.startswith(name):
            return True
    return False


def _held(nvml: Any, handle: Any) -> dict[int, int]:
    with contextlib.suppress(nvml.NVMLError):
        running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        return {int(one.pid): int(one.usedGpuMemory or 0) for one in running}
    return {}


def _cuda(nvml: Any, index: int, handle: Any) -> DeviceSeen:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    utilisation = -1.0
    with contextlib.suppress(nvml.NVMLError):  # a MIG slice tells no utilisation
        utilisation = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
    return DeviceSeen(
        name=f"cuda:{index}",
        kind="cuda",
        memory_total_bytes=int(memory.total),
        memory_free_bytes=int(memory.free),
        utilisation=utilisation,
        description=_text(nvml.nvmlDeviceGetName(handle)),
    )


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def tpu(dev: Path = Path("/dev"), sys: Path = Path("/sys")) -> list[DeviceSeen]:
    """TPU chips: /dev/accelN, or on newer hosts PCI functions of Google behind /dev/vfio."""
    count = len(list(_numbered(dev, "accel"))) or _vfio_chips(dev, sys)
    return [DeviceSeen(f"tpu:{i}", "tpu", 0, 0, description="TPU chip") for i in range(count)]


def _numbered(folder: Path, prefix: str) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from (path for path in folder.iterdir() if re.fullmatch(rf"{prefix}[0-9]+", path.name))


def _vfio_chips(dev: Path, sys: Path) -> int:
    groups = {path.name for path in _numbered(dev / "vfio", "")}
    found = 0
    for function in sorted((sys / "bus/pci/devices").glob("*")):
        with contextlib.suppress(OSError):
            group = (function / "iommu_group").resolve().name
            vendor = (function / "vendor").read_text(encoding="ascii").strip()
            found += vendor == GOOGLE_VENDOR and group in groups
    return found


def fake(text: str) -> list[DeviceSeen]:
    """For "cuda:2,tpu:4": cuda:0, cuda:1 and tpu:0 .. tpu:3, each with 16 GiB free."""
    found: list[DeviceSeen] = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        match = FAKE.fullmatch(part)
        if not match:
            raise BadSetting(f"SERINUS_FAKE_DEVICES={text!r}: must be like 'cuda:2,tpu:4'")
        kind, count = match.groups()
        found += [
            DeviceSeen(f"{kind}:{i}", kind, FAKE_MEMORY_BYTES, FAKE_MEMORY_BYTES, 0.0, FAKE_DESCRIPTION)
            for i in range(int(count))
        ]
    return found
