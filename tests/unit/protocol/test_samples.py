from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from inference.protocol.samples import LATENCY_EDGES_MS, bucket_of, quantile_ms


@given(st.lists(st.floats(0.01, 50_000), min_size=1, max_size=200), st.floats(0.01, 1))
def test_a_quantile_lies_within_one_bucket_of_the_truth(latencies: list[float], q: float) -> None:
    counts: dict[int, int] = {}
    for value in latencies:
        counts[bucket_of(value)] = counts.get(bucket_of(value), 0) + 1
    found = quantile_ms(counts, q)
    rank = max(0, -(-int(q * len(latencies) * 1000) // 1000) - 1)
    true = sorted(latencies)[min(rank, len(latencies) - 1)]
    assert found is not None
    assert abs(bucket_of(found) - bucket_of(true)) <= 1


def test_no_data_is_none() -> None:
    assert quantile_ms({}, 0.5) is None


def test_edges_rise_by_a_quarter() -> None:
    for low, high in itertools.pairwise(LATENCY_EDGES_MS):
        assert 1.2 < high / low < 1.3
