"""What /metrics says of this gateway."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)

from inference import metrics
from inference.gateway.dataplane import DataPlane
from inference.gateway.sums import Histogram, held
from inference.gateway.telemetry import REFUSALS, Telemetry
from inference.protocol.samples import LATENCY_EDGES_MS

LABELS = ["endpoint", "version", "arm"]
STAGES = ("queue", "input", "compute", "output")


def families(plane: DataPlane, streams: int) -> Iterator[Metric]:
    """Every metric, at this moment."""
    yield from _traffic(plane.telemetry)
    yield from _judged(plane.telemetry)
    yield _stages(plane.telemetry)
    yield _rejections(plane.telemetry)
    yield _gauge(metrics.IN_FLIGHT, "Requests under way", len(plane.flights))
    yield _gauge(metrics.STREAMS, "Open WebSocket connections", streams)
    yield _gauge(metrics.GENERATION, "Generation of the routing table in force", plane.table.now.generation)
    ready, all_of_them = plane.pool.counts()
    yield _gauge(metrics.REPLICAS_READY, "Replicas that this gateway is connected to", ready)
    yield _gauge(metrics.REPLICAS, "Replicas in the routing table", all_of_them)


def _labels(endpoint: str, version: int, arm: str) -> list[str]:
    """Version 0 is none: the request was turned away before one was chosen."""
    return [endpoint, str(version or ""), arm]


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
        labels = _labels(endpoint, version, arm)
        requests.add_metric(labels, sums.requests)
        retries.add_metric(labels, sums.retries)
        queue.add_metric(labels, sums.waits.total / 1e9)
        compute.add_metric(labels, sums.compute.total / 1e9)
        latency.add_metric(labels, _latencies(held(sums.counts)), sums.latency_ms / 1e3)
        for code, count in sums.error_counts.items():
            errors.add_metric([*labels, code], count)
    yield from (requests, errors, retries, queue, compute, latency)


def _judged(telemetry: Telemetry) -> Iterator[Metric]:
    """What a rollout's judge looks at beside traffic and latency."""
    rescued = CounterMetricFamily(
        metrics.RESCUED, "Requests that failed here and that the stable version answered", labels=LABELS
    )
    invalid = CounterMetricFamily(metrics.INVALID, "Answers with NaN or infinity", labels=LABELS)
    scores = SummaryMetricFamily(metrics.SCORE, "Scores of answers that came back, 0 to 1", labels=LABELS)
    first = HistogramMetricFamily(
        metrics.FIRST_PART, "From arrival to the first part of a streamed answer", labels=LABELS
    )
    between = HistogramMetricFamily(
        metrics.BETWEEN_PARTS, "From one part of a streamed answer to the next", labels=LABELS
    )
    for (endpoint, version, arm), sums in telemetry.totals():
        labels = _labels(endpoint, version, arm)
        rescued.add_metric(labels, sums.rescued)
        invalid.add_metric(labels, sums.invalid)
        if sums.scores:
            scores.add_metric(labels, count_value=sums.scores, sum_value=sums.score_sum)
        if sums.first:
            first.add_metric(labels, _latencies(sums.first), sums.first_ms / 1e3)
        if sums.next:
            between.add_metric(labels, _latencies(sums.next), sums.next_ms / 1e3)
    yield from (rescued, invalid, scores, first, between)


def _stages(telemetry: Telemetry) -> Metric:
    stages = HistogramMetricFamily(
        metrics.STAGE, "Time that answered requests spent in a stage", labels=[*LABELS, "stage"]
    )
    for (endpoint, version, arm), sums in telemetry.totals():
        for stage in STAGES:
            spent: Histogram = getattr(sums, stage)
            stages.add_metric([*_labels(endpoint, version, arm), stage], _cumulative(spent, 1e9), spent.total / 1e9)
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
            if code in REFUSALS:
                found.add_metric([*_labels(endpoint, version, arm), code], count)
    return found


def _cumulative(spent: Histogram, per: float) -> list[tuple[str, float]]:
    """Counts up to each edge, with the edges divided by `per`."""
    found: list[tuple[str, float]] = []
    seen = 0
    for edge, count in zip(spent.edges, spent.counts, strict=False):
        seen += count
        found.append((f"{edge / per:g}", float(seen)))
    return [*found, ("+Inf", float(sum(spent.counts)))]


def _latencies(counts: Mapping[int, int]) -> list[tuple[str, float]]:
    """Cumulative counts; every fourth edge of the finer histogram that telemetry keeps."""
    found: list[tuple[str, float]] = []
    seen = 0
    for index, edge_ms in enumerate(LATENCY_EDGES_MS):
        seen += counts.get(index, 0)
        if index % 4 == 3:
            found.append((f"{edge_ms / 1e3:g}", float(seen)))
    found.append(("+Inf", float(sum(counts.values()))))
    return found
