"""What this host computes on, found without a tensor library: CPU, CUDA by NVML, TPU by its device files.

Fake devices (SERINUS_FAKE_DEVICES="cuda:2,tpu:4") let placement be tested on a machine that has none.
"""

from __future__ import annotations

import contextlib
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import psutil

from inference.config import BadSetting
from inference.protocol.supervision import DeviceSeen

FAKE = re.compile(r"(cuda|tpu):([0-9]{1,3})")
FAKE_MEMORY_BYTES = 16 << 30
GOOGLE_VENDOR = "0x1ae0"


def discover(fake_devices: str = "") -> list[DeviceSeen]:
    """Every device with its free memory now; the CPU first. Raises BadSetting for a bad list of fake ones."""
    real = [cpu(), *cuda(), *tpu()]
    taken = {device.name for device in real}
    return [*real, *(device for device in fake(fake_devices) if device.name not in taken)]


def cpu() -> DeviceSeen:
    memory = psutil.virtual_memory()
    total, used = memory.total, memory.total - memory.available
    limit = _cgroup_limit()
    if limit and limit < total:
        total = limit
    return DeviceSeen(
        name="cpu",
        kind="cpu",
        memory_total_bytes=total,
        memory_free_bytes=max(0, total - used),
        utilisation=psutil.cpu_percent(None) / 100,
        description=f"{psutil.cpu_count() or 1} x {platform.machine()}",
    )


def _cgroup_limit() -> int:
    """The container's memory limit in bytes; 0 when there is none."""
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            return int(Path(name).read_text(encoding="ascii"))
    return 0


def cuda() -> list[DeviceSeen]:
    """CUDA devices by NVML's order; none without its driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 (no driver, no library, no rights: there is no device that we could use)
        return []
    try:
        return [_cuda(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _cuda(nvml: object, index: int) -> DeviceSeen:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)  # type: ignore[attr-defined]
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)  # type: ignore[attr-defined]
    utilisation = -1.0
    with contextlib.suppress(Exception):  # a MIG slice tells no utilisation
        utilisation = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100  # type: ignore[attr-defined]
    name = nvml.nvmlDeviceGetName(handle)  # type: ignore[attr-defined]
    return DeviceSeen(
        name=f"cuda:{index}",
        kind="cuda",
        memory_total_bytes=int(memory.total),
        memory_free_bytes=int(memory.free),
        utilisation=utilisation,
        description=name.decode() if isinstance(name, bytes) else str(name),
    )


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
            DeviceSeen(f"{kind}:{i}", kind, FAKE_MEMORY_BYTES, FAKE_MEMORY_BYTES, 0.0, "fake device for tests")
            for i in range(int(count))
        ]
    return found
