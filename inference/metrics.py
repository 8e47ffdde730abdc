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
RESCUED = "serinus_requests_rescued"
INVALID = "serinus_invalid_outputs"
SCORE = "serinus_score"
FIRST_PART = "serinus_first_part_seconds"
BETWEEN_PARTS = "serinus_between_parts_seconds"
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
DEVICE_MEMORY = "serinus_device_memory_bytes"
IN_FLIGHT = "serinus_requests_in_flight"
STREAMS = "serinus_websocket_connections"
REPLICAS_READY = "serinus_replicas_ready"
REPLICAS = "serinus_replicas"
GENERATION = "serinus_routing_generation"
RUNNING = "serinus_language_running"
WAITING = "serinus_language_waiting"
CACHE_USAGE = "serinus_language_cache_usage_ratio"
PROMPT_TOKENS = "serinus_language_prompt_tokens"
GENERATED_TOKENS = "serinus_language_generated_tokens"
PREFIX_QUERIES = "serinus_language_prefix_queries"
PREFIX_HITS = "serinus_language_prefix_hits"
PREEMPTIONS = "serinus_language_preemptions"
DRAFTS = "serinus_language_drafts"
DRAFTS_ACCEPTED = "serinus_language_drafts_accepted"
ITERATIONS = "serinus_language_iterations"
TIME_TO_FIRST = "serinus_language_first_token_seconds"
TIME_BETWEEN = "serinus_language_inter_token_seconds"
LANGUAGE_REQUEST = "serinus_language_request_seconds"
LANGUAGE_QUEUE = "serinus_language_queue_seconds"
REQUEST_PROMPT_TOKENS = "serinus_language_request_prompt_tokens"
REQUEST_GENERATED_TOKENS = "serinus_language_request_generated_tokens"
FINISHED = "serinus_language_finished"
ENGINE_SECONDS = "serinus_language_engine_seconds"


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
