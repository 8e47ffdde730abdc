"""Numbers on their way from gateways to telemetry: sufficient sums per one-second bin, endpoint, version and arm.

One msgpack `Sample` per bin goes into the bounded Valkey stream `routes.SAMPLES_STREAM` (field `s`), so that a
reader can add samples up and estimate quantiles without ever seeing a request.
"""

from __future__ import annotations

import bisect

import msgspec

# Upper edges of the latency histogram in ms, a factor of about 1.25 apart; one more bucket holds what is above.
LATENCY_EDGES_MS: tuple[float, ...] = tuple(round(0.25 * 1.25**i, 4) for i in range(56))
# Upper edges of a stage's histogram in ns: 10 us, doubled up to 10 s.
STAGE_EDGES_NS: tuple[int, ...] = tuple(10_000 * 2**i for i in range(21))
# Upper edges of the batch sizes' histogram, in rows: 1, 2, 3, 4, 6, 8, 12, ... 1024.
BATCH_EDGES: tuple[int, ...] = (1, *(size for i in range(1, 10) for size in (2**i, 3 * 2 ** (i - 1))), 1024)


class Sample(msgspec.Struct):
    """Sums over one second. `source` + `sequence` identify it: storing it twice changes nothing.

    input, compute, output: assembling, running and taking apart the batches that requests ran in, each request charged
    with its whole batch. batch_counts: requests by the size of the batch they ran in, the buckets of BATCH_EDGES.
    queue_counts, first_counts, next_counts: of the queue's wait, the time to the first token and between tokens, in the
    buckets of LATENCY_EDGES_MS.

    What a rollout's judge reads besides: invalid: answers with NaN or infinite outputs; rescued: of the errors, those
    whose caller got the stable version's answer; drawn: requests that were assigned to this version each by itself, whoever
    answered them in the end (who is sticky, matched a rule or pinned a version is not drawn); scores: business scores (0..1) that came back, their sum and the sum
    of their squares. The arm "shadow" counts copies of live requests: compared, of them drifted (beyond the tolerance),
    drift_sum and drift_sq of their distances (0..1), dropped for want of room.
    """

    source: str
    sequence: int
    at_unix_s: int
    endpoint: str
    version: int
    arm: str
    requests: int = 0
    errors: int = 0
    retries: int = 0
    latency_sum_ms: float = 0.0
    queue_sum_ms: float = 0.0
    compute_sum_ms: float = 0.0
    batch_sum: int = 0
    latency_counts: dict[int, int] = msgspec.field(default_factory=dict)
    error_counts: dict[str, int] = msgspec.field(default_factory=dict)
    input_sum_ms: float = 0.0
    output_sum_ms: float = 0.0
    batch_counts: dict[int, int] = msgspec.field(default_factory=dict)
    queue_counts: dict[int, int] = msgspec.field(default_factory=dict)
    first_counts: dict[int, int] = msgspec.field(default_factory=dict)
    next_counts: dict[int, int] = msgspec.field(default_factory=dict)
    invalid: int = 0
    rescued: int = 0
    drawn: int = 0
    scores: int = 0
    score_sum: float = 0.0
    score_sq: float = 0.0
    compared: int = 0
    drifted: int = 0
    drift_sum: float = 0.0
    drift_sq: float = 0.0
    dropped: int = 0


def bucket_of(latency_ms: float) -> int:
    """Index of the histogram bucket that holds `latency_ms`."""
    return bisect.bisect_left(LATENCY_EDGES_MS, latency_ms)


def quantile_ms(counts: dict[int, int], q: float) -> float | None:
    """The q-quantile (0..1) in ms, by linear interpolation inside its bucket; None without data."""
    total = sum(counts.values())
    if not total:
        return None
    wanted, seen = q * total, 0
    for index in sorted(counts):
        seen += counts[index]
        if seen >= wanted:
            low = LATENCY_EDGES_MS[index - 1] if index else 0.0
            high = LATENCY_EDGES_MS[min(index, len(LATENCY_EDGES_MS) - 1)]
            return low + (high - low) * (1 - (seen - wanted) / counts[index])
    return LATENCY_EDGES_MS[-1]
