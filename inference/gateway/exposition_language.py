"""What /metrics says of language models, as their engines counted it: under our names, and under vLLM's for dashboards and
autoscalers that know those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from inference import metrics
from inference.protocol.statistics import GenerationStatistics, Histogram

LABELS, VLLM_LABELS = ["endpoint", "version"], ["model_name", "version"]
Found = Mapping[tuple[str, str], GenerationStatistics]


@dataclass(frozen=True, slots=True)
class _Number:
    """A counter or gauge. vllm: its name there, "" where vLLM has none."""

    name: str
    vllm: str
    text: str
    value: Callable[[GenerationStatistics], float]


@dataclass(frozen=True, slots=True)
class _Times:
    """A histogram, of seconds or tokens."""

    name: str
    vllm: str
    text: str
    value: Callable[[GenerationStatistics], Histogram]


_GAUGES = (
    _Number(metrics.RUNNING, "vllm:num_requests_running", "Sequences that run now", lambda one: one.running),
    _Number(metrics.WAITING, "vllm:num_requests_waiting", "Sequences that wait to run", lambda one: one.waiting),
    _Number(metrics.CACHE_USAGE, "vllm:kv_cache_usage_perc", "Share of the key-value cache in use, 0 to 1",
            lambda one: one.cache_usage / max(1, one.replicas)),
)  # fmt: skip
_COUNTERS = (
    _Number(metrics.PROMPT_TOKENS, "vllm:prompt_tokens", "Tokens of prompts", lambda one: one.prompt_tokens),
    _Number(metrics.GENERATED_TOKENS, "vllm:generation_tokens", "Tokens made", lambda one: one.output_tokens),
    _Number(metrics.PREFIX_QUERIES, "vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache",
            lambda one: one.prefix_queries),
    _Number(metrics.PREFIX_HITS, "vllm:prefix_cache_hits", "Of these, found there", lambda one: one.prefix_hits),
    _Number(metrics.PREEMPTIONS, "vllm:num_preemptions", "Sequences that gave way and began anew",
            lambda one: one.preempted),
    _Number(metrics.DRAFTS, "vllm:spec_decode_num_draft_tokens", "Tokens that were speculated", lambda one: one.drafted),
    _Number(metrics.DRAFTS_ACCEPTED, "vllm:spec_decode_num_accepted_tokens", "Of these, accepted",
            lambda one: one.accepted),
    _Number(metrics.ITERATIONS, "", "Iterations of the engine", lambda one: one.iterations),
)  # fmt: skip
_TIMES = (
    _Times(metrics.TIME_TO_FIRST, "vllm:time_to_first_token_seconds", "From arrival to the first token",
           lambda one: one.first_token),
    _Times(metrics.TIME_BETWEEN, "vllm:inter_token_latency_seconds", "From a token to the next one",
           lambda one: one.next_token),
    _Times(metrics.LANGUAGE_REQUEST, "vllm:e2e_request_latency_seconds", "From arrival to the end of the answer",
           lambda one: one.whole),
    _Times(metrics.LANGUAGE_QUEUE, "vllm:request_queue_time_seconds", "In the engine, until the first chunk ran",
           lambda one: one.queued),
    _Times(metrics.REQUEST_PROMPT_TOKENS, "vllm:request_prompt_tokens", "Tokens of a finished request's prompt",
           lambda one: one.prompts),
    _Times(metrics.REQUEST_GENERATED_TOKENS, "vllm:request_generation_tokens", "Tokens of a finished request's answer",
           lambda one: one.answers),
)  # fmt: skip
_STAGES: dict[str, Callable[[GenerationStatistics], int]] = {
    "forward": lambda one: one.forward_ns,
    "sampling": lambda one: one.sampling_ns,
    "scheduling": lambda one: one.scheduling_ns,
}


def families(found: Found) -> Iterator[Metric]:
    """Of each endpoint and version that is a language model; nothing where there is none."""
    if not found:
        return
    for number in _GAUGES:
        for name, labels in _names(number.name, number.vllm):
            gauge = GaugeMetricFamily(name, number.text, labels=labels)
            for key, one in found.items():
                gauge.add_metric(list(key), number.value(one))
            yield gauge
    for number in _COUNTERS:
        for name, labels in _names(number.name, number.vllm):
            counter = CounterMetricFamily(name, number.text, labels=labels)
            for key, one in found.items():
                counter.add_metric(list(key), number.value(one))
            yield counter
    for times in _TIMES:
        for name, labels in _names(times.name, times.vllm):
            yield _histogram(name, labels, times, found)
    yield from _finished(found)
    yield _stages(found)


def _names(own: str, vllm: str) -> Iterator[tuple[str, list[str]]]:
    yield own, LABELS
    if vllm:
        yield vllm, VLLM_LABELS


def _histogram(name: str, labels: list[str], times: _Times, found: Found) -> Metric:
    histogram = HistogramMetricFamily(name, times.text, labels=labels)
    for key, one in found.items():
        held = times.value(one)
        if held.edges:
            edges = [*(f"{edge:g}" for edge in held.edges), "+Inf"]
            buckets = [(edge, float(count)) for edge, count in zip(edges, accumulate(held.counts), strict=True)]
            histogram.add_metric(list(key), buckets, held.total)
    return histogram


def _finished(found: Found) -> Iterator[Metric]:
    text = "Sequences that ended, by the reason"
    for name, labels, reason_label in (
        (metrics.FINISHED, LABELS, "reason"),
        ("vllm:request_success", VLLM_LABELS, "finished_reason"),
    ):
        counter = CounterMetricFamily(name, text, labels=[*labels, reason_label])
        for key, one in found.items():
            for reason, count in one.finished.items():
                counter.add_metric([*key, reason], count)
        yield counter


def _stages(found: Found) -> Metric:
    counter = CounterMetricFamily(
        metrics.ENGINE_SECONDS, "Where iterations spent their time", labels=[*LABELS, "stage"]
    )
    for key, one in found.items():
        for stage, spent_ns in _STAGES.items():
            counter.add_metric([*key, stage], spent_ns(one) / 1e9)
    return counter
