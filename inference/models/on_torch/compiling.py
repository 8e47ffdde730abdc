"""Torch programs that are compiled, or replayed as CUDA graphs, once a shape: everything happens in the warm-up.

`compile` needs a C++ compiler at serving time, and a sandboxed replica may start none; on a CUDA device it is tried, and
the warm-up rejects the version with torch's own words where it fails. `cuda_graphs` needs nothing but the device.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch

from inference.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable

    from inference.artifacts.manifest import RuntimeSettings

MAX_GRAPHS = 64
WARM_PASSES = 2


def ready(forward: Callable[..., Any], settings: RuntimeSettings, device: str) -> Callable[..., Any]:
    """`forward`, made quick as the settings ask. Raises Rejected where this device cannot do that."""
    if settings.compile == "none":
        return forward
    if not device.startswith("cuda"):
        raise Rejected(
            f"compile={settings.compile} needs a CUDA device, and this version is to run on {device}: "
            "compiling for a CPU starts a C++ compiler, which the sandbox of a replica does not allow",
            remedy="upload it without compile, or validate and deploy it on a host with a CUDA device",
            check="load",
        )
    if settings.compile == "compile":
        compiled: Callable[..., Any] = torch.compile(forward, dynamic=False)
        return compiled
    return Graphs(forward)


class Graphs:
    """One captured graph a shape of inputs; tensors of a flat result are copied out of the graph's own memory."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward
        self._graphs: dict[tuple[tuple[int, ...], ...], tuple[Any, list[torch.Tensor], Any]] = {}
        self._lock = threading.Lock()  # a graph's memory holds one pass at a time

    @property
    def count(self) -> int:
        return len(self._graphs)

    def __call__(self, *leaves: torch.Tensor) -> Any:
        key = tuple(tuple(leaf.shape) for leaf in leaves)
        with self._lock:
            if key not in self._graphs:
                if len(self._graphs) >= MAX_GRAPHS:
                    return self._forward(*leaves)
                self._graphs[key] = self._captured(leaves)
            graph, held, result = self._graphs[key]
            for own, given in zip(held, leaves, strict=True):
                own.copy_(given, non_blocking=True)
            graph.replay()
            copied = torch.utils._pytree.tree_map(lambda one: one.clone(), result)  # noqa: SLF001 (the one that knows dataclasses too)
            torch.cuda.current_stream().synchronize()
        return copied

    def _captured(self, leaves: tuple[torch.Tensor, ...]) -> tuple[Any, list[torch.Tensor], Any]:
        held = [leaf.clone() for leaf in leaves]
        for _ in range(WARM_PASSES):
            self._forward(*held)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = self._forward(*held)
        return graph, held, result
