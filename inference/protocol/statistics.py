"""What a version did, as Triton's statistics extension counts it: exact sums since its replicas started.

Every request of a batch is charged the batch's whole compute times and its own time in the queue. So `queue`,
`compute_input`, `compute_infer`, `compute_output` and `success` have one count, the answered requests;
`execution_count` and `batches` count passes. Times are nanoseconds. Requests that the cache answered have no compute.
"""

from __future__ import annotations

from bisect import bisect_left

import msgspec

from inference.protocol import custom_metrics
from inference.protocol.custom_metrics import Families

MAX_RESPONSES = 64


class Duration(msgspec.Struct):
    """How often, and how long all in all (ns)."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        self.count += count
        self.ns += ns

    def merge(self, other: Duration) -> None:
        self.count += other.count
        self.ns += other.ns


class BatchStatistics(msgspec.Struct):
    """Passes of one batch size (rows)."""

    compute_input: Duration = msgspec.field(default_factory=Duration)
    compute_infer: Duration = msgspec.field(default_factory=Duration)
    compute_output: Duration = msgspec.field(default_factory=Duration)


class ResponseStatistics(msgspec.Struct):
    """The answers of one place in the line of those that a decoupled model gives to a request.

    success, fail: compute_infer and compute_output of an answer together; empty_response: the end, where it came
    without an answer; cancel: what was tidied up instead, because the caller had left or its time was over.
    """

    compute_infer: Duration = msgspec.field(default_factory=Duration)
    compute_output: Duration = msgspec.field(default_factory=Duration)
    success: Duration = msgspec.field(default_factory=Duration)
    fail: Duration = msgspec.field(default_factory=Duration)
    empty_response: Duration = msgspec.field(default_factory=Duration)
    cancel: Duration = msgspec.field(default_factory=Duration)

    def answered(self, ns: int) -> None:
        for one in (self.compute_infer, self.success):
            one.add(ns)
        self.compute_output.add(0)  # a generator hands over what it has made: there is nothing more to do

    def failed(self, ns: int) -> None:
        for one in (self.compute_infer, self.fail):
            one.add(ns)

    def ended(self, ns: int) -> None:
        for one in (self.compute_infer, self.empty_response):
            one.add(ns)

    def merge(self, other: ResponseStatistics) -> None:
        for name in self.__struct_fields__:
            getattr(self, name).merge(getattr(other, name))


class Histogram(msgspec.Struct):
    """edges: upper ones (s, or tokens); counts: one more, for what is above; total: sum of the values."""

    edges: tuple[float, ...] = ()
    counts: list[int] = msgspec.field(default_factory=list)
    total: float = 0.0

    @staticmethod
    def over(edges: tuple[float, ...]) -> Histogram:
        return Histogram(edges, [0] * (len(edges) + 1))

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.edges, value)] += times
        self.total += value * times

    def merge(self, other: Histogram) -> None:
        """Adds `other`, which has these edges, or none yet."""
        if not other.edges:
            return
        if not self.edges:
            self.edges, self.counts = other.edges, [0] * len(other.counts)
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.total += other.total


class GenerationStatistics(msgspec.Struct):
    """What a language model's replica did. running, waiting: sequences now; cache_usage: 0..1 of the blocks for keys
    and values (of several replicas, the sum: divide by `replicas`). prefix_queries, prefix_hits: prompt tokens, and
    those of them that the prefix cache had. drafted, accepted: tokens. first_token: s from arrival; next_token: s from
    one token to the next. whole: s from arrival to the end; queued: s in the engine until the first chunk ran;
    prompts, answers: tokens of each finished request. finished: answers by finish reason. iterations: passes, and where their time went.
    """

    replicas: int = 1
    running: int = 0
    waiting: int = 0
    cache_usage: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preempted: int = 0
    drafted: int = 0
    accepted: int = 0
    iterations: int = 0
    scheduling_ns: int = 0
    forward_ns: int = 0
    sampling_ns: int = 0
    first_token: Histogram = msgspec.field(default_factory=Histogram)
    next_token: Histogram = msgspec.field(default_factory=Histogram)
    whole: Histogram = msgspec.field(default_factory=Histogram)
    queued: Histogram = msgspec.field(default_factory=Histogram)
    prompts: Histogram = msgspec.field(default_factory=Histogram)
    answers: Histogram = msgspec.field(default_factory=Histogram)
    finished: dict[str, int] = msgspec.field(default_factory=dict)

    def forget_now(self) -> None:
        """Leaves the sums: this replica is gone."""
        self.replicas = self.running = self.waiting = 0
        self.cache_usage = 0.0

    def merge(self, other: GenerationStatistics) -> None:
        """Adds another replica's."""
        for name in self.__struct_fields__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if isinstance(mine, Histogram):
                mine.merge(theirs)
            elif name != "finished":
                setattr(self, name, mine + theirs)
        for reason, count in other.finished.items():
            self.finished[reason] = self.finished.get(reason, 0) + count


