"""Triton's metric names and our own of versions, from the sums that the replicas tell: asked for once a second, never by
a scrape.

The lines are written here because Triton's counters bear no `_total`, which the metrics library would add.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from inference import metrics
from inference.errors import SerinusError
from inference.gateway import exposition_language
from inference.gateway.connections import Link
from inference.gateway.dataplane import DataPlane
from inference.gateway.exposition_custom import CustomMetrics
from inference.gateway.exposition_versions import families
from inference.gateway.gpus import Gpus
from inference.gateway.replica_sums import Kept, Key, Sums
from inference.gateway.table import Endpoint, counted_as
from inference.protocol.statistics import ModelStatistics

EVERY_S = 1.0
ASK_S = 1.0
FAILURE = "nv_inference_request_failure"
_FAMILIES = {
    "nv_inference_request_success": ("counter", "Number of successful inference requests, all batch sizes"),
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


def failures(found: ModelStatistics) -> dict[str, int]:
    """A version's failed requests by Triton's reasons. All but CANCELED are `fail` in its statistics."""
    shed = sum(found.rejected.get(code, 0) for code in ("overloaded", "deadline_exceeded"))
    refused = sum(found.rejected.values())
    return {
        "REJECTED": shed,
        "CANCELED": found.cancelled,
        "BACKEND": max(0, found.fail.count - refused),
        "OTHER": refused - shed,
    }


class TritonMetrics:
    """The sums of every version that the table has, as of the last second. path: where they outlive this process."""

    def __init__(self, plane: DataPlane, path: Path) -> None:
        self._plane = plane
        self._kept = Kept(path)
        self._custom = CustomMetrics()
        self.gpus = Gpus()
        self._links: dict[Key, dict[str, Link]] = {}

    async def run(self) -> None:
        """Asks the replicas once a second, for ever."""
        self._kept.load()
        while True:
            await self.look()
            self._plane.telemetry.keep(self._plane.table.now.counted(), time.monotonic())
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        """Asks every replica once; one that does not answer keeps what it told before, one that left its last words."""
        table = self._plane.table.now
        if table.generation < 0:
            return
        found = dict(_links([*table.endpoints.items(), *table.steps.items()]))
        self._kept.keep(found, time.monotonic())
        for key in found.keys() | self._links.keys():
            links = self._links.setdefault(key, {})
            links.update({_name(link): link for link in found.get(key, [])})
            for name in [name for name, link in links.items() if link.is_retired and link.last is None]:
                del links[name]
            self._kept.of(key).keep(links)
            if not links and key not in found:
                del self._links[key]
        asked = [(key, link) for key, links in self._links.items() for link in links.values()]
        await asyncio.gather(*(self._ask(self._kept.of(key), link) for key, link in asked))
        data = self._kept.unsaved()
        if data:
            await asyncio.to_thread(self._kept.save, data)

    async def _ask(self, sums: Sums, link: Link) -> None:
        name = _name(link)
        if link.last is not None:
            sums.tell(name, link.last)
            link.last = None
        if not link.ready:
            sums.rest(name)
            return
        with contextlib.suppress(SerinusError, TimeoutError):
            sums.tell(name, await link.statistics(ASK_S))

    def render(self) -> bytes:
        """Prometheus text. Names of endpoints need no escaping: they are letters, digits, '.', '_', '-' and '/'."""
        found = {key: sums.total() for key, sums in sorted(self._kept.sums.items())}
        told = {key: values(total) for key, total in found.items()}
        lines = self.gpus.lines()
        for name, (kind, text) in _FAMILIES.items() if found else ():
            lines += (f"# HELP {name} {text}", f"# TYPE {name} {kind}")
            lines += (_line(name, model, version, told[model, version][name]) for model, version in told)
        lines += _failures(found) if found else ()
        lines += self._custom.lines(found)
        spoken = {key: one.generation for key, one in found.items() if one.generation is not None}
        ours = [*families(found), *exposition_language.families(spoken)]
        return "\n".join([*lines, ""]).encode() + metrics.render(ours)[1]


def _links(endpoints: list[tuple[str, Endpoint]]) -> Iterator[tuple[Key, list[Link]]]:
    """Of every version, and of every step of a pipeline; a pipeline itself has none."""
    for name, endpoint in endpoints:
        for variant in endpoint.variants.values():
            if variant.plan is None:
                yield (counted_as(name), variant.version), variant.links


def _name(link: Link) -> str:
    return f"{link.route.id}@{link.route.generation}"


def _line(name: str, model: str, version: str, value: int) -> str:
    return f'{name}{{model="{model}",version="{version}"}} {value}'


def _failures(found: dict[Key, ModelStatistics]) -> Iterator[str]:
    yield f"# HELP {FAILURE} Number of failed inference requests, all batch sizes"
    yield f"# TYPE {FAILURE} counter"
    for (model, version), one in found.items():
        for reason, count in failures(one).items():
            yield f'{FAILURE}{{model="{model}",reason="{reason}",version="{version}"}} {count}'
