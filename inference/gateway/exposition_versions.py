"""What /metrics says of versions: passes, padding and what was dropped, as their replicas counted them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from inference import metrics
from inference.protocol.samples import BATCH_EDGES
from inference.protocol.statistics import BatchStatistics, ModelStatistics

LABELS = ["endpoint", "version"]


def families(found: Mapping[tuple[str, str], ModelStatistics]) -> Iterator[Metric]:
    """Of each endpoint and version."""
    sizes = HistogramMetricFamily(metrics.BATCH_SIZE, "Rows of the batches that were run", labels=LABELS)
    rows = CounterMetricFamily(metrics.PADDED_ROWS, "Rows that were added to fill a batch", labels=LABELS)
    elements = CounterMetricFamily(
        metrics.ELEMENTS, "Elements along padded dimensions that were run, padding included", labels=LABELS
    )
    padding = CounterMetricFamily(metrics.PADDING_ELEMENTS, "Of these, padding", labels=LABELS)
    dropped = CounterMetricFamily(metrics.DROPPED, "Requests whose caller left before they ran", labels=LABELS)
    depth = GaugeMetricFamily(metrics.QUEUE_DEPTH, "Requests that wait at replicas", labels=LABELS)
    memory = GaugeMetricFamily(metrics.DEVICE_MEMORY, "What replicas hold of a device", labels=[*LABELS, "device"])
    for key, one in found.items():
        labels = list(key)
        sizes.add_metric(labels, _sizes(one.batches), sum(size * _passes(held) for size, held in one.batches.items()))
        rows.add_metric(labels, one.padded_rows)
        elements.add_metric(labels, one.elements)
        padding.add_metric(labels, one.padding_elements)
        dropped.add_metric(labels, one.cancelled)
        depth.add_metric(labels, one.queue_depth)
        for device, held in sorted(one.memory.items()):
            memory.add_metric([*labels, device], held)
    yield from (sizes, rows, elements, padding, dropped, depth, memory)


def _passes(held: BatchStatistics) -> int:
    return held.compute_infer.count


def _sizes(batches: Mapping[int, BatchStatistics]) -> list[tuple[str, float]]:
    found = [(str(edge), float(_up_to(batches, edge))) for edge in BATCH_EDGES]
    return [*found, ("+Inf", float(sum(_passes(held) for held in batches.values())))]


def _up_to(batches: Mapping[int, BatchStatistics], edge: int) -> int:
    return sum(_passes(held) for size, held in batches.items() if size <= edge)
