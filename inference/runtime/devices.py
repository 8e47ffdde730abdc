"""Narrows this process to its one device before any framework touches hardware. Imports no framework.

A device once visible is the only one: "cuda:3" becomes the process's "cuda:0". Frameworks that were imported before
the fork read these variables at their first use, which must not have happened yet.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass

from inference.errors import Unsupported

KINDS = ("cpu", "cuda", "tpu")


@dataclass(frozen=True, slots=True)
class Device:
    """kind: "cpu", "cuda" or "tpu"; index: which of the host's."""

    kind: str
    index: int = 0

    @property
    def local(self) -> str:
        """Its name inside this process once `select` has run."""
        return "cpu" if self.kind == "cpu" else f"{self.kind}:0"


def parse(name: str) -> Device:
    """The device called "cpu", "cuda:N" or "tpu:N". Raises Unsupported for anything else."""
    kind, _, index = name.partition(":")
    if kind not in KINDS or not (index.isdecimal() or (kind == "cpu" and not index)):
        raise Unsupported(f"{name!r} is no device: cpu, cuda:N or tpu:N")
    return Device(kind, int(index or 0))


def select(name: str, memory_share: float = 0.9, env: MutableMapping[str, str] = os.environ) -> str:
    """Makes `name` the only device of this process; returns the name that loaders use.

    memory_share: 0..1 of the device's memory that JAX and torch may take; JAX takes it as it needs it.
    """
    device = parse(name)
    env.update(_variables(device, memory_share))
    jax = sys.modules.get("jax")
    if jax is not None:
        jax.config.update("jax_platforms", env["JAX_PLATFORMS"])
    return device.local


def limit_torch_memory(local: str, memory_share: float) -> None:
    """Caps torch's allocator on a CUDA device; nothing elsewhere. Touches the device."""
    torch = sys.modules.get("torch")
    if torch is not None and local.startswith("cuda"):
        torch.cuda.set_per_process_memory_fraction(memory_share, local)


def _variables(device: Device, memory_share: float) -> dict[str, str]:
    own = str(device.index)
    jax_platforms = {"cpu": "cpu", "cuda": "cuda,cpu", "tpu": "tpu,cpu"}[device.kind]
    found = {
        "JAX_PLATFORMS": jax_platforms,
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{memory_share:.2f}",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # so that N means what the driver's tools mean
        "CUDA_VISIBLE_DEVICES": own if device.kind == "cuda" else "",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if device.kind == "tpu":
        one = {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1", "TPU_VISIBLE_CHIPS": own}
        found |= one
    return found
