"""What a version did, as Triton's statistics extension counts it: exact sums since its replicas started.

Every request of a batch is charged the batch's whole compute times and its own time in the queue. So `queue`,
`compute_input`, `compute_infer`, `compute_output` and `success` have one count, the answered requests;
`execution_count` and `batches` count passes. Times are nanoseconds. Requests that the cache answered have no compute.
"""

from __future__ import annotations

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


class ModelStatistics(msgspec.Struct):
    """Sums of one replica, or of several that were merged.

    inference_count: rows; execution_count: passes; last_inference_ms: unix time of the newest. rejected: refusals by
    error code; cancelled: dropped before they ran; padded_rows and padding_elements over elements: work done for
    nothing; queue_depth, in_flight: now. memory: bytes by device.
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
