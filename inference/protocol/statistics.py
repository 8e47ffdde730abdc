"""What a version did, as Triton's statistics extension counts it: exact sums since its replicas started.

Every request of a batch is charged the batch's whole compute times and its own time in the queue. So `queue`,
`compute_input`, `compute_infer`, `compute_output` and `success` have one count, the answered requests;
`execution_count` and `batches` count passes. Times are nanoseconds. Requests that the cache answered have no compute.
"""

from __future__ import annotations

from bisect import bisect_left

import msgspec


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


# Bounds in seconds, as vLLM's histograms of a token's and of a request's times have them.
FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
                 80.0, 160.0, 640.0, 2560.0)  # fmt: skip
TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
           20.0, 40.0, 80.0)  # fmt: skip
REQUEST_S = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
             960.0, 1920.0, 7680.0)  # fmt: skip


class Histogram(msgspec.Struct):
    """Counts by upper bound, the last one for all above; `sum` in seconds. Bounds are those of its field's name."""

    counts: list[int] = msgspec.field(default_factory=list)
    sum: float = 0.0

    def add(self, bounds: tuple[float, ...], value: float, count: int = 1) -> None:
        if not self.counts:
            self.counts = [0] * (len(bounds) + 1)
        self.counts[bisect_left(bounds, value)] += count
        self.sum += value * count

    def merge(self, other: Histogram) -> None:
        if self.counts and other.counts:
            self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        elif other.counts:
            self.counts = list(other.counts)
        self.sum += other.sum


class GenerationStatistics(msgspec.Struct):
    """What a language model's engine did; sums but for those of now: running, waiting, waiting_tokens, blocks (how many
    its cache has) and blocks_used.

    prefix_queries, prefix_hits: prompt tokens looked up and found. drafts, drafts_accepted: speculated tokens.
    Histograms: first_token (bounds FIRST_TOKEN_S), inter_token (TOKEN_S), request and queued (REQUEST_S).
    forward_ns, sampling_ns, scheduling_ns: where the engine's thread spent its iterations.
    """

    running: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    blocks: int = 0
    blocks_used: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    iterations: int = 0
    drafts: int = 0
    drafts_accepted: int = 0
    forward_ns: int = 0
    sampling_ns: int = 0
    scheduling_ns: int = 0
    first_token: Histogram = msgspec.field(default_factory=Histogram)
    inter_token: Histogram = msgspec.field(default_factory=Histogram)
    request: Histogram = msgspec.field(default_factory=Histogram)
    queued: Histogram = msgspec.field(default_factory=Histogram)
    finished: dict[str, int] = msgspec.field(default_factory=dict)

    def forget_now(self) -> None:
        """Leaves the sums: its engine is gone."""
        self.running = self.waiting = self.waiting_tokens = self.blocks = self.blocks_used = 0

    def merge(self, other: GenerationStatistics) -> None:
        for name in self.__struct_fields__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if isinstance(mine, Histogram):
                mine.merge(theirs)
            elif isinstance(mine, dict):
                for key, count in theirs.items():
                    mine[key] = mine.get(key, 0) + count
            else:
                setattr(self, name, mine + theirs)


class ModelStatistics(msgspec.Struct):
    """Sums of one replica, or of several that were merged.

    inference_count: rows; execution_count: passes; last_inference_ms: unix time of the newest. rejected: refusals by
    error code; cancelled: dropped before they ran; padded_rows and padding_elements over elements: work done for
    nothing; queue_depth, in_flight: now. memory: bytes by device. generation: of language models only.
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
        for mine, theirs in ((self.rejected, other.rejected), (self.memory, other.memory)):
            for key, count in theirs.items():
                mine[key] = mine.get(key, 0) + count
        if other.generation is not None:
            self.generation = self.generation or GenerationStatistics()
            self.generation.merge(other.generation)


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
