"""What /metrics says of this gateway."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from inference import metrics
from inference.gateway.dataplane import DataPlane
from inference.gateway.telemetry import Histogram, Sums, Telemetry
from inference.protocol.samples import LATENCY_EDGES_MS

LABELS = ["endpoint", "version", "arm"]
STAGES = ("queue", "input", "compute", "output")
# Codes of requests that were turned away or given up without having been run, as against those that failed.
REJECTIONS = frozenset({
    "cancelled", "conflict", "context_length_exceeded", "deadline_exceeded", "draining", "forbidden", "invalid_input", "invalid_request",
    "malformed", "not_found", "not_ready", "overloaded", "poison_input", "rate_limited", "rejected", "too_large",
    "unauthenticated", "unsupported", "unsupported_encoding",
})  # fmt: skip


def families(plane: DataPlane, streams: int) -> Iterator[Metric]:
    """Every metric, at this moment."""
    yield from _traffic(plane.telemetry)
    yield _stages(plane.telemetry)
    yield _rejections(plane.telemetry)
    yield _gauge(metrics.IN_FLIGHT, "Requests under way", len(plane.flights))
    yield _gauge(metrics.STREAMS, "Open WebSocket connections", streams)
    yield _gauge(metrics.GENERATION, "Generation of the routing table in force", plane.table.now.generation)
    ready, all_of_them = plane.pool.counts()
    yield _gauge(metrics.REPLICAS_READY, "Replicas that this gateway is connected to", ready)
    yield _gauge(metrics.REPLICAS, "Replicas in the routing table", all_of_them)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _traffic(telemetry: Telemetry) -> Iterator[Metric]:
    requests = CounterMetricFamily(metrics.REQUESTS, "Requests that ended", labels=LABELS)
    errors = CounterMetricFamily(
        metrics.ERRORS, "Requests that ended in an error, by its code", labels=[*LABELS, "code"]
    )
    retries = CounterMetricFamily(metrics.RETRIES, "Requests sent to a replica a second time", labels=LABELS)
    queue = CounterMetricFamily(metrics.QUEUE_SECONDS, "Time that requests waited at a replica", labels=LABELS)
    compute = CounterMetricFamily(metrics.COMPUTE_SECONDS, "Time of the batches that requests ran in", labels=LABELS)
    latency = HistogramMetricFamily(metrics.LATENCY, "Time from arrival to answer", labels=LABELS)
    for (endpoint, version, arm), sums in telemetry.totals():
        labels = [endpoint, str(version), arm]
        requests.add_metric(labels, sums.requests)
        retries.add_metric(labels, sums.retries)
        queue.add_metric(labels, sums.queue.total / 1e9)
        compute.add_metric(labels, sums.compute.total / 1e9)
        latency.add_metric(labels, _buckets(sums), sums.latency_ms / 1e3)
        for code, count in sums.error_counts.items():
            errors.add_metric([*labels, code], count)
    yield from (requests, errors, retries, queue, compute, latency)


def _stages(telemetry: Telemetry) -> Metric:
    stages = HistogramMetricFamily(
        metrics.STAGE, "Time that answered requests spent in a stage", labels=[*LABELS, "stage"]
    )
    for (endpoint, version, arm), sums in telemetry.totals():
        for stage in STAGES:
            held: Histogram = getattr(sums, stage)
            stages.add_metric([endpoint, str(version), arm, stage], _cumulative(held, 1e9), held.total / 1e9)
    return stages


def _rejections(telemetry: Telemetry) -> Metric:
    """By reason: at the door (without version), in the endpoint's queue, at the replica."""
    found = CounterMetricFamily(
        metrics.REJECTIONS, "Requests that were not run, by the reason", labels=[*LABELS, "reason"]
    )
    for (endpoint, code), count in telemetry.refusals.items():
        found.add_metric([endpoint, "", "", code], count)
    for (endpoint, version, arm), sums in telemetry.totals():
        for code, count in sums.error_counts.items():
            if code in REJECTIONS:
                found.add_metric([endpoint, str(version), arm, code], count)
    return found


def _cumulative(held: Histogram, per: float) -> list[tuple[str, float]]:
    """Counts up to each edge, with the edges divided by `per`."""
    found: list[tuple[str, float]] = []
    seen = 0
    for edge, count in zip(held.edges, held.counts, strict=False):
        seen += count
        found.append((f"{edge / per:g}", float(seen)))
    return [*found, ("+Inf", float(sum(held.counts)))]


def _buckets(sums: Sums) -> list[tuple[str, float]]:
    """Cumulative counts; every fourth edge of the finer histogram that telemetry keeps."""
    found: list[tuple[str, float]] = []
    seen = 0
    for index, edge_ms in enumerate(LATENCY_EDGES_MS):
        seen += sums.counts[index]
        if index % 4 == 3:
            found.append((f"{edge_ms / 1e3:g}", float(seen)))
    found.append(("+Inf", float(sum(sums.counts))))
    return found