class ModelStatistics(msgspec.Struct):
    """Sums of one replica, or of several that were merged.

    inference_count: rows; execution_count: passes; last_inference_ms: unix time of the newest. rejected: refusals by
    error code; cancelled: dropped before they ran; responses: of decoupled models, by the answer's place from 0, of the
    first MAX_RESPONSES of them; padded_rows and padding_elements over elements: work done for nothing; queue_depth,
    in_flight: now. memory: bytes by device. generation: of language models only. life: a number that each start of a
    replica draws anew, 0 where it was not told or several were merged. custom: what the model's own code counts, by name.
    """

    last_inference_ms: int = 0
    inference_count: int = 0
    execution_count: int = 0
    success: Duration = msgspec.field(default_factory=Duration)
    fail: Duration = msgspec.field(default_factory=Duration)
    queue: Duration = msgspec.field(default_factory=Duration)
    compute_input: Duration = msgspec.field(default_factory=Duration)
    compute_infer: Duration = msgspec.field(default_factory=Duration)
    compute_output: Duration = msgspec.field(default_factory=Duration)
    cache_hit: Duration = msgspec.field(default_factory=Duration)
    cache_miss: Duration = msgspec.field(default_factory=Duration)
    batches: dict[int, BatchStatistics] = msgspec.field(default_factory=dict)
    responses: dict[int, ResponseStatistics] = msgspec.field(default_factory=dict)
    rejected: dict[str, int] = msgspec.field(default_factory=dict)
    cancelled: int = 0
    padded_rows: int = 0
    elements: int = 0
    padding_elements: int = 0
    queue_depth: int = 0
    in_flight: int = 0
    open_sequences: int = 0
    memory: dict[str, int] = msgspec.field(default_factory=dict)
    generation: GenerationStatistics | None = None
    life: int = 0
    custom: Families = msgspec.field(default_factory=dict)

    def merge(self, other: ModelStatistics) -> None:
        """Adds another replica's sums to these."""
        self.last_inference_ms = max(self.last_inference_ms, other.last_inference_ms)
        for name in _DURATIONS:
            getattr(self, name).merge(getattr(other, name))
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for size, batch in other.batches.items():
            own = self.batches.setdefault(size, BatchStatistics())
            for name in ("compute_input", "compute_infer", "compute_output"):
                getattr(own, name).merge(getattr(batch, name))
        for place, response in other.responses.items():
            self.responses.setdefault(place, ResponseStatistics()).merge(response)
        for mine, theirs in ((self.rejected, other.rejected), (self.memory, other.memory)):
            for key, count in theirs.items():
                mine[key] = mine.get(key, 0) + count
        if other.generation is not None:
            self.generation = self.generation or GenerationStatistics(replicas=0)
            self.generation.merge(other.generation)
        custom_metrics.merge(self.custom, other.custom)


_DURATIONS = (
    "success",
    "fail",
    "queue",
    "compute_input",
    "compute_infer",
    "compute_output",
    "cache_hit",
    "cache_miss",
)
_COUNTS = (
    "inference_count",
    "execution_count",
    "cancelled",
    "padded_rows",
    "elements",
    "padding_elements",
    "queue_depth",
    "in_flight",
    "open_sequences",
)
