"""Prometheus metrics of the engine's processes, rendered from sums that the rooms keep themselves.

Nothing is counted through a metrics library on a request's path: a scrape reads the sums and writes them out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

REQUESTS = "serinus_requests"
ERRORS = "serinus_request_errors"
RETRIES = "serinus_request_retries"
LATENCY = "serinus_request_latency_seconds"
QUEUE_SECONDS = "serinus_queue_seconds"
COMPUTE_SECONDS = "serinus_compute_seconds"
STAGE = "serinus_stage_seconds"
BATCH_SIZE = "serinus_batch_size"
REJECTIONS = "serinus_rejections"
PADDED_ROWS = "serinus_padded_rows"
ELEMENTS = "serinus_elements"
PADDING_ELEMENTS = "serinus_padding_elements"
DROPPED = "serinus_requests_dropped"
QUEUE_DEPTH = "serinus_queue_depth"
IN_FLIGHT = "serinus_requests_in_flight"
STREAMS = "serinus_websocket_connections"
REPLICAS_READY = "serinus_replicas_ready"
REPLICAS = "serinus_replicas"
GENERATION = "serinus_routing_generation"


class _Given(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def render(families: Iterable[Metric]) -> tuple[str, bytes]:
    """The content type and the text of these metrics."""
    registry = CollectorRegistry()
    registry.register(_Given(list(families)))
    return CONTENT_TYPE_LATEST, generate_latest(registry)
