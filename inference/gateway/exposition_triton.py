"""Triton's metric names and our own of versions, from the sums that the replicas tell: asked for once a second, never by
a scrape.

The counters of this process never fall: what a replica did before it was restarted, or left the table, stays counted.
The lines are written here because Triton's counters bear no `_total`, which the metrics library would add.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

from inference import metrics
from inference.errors import SerinusError
from inference.gateway import exposition_language
from inference.gateway.connections import Link
from inference.gateway.dataplane import DataPlane
from inference.gateway.exposition_versions import families
from inference.gateway.table import Variant
from inference.protocol.statistics import ModelStatistics

EVERY_S = 1.0
ASK_S = 1.0
_FAMILIES = {
    "nv_inference_request_success": ("counter", "Number of successful inference requests, all batch sizes"),
    "nv_inference_request_failure": ("counter", "Number of failed inference requests, all batch sizes"),
    "nv_inference_count": ("counter", "Number of inferences performed (does not include cached requests)"),
    "nv_inference_exec_count": ("counter", "Number of model executions performed (does not include cached requests)"),
    "nv_inference_request_duration_us": ("counter", "Cumulative inference request duration in microseconds"),
    "nv_inference_queue_duration_us": ("counter", "Cumulative inference queuing duration in microseconds"),
    "nv_inference_compute_input_duration_us": ("counter", "Cumulative compute input duration in microseconds"),
    "nv_inference_compute_infer_duration_us": ("counter", "Cumulative compute inference duration in microseconds"),
    "nv_inference_compute_output_duration_us": ("counter", "Cumulative compute output duration in microseconds"),
    "nv_inference_pending_request_count": ("gauge", "Instantaneous number of pending requests awaiting execution"),
    "nv_cache_num_hits_per_model": ("counter", "Number of cache hits per model"),
    "nv_cache_num_misses_per_model": ("counter", "Number of cache misses per model"),
    "nv_cache_hit_duration_per_model": ("counter", "Total cache hit duration per model, in microseconds"),
    "nv_cache_miss_duration_per_model": ("counter", "Total cache miss duration per model, in microseconds"),
}


def values(found: ModelStatistics) -> dict[str, int]:
    """A version's sums under Triton's names."""
    return {
        "nv_inference_request_success": found.success.count,
        "nv_inference_request_failure": found.fail.count,
        "nv_inference_count": found.inference_count,
        "nv_inference_exec_count": found.execution_count,
        "nv_inference_request_duration_us": found.success.ns // 1000,
        "nv_inference_queue_duration_us": found.queue.ns // 1000,
        "nv_inference_compute_input_duration_us": found.compute_input.ns // 1000,
        "nv_inference_compute_infer_duration_us": found.compute_infer.ns // 1000,
        "nv_inference_compute_output_duration_us": found.compute_output.ns // 1000,
        "nv_inference_pending_request_count": found.queue_depth,
        "nv_cache_num_hits_per_model": found.cache_hit.count,
        "nv_cache_num_misses_per_model": found.cache_miss.count,
        "nv_cache_hit_duration_per_model": found.cache_hit.ns // 1000,
        "nv_cache_miss_duration_per_model": found.cache_miss.ns // 1000,
    }


@dataclass(slots=True)
class Sums:
    """One version's sums: of its replicas now, and of those that are gone or were started anew."""

    now: dict[str, ModelStatistics] = field(default_factory=dict)
    past: ModelStatistics = field(default_factory=ModelStatistics)

    def tell(self, replica: str, found: ModelStatistics) -> None:
        last = self.now.get(replica)
        if last is not None and _ended(found) < _ended(last):
            self._retire(last)
        self.now[replica] = found

    def keep(self, replicas: set[str]) -> None:
        """Retires every replica that is not among these."""
        for gone in self.now.keys() - replicas:
            self._retire(self.now.pop(gone))

    def total(self) -> ModelStatistics:
        total = ModelStatistics()
        for one in (self.past, *self.now.values()):
            total.merge(one)
        return total

    def _retire(self, last: ModelStatistics) -> None:
        last.queue_depth = last.in_flight = last.open_sequences = 0
        last.memory = {}
        if last.generation is not None:
            last.generation.forget_now()
        self.past.merge(last)


def _ended(found: ModelStatistics) -> int:
    return found.success.count + found.fail.count + found.execution_count


class TritonMetrics:
    """The sums of every version that the table has, as of the last second."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self._sums: dict[tuple[str, str], Sums] = {}

    async def run(self) -> None:
        """Asks the replicas once a second, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        """Asks every replica once; one that does not answer keeps what it told before."""
        endpoints = self._plane.table.now.endpoints
        variants = {(name, one.version): one for name, found in endpoints.items() for one in found.variants.values()}
        for gone in self._sums.keys() - variants.keys():
            del self._sums[gone]
        for key, variant in variants.items():
            sums = self._sums.setdefault(key, Sums())
            sums.keep({_name(link) for link in variant.links})
        await asyncio.gather(*(self._ask(self._sums[key], variant) for key, variant in variants.items()))

    async def _ask(self, sums: Sums, variant: Variant) -> None:
        for link in variant.links:
            if link.ready:
                with contextlib.suppress(SerinusError, TimeoutError):
                    sums.tell(_name(link), await link.statistics(ASK_S))

    def render(self) -> bytes:
        """Prometheus text. Names of endpoints need no escaping: they are letters, digits, '.', '_' and '-'."""
        found = {key: sums.total() for key, sums in self._sums.items()}
        if not found:
            return b""
        told = {key: values(total) for key, total in found.items()}
        lines: list[str] = []
        for name, (kind, text) in _FAMILIES.items():
            lines += (f"# HELP {name} {text}", f"# TYPE {name} {kind}")
            lines += (_line(name, model, version, told[model, version][name]) for model, version in told)
        lines += _gpu_memory({name: one for sums in self._sums.values() for name, one in sums.now.items()})
        spoken = {key: one.generation for key, one in found.items() if one.generation is not None}
        ours = [*families(found), *exposition_language.families(spoken)]
        return "\n".join([*lines, ""]).encode() + metrics.render(ours)[1]


def _name(link: Link) -> str:
    return f"{link.route.id}@{link.route.generation}"


def _line(name: str, model: str, version: str, value: int) -> str:
    return f'{name}{{model="{model}",version="{version}"}} {value}'


def _gpu_memory(replicas: dict[str, ModelStatistics]) -> list[str]:
    """What replicas say that they hold of each CUDA device; nothing where there is none."""
    held: dict[str, int] = {}
    for one in replicas.values():
        for device, size in one.memory.items():
            if device.startswith("cuda"):
                held[device] = held.get(device, 0) + size
    if not held:
        return []
    name = "nv_gpu_memory_used_bytes"
    head = [f"# HELP {name} GPU used memory, in bytes, as replicas tell it", f"# TYPE {name} gauge"]
    return head + [f'{name}{{gpu_uuid="{device}"}} {size}' for device, size in sorted(held.items())]
