"""Running sums of one endpoint, version and arm, and how they come together. Pure.

Answers of one batch come one after the other and bear the same times, so what is the same in a batch is counted once
for all of them (`Sums.settle`). The queue's wait is needed in the buckets of two histograms: it is counted once, in
buckets that both are made of.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from inference.gateway.copies import Copies
from inference.protocol.messages import Answer
from inference.protocol.samples import BATCH_EDGES, LATENCY_EDGES_MS, STAGE_EDGES_NS, bucket_of

_LATENCY_EDGES_NS = tuple(round(edge * 1e6) for edge in LATENCY_EDGES_MS)
WAIT_EDGES_NS = tuple(sorted({*STAGE_EDGES_NS, *_LATENCY_EDGES_NS}))
_ADDED = (
    "requests", "errors", "retries", "latency_ms", "first_ms", "next_ms", "invalid", "rescued", "drawn", "scores", "score_sum",
    "score_sq",
)  # fmt: skip


class Histogram:
    """Counts by upper edges, one more for what is above, and the sum of all values."""

    __slots__ = ("counts", "edges", "total")

    def __init__(self, edges: Sequence[float]) -> None:
        self.edges = edges
        self.counts = [0] * (len(edges) + 1)
        self.total = 0

    def observe(self, value: int, times: int = 1) -> None:
        self.counts[bisect_left(self.edges, value)] += times
        self.total += value * times

    def over(self, edges: Sequence[int]) -> Histogram:
        """The same in wider buckets, whose edges are some of these."""
        found = Histogram(edges)
        found.total = self.total
        for index, count in enumerate(self.counts):
            if count:
                here = bisect_left(edges, self.edges[index]) if index < len(self.edges) else len(edges)
                found.counts[here] += count
        return found

    def add(self, other: Histogram) -> None:
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.total += other.total


def _stage() -> Histogram:
    return Histogram(STAGE_EDGES_NS)


@dataclass(slots=True)
class Sums:
    """waits, input, compute, output: ns that answered requests spent in the queue and in each stage after it; batches:
    rows of the batch that each ran in. first, next: streamed answers' times to the first part and between parts, by the
    buckets of LATENCY_EDGES_MS, and their sums; the others as in protocol.samples.Sample.
    """

    requests: int = 0
    errors: int = 0
    retries: int = 0
    latency_ms: float = 0.0
    counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_EDGES_MS) + 1))
    error_counts: dict[str, int] = field(default_factory=dict)
    waits: Histogram = field(default_factory=lambda: Histogram(WAIT_EDGES_NS))
    input: Histogram = field(default_factory=_stage)
    compute: Histogram = field(default_factory=_stage)
    output: Histogram = field(default_factory=_stage)
    batches: Histogram = field(default_factory=lambda: Histogram(BATCH_EDGES))
    batch: Answer | None = None
    in_batch: int = 0
    first: dict[int, int] = field(default_factory=dict)
    next: dict[int, int] = field(default_factory=dict)
    first_ms: float = 0.0
    next_ms: float = 0.0
    invalid: int = 0
    rescued: int = 0
    drawn: int = 0
    scores: int = 0
    score_sum: float = 0.0
    score_sq: float = 0.0
    copies: Copies = field(default_factory=Copies)

    @property
    def queue(self) -> Histogram:
        """The queue's wait, by STAGE_EDGES_NS."""
        return self.waits.over(STAGE_EDGES_NS)

    @property
    def queue_counts(self) -> dict[int, int]:
        """The queue's wait, by LATENCY_EDGES_MS."""
        return held(self.waits.over(_LATENCY_EDGES_NS).counts)

    def add(self, other: Sums) -> None:
        """Adds `other` to these."""
        other.settle()
        for name in _ADDED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        for code, count in other.error_counts.items():
            self.error_counts[code] = self.error_counts.get(code, 0) + count
        self.copies.add(other.copies)
        for mine, theirs in ((self.first, other.first), (self.next, other.next)):
            for index, count in theirs.items():
                mine[index] = mine.get(index, 0) + count
        for name in ("waits", "input", "compute", "output", "batches"):
            getattr(self, name).add(getattr(other, name))

    def part(self, ms: float, *, is_first: bool) -> None:
        """A part of a streamed answer, `ms` after its request or after the part before."""
        index = bucket_of(ms)
        counts = self.first if is_first else self.next
        counts[index] = counts.get(index, 0) + 1
        if is_first:
            self.first_ms += ms
        else:
            self.next_ms += ms

    def begin_batch(self, answer: Answer) -> None:
        """The next answers are of this one's batch."""
        self.settle()
        self.batch = answer

    def settle(self) -> None:
        """Counts the answers of the current batch, as far as they have come."""
        if self.batch is not None and self.in_batch:
            self.input.observe(self.batch.input_ns, self.in_batch)
            self.compute.observe(self.batch.compute_ns, self.in_batch)
            self.output.observe(self.batch.output_ns, self.in_batch)
            self.batches.observe(self.batch.batch_size, self.in_batch)
        self.in_batch = 0


def held(counts: Sequence[int]) -> dict[int, int]:
    """The buckets that hold something."""
    return {index: count for index, count in enumerate(counts) if count}
