"""Triton's metrics of the GPUs of this machine, read by NVML once a second in a thread; nothing where there is none.

A gateway on a machine without GPUs tells nothing of those of other hosts: their own exporter does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any

EVERY_S = 1.0
_FAMILIES = {
    "nv_gpu_utilization": ("gauge", "GPU utilization rate [0.0 - 1.0)"),
    "nv_gpu_memory_total_bytes": ("gauge", "GPU total memory, in bytes"),
    "nv_gpu_memory_used_bytes": ("gauge", "GPU used memory, in bytes"),
    "nv_gpu_power_usage": ("gauge", "GPU power usage in watts"),
    "nv_gpu_power_limit": ("gauge", "GPU power management limit in watts"),
    "nv_energy_consumption": ("counter", "GPU energy consumption in joules since the driver was loaded"),
}
Read = Callable[[Any, Any], float]
_READS: dict[str, Read] = {
    "nv_gpu_utilization": lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
    "nv_gpu_memory_total_bytes": lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total,
    "nv_gpu_memory_used_bytes": lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
    "nv_gpu_power_usage": lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
    "nv_gpu_power_limit": lambda nvml, gpu: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1e3,
    "nv_energy_consumption": lambda nvml, gpu: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3,
}


class Gpus:
    """What the driver said last, by name and UUID."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._told: Mapping[str, Mapping[str, float]] = {}

    async def run(self) -> None:
        """Asks the driver for ever; stands still where there is none."""
        self._nvml = await asyncio.to_thread(_driver)
        while self._nvml is not None:
            self._told = await asyncio.to_thread(_read, self._nvml)
            await asyncio.sleep(EVERY_S)
        await asyncio.Event().wait()

    def lines(self) -> list[str]:
        """In Prometheus' text."""
        found: list[str] = []
        for name, values in self._told.items():
            if values:
                kind, text = _FAMILIES[name]
                found += (f"# HELP {name} {text}", f"# TYPE {name} {kind}")
                found += (f'{name}{{gpu_uuid="{uuid}"}} {value:.15g}' for uuid, value in sorted(values.items()))
        return found


def _driver() -> Any:
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 (no driver, no library, no rights: there is no GPU that we could tell of)
        return None
    return pynvml


def _read(nvml: Any) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {name: {} for name in _FAMILIES}
    with contextlib.suppress(nvml.NVMLError):
        for index in range(nvml.nvmlDeviceGetCount()):
            gpu = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = nvml.nvmlDeviceGetUUID(gpu)
            uuid = uuid.decode() if isinstance(uuid, bytes) else str(uuid)
            for name, read in _READS.items():
                with contextlib.suppress(nvml.NVMLError):  # a MIG slice tells neither utilisation nor power
                    found[name][uuid] = float(read(nvml, gpu))
    return found
