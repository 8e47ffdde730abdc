"""Narrows this process to its one device before any framework touches hardware. Imports no framework.

A device once visible is the only one: "cuda:3" becomes the process's "cuda:0". Frameworks that were imported before
the fork read these variables at their first use, which must not have happened yet.

A fake device (SERINUS_FAKE_DEVICES, for tests) gets all that a real one gets, but what computes is the CPU.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass

from inference.errors import Unsupported

KINDS = ("cpu", "cuda", "tpu")
DEFAULT_SHARE = 0.9


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


def select(
    name: str, memory_share: float = 0.0, env: MutableMapping[str, str] = os.environ, *, fake: bool = False
) -> str:
    """Makes `name` the only device of this process; returns the name that loaders use ("cpu" for a fake one).

    memory_share: 0..1 of the device's memory that JAX may take, which it takes as it needs it; 0 for the default.
    """
    device = parse(name)
    env.update(_variables(device, memory_share or DEFAULT_SHARE))
    if fake:
        env["JAX_PLATFORMS"] = "cpu"
    jax = sys.modules.get("jax")
    if jax is not None:
        jax.config.update("jax_platforms", env["JAX_PLATFORMS"])
    return "cpu" if fake else device.local


def torch_bytes(local: str) -> int:
    """What torch's allocator holds of a CUDA device that it has used; 0 elsewhere. Touches no device."""
    torch = sys.modules.get("torch")
    if torch is None or not local.startswith("cuda") or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.memory_reserved(local))


def _variables(device: Device, memory_share: float) -> dict[str, str]:
    own = str(device.index)
    jax_platforms = {"cpu": "cpu", "cuda": "cuda,cpu", "tpu": "tpu,cpu"}[device.kind]
    found = {
        "JAX_PLATFORMS": jax_platforms,
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{memory_share:.4f}",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # so that N means what the driver's tools mean
        "CUDA_VISIBLE_DEVICES": own if device.kind == "cuda" else "",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if device.kind == "tpu":
        found |= {
            "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
            "TPU_PROCESS_BOUNDS": "1,1,1",
            "TPU_VISIBLE_CHIPS": own,
            # A neighbour on another chip has loaded libtpu too, and its lock file lies where a sandbox cannot write.
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            # The cloud's metadata server cannot be reached from a sandbox without network.
            "TPU_SKIP_MDS_QUERY": "1",
        }
    return found
