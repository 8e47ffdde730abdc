"""Samples on their way from Valkey's stream to a chart."""

from __future__ import annotations

import time

import msgspec
import pytest
import redis

from accounts.models import ApiKey, AuditEntry
from inference.protocol.routes import SAMPLES_STREAM, USED_KEYS
from inference.protocol.samples import BATCH_EDGES, Sample, bucket_of
from telemetry import actions, queries, tasks
from telemetry.models import StoredSample

pytestmark = pytest.mark.django_db


@pytest.fixture
def valkey(settings):
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        client.delete(SAMPLES_STREAM, USED_KEYS)
        yield client
        client.delete(SAMPLES_STREAM, USED_KEYS)


def sample(sequence: int, *, ago_s: float = 5, latencies: tuple[float, ...] = (1.0, 2.0, 100.0), **more) -> Sample:
    counts: dict[int, int] = {}
    for latency in latencies:
        counts[bucket_of(latency)] = counts.get(bucket_of(latency), 0) + 1
    values = {
        "source": "gateway-1",
        "sequence": sequence,
        "at_unix_s": int(time.time() - ago_s),
        "endpoint": "digits",
        "version": 1,
        "arm": "primary",
        "requests": len(latencies),
        "latency_sum_ms": sum(latencies),
        "batch_sum": 2 * len(latencies),
        "latency_counts": counts,
    }
    return Sample(**(values | more))


def send(valkey, *samples: Sample) -> None:
    for one in samples:
        valkey.xadd(SAMPLES_STREAM, {"s": msgspec.msgpack.encode(one)}, maxlen=10_000)


def test_the_stream_is_stored_and_emptied(valkey) -> None:
    send(valkey, sample(1), sample(2))
    assert tasks.drain() == 2
    assert valkey.xlen(SAMPLES_STREAM) == 0
    assert StoredSample.objects.count() == 2
    assert tasks.drain() == 0


def test_which_keys_gateways_saw_is_noted_once_in_a_while(valkey, cast) -> None:
    used, idle = cast.key("owner")[4:16], cast.key("developer")[4:16]
    ApiKey.objects.update(last_used_at=None)
    entries = AuditEntry.objects.count()
    valkey.sadd(USED_KEYS, used, "never-heard-of", b"\xff\0")
    tasks.drain()
    assert valkey.scard(USED_KEYS) == 0
    first = ApiKey.objects.get(pk=used).last_used_at
    assert first is not None
    assert ApiKey.objects.get(pk=idle).last_used_at is None
    assert AuditEntry.objects.count() == entries
    valkey.sadd(USED_KEYS, used)
    tasks.drain()
    assert ApiKey.objects.get(pk=used).last_used_at == first, "half a minute has not passed"


def test_storing_twice_changes_nothing(valkey) -> None:
    send(valkey, sample(1), sample(1), sample(2))
    actions.drain()
    send(valkey, sample(2), sample(1, source="gateway-2"))
    actions.drain()
    assert sorted(StoredSample.objects.values_list("source", "sequence")) == [
        ("gateway-1", 1),
        ("gateway-1", 2),
        ("gateway-2", 1),
    ]


def test_what_is_no_sample_is_dropped_and_the_rest_goes_on(valkey) -> None:
    valkey.xadd(SAMPLES_STREAM, {"s": b"\xff\x00garbage"})
    valkey.xadd(SAMPLES_STREAM, {"other": b"x"})
    send(valkey, sample(1, at_unix_s=1 << 60), sample(2))
    actions.drain()
    assert list(StoredSample.objects.values_list("sequence", flat=True)) == [2]
    assert valkey.xlen(SAMPLES_STREAM) == 0


def test_one_run_is_bounded(valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "BATCH", 3)
    monkeypatch.setattr(actions, "BATCHES_PER_RUN", 2)
    send(valkey, *(sample(n) for n in range(10)))
    assert actions.drain() == 6
    assert actions.drain() == 4


def test_a_dead_valkey_is_no_error(settings) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    assert tasks.drain() == 0


def test_samples_are_kept_for_a_day() -> None:
    actions.store([sample(1, ago_s=25 * 3600), sample(2, ago_s=23 * 3600)])
    assert tasks.expire() == 1
    assert list(StoredSample.objects.values_list("sequence", flat=True)) == [2]


def test_summary_adds_up_over_gateways() -> None:
    actions.store(
        [
            sample(1, latencies=(1.0,) * 98 + (50.0, 50.0)),
            sample(1, source="gateway-2", ago_s=20, errors=3, error_counts={"overloaded": 2, "deadline_exceeded": 1}),
            sample(2, version=2, arm="canary", latencies=(10.0,), error_counts={}),
            sample(3, endpoint="letters"),
            sample(4, ago_s=7200),
        ]
    )
    first, second = queries.summary("digits", 60)
    assert (first["version"], first["arm"], first["requests"], first["errors"]) == (1, "primary", 103, 3)
    assert first["error_counts"] == {"overloaded": 2, "deadline_exceeded": 1}
    assert first["requests_per_s"] == pytest.approx(103 / 60)
    assert first["p50_ms"] == pytest.approx(1.0, rel=0.25)
    assert first["p99_ms"] == pytest.approx(50.0, rel=0.25)
    assert first["mean_batch"] == 2.0
    assert (second["version"], second["requests"], second["p50_ms"]) == (2, 1, pytest.approx(10.0, rel=0.25))


def test_stages_and_batch_sizes_add_up() -> None:
    stages = {"queue_sum_ms": 6.0, "input_sum_ms": 3.0, "compute_sum_ms": 9.0, "output_sum_ms": 1.5}
    actions.store(
        [
            sample(1, batch_counts={0: 1, 3: 2}, **stages),
            sample(1, source="gateway-2", version=2, batch_counts={3: 2, len(BATCH_EDGES): 1}, **stages),
            sample(2, endpoint="letters", batch_counts={0: 9}),
            sample(3, ago_s=7200, batch_counts={0: 9}),
        ]
    )
    assert queries.batch_sizes("digits", 60) == [(1, 1), (4, 4), (0, 1)]
    line = queries.summary("digits", 60)[0]
    assert [line["queue_ms"], line["input_ms"], line["compute_ms"], line["output_ms"]] == [2.0, 1.0, 3.0, 0.5]
    assert queries.batch_sizes("nothing", 60) == []


def test_series_is_in_order_and_bounded() -> None:
    actions.store([sample(n, ago_s=n) for n in range(1, 400)])
    points = queries.series("digits", 600)
    assert points == sorted(points, key=lambda p: p["at"])
    assert len(points) <= queries.MAX_POINTS + 1
    assert sum(p["requests"] for p in points) == 399 * 3
    assert len(queries.series("digits", 10)) <= 11
    assert queries.series("nothing", 600) == []


def test_nothing_is_nothing() -> None:
    assert queries.summary("digits", 60) == []
    empty = sample(1, latencies=(), errors=2)
    actions.store([empty])
    (line,) = queries.summary("digits", 60)
    assert (line["errors"], line["p50_ms"], line["mean_ms"]) == (2, None, None)


@pytest.mark.parametrize("asked", [-5, 0, 10**9])
def test_any_time_span_is_brought_into_bounds(asked: int) -> None:
    actions.store([sample(1)])
    queries.series("digits", asked)
    queries.summary("digits", asked)
    assert queries.step_s(24 * 3600) == 288
