"""Diffs and recorded requests, from Valkey's streams into rows that stay few."""

from __future__ import annotations

import time

import pytest
import redis

from inference.protocol import records, shadows
from inference.protocol.messages import TensorHeader
from inference.protocol.records import Record
from inference.protocol.routes import DIFFS_STREAM, RECORDS_STREAM
from inference.protocol.samples import Sample, bucket_of
from inference.protocol.shadows import Diff
from telemetry import actions, tasks
from telemetry import shadows as stored
from telemetry.models import RecordedRequest, ShadowDiff
from telemetry.shadow_report import shadow_report

pytestmark = pytest.mark.django_db


@pytest.fixture
def valkey(settings):
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        client.delete(DIFFS_STREAM, RECORDS_STREAM)
        yield client
        client.delete(DIFFS_STREAM, RECORDS_STREAM)


def diff(sequence: int, **more) -> Diff:
    values = {
        "source": "gateway-1", "sequence": sequence, "at_unix_s": int(time.time()) - 5, "endpoint": "digits",
        "stable": 1, "candidate": 2, "distance": 0.5, "is_drift": True, "output": "y", "kind": "close",
        "detail": "far", "request": "x FP32[1]: 1", "stable_ms": 1.0, "candidate_ms": 2.0,
    }  # fmt: skip
    return Diff(**(values | more))


def recorded(sequence: int, **more) -> Record:
    values = {
        "source": "gateway-1", "sequence": sequence, "at_unix_s": int(time.time()) - 1000 + sequence,
        "endpoint": "digits", "version": 1, "kind": records.INFER, "latency_ms": 1.0, "is_repeatable": True,
        "tensors": [TensorHeader("x", "UINT8", [4], 4)], "body": b"\0\1\2\3", "outputs": [], "parameters": {},
        "answer": [TensorHeader("y", "UINT8", [2], 2)], "answer_body": b"\4\5",
    }  # fmt: skip
    return Record(**(values | more))


def test_both_streams_are_stored_once_and_emptied(valkey) -> None:
    for _ in range(2):
        valkey.xadd(DIFFS_STREAM, {shadows.FIELD: shadows.encode(diff(1))})
        valkey.xadd(RECORDS_STREAM, {records.FIELD: records.encode(recorded(1))})
    valkey.xadd(RECORDS_STREAM, {records.FIELD: b"\xffnonsense"})
    tasks.drain()
    assert (valkey.xlen(DIFFS_STREAM), valkey.xlen(RECORDS_STREAM)) == (0, 0)
    assert ShadowDiff.objects.get().detail == "far"
    row = RecordedRequest.objects.get()
    assert (row.endpoint, row.size_bytes, row.version) == ("digits", 6, 1)
    assert records.decode(bytes(row.record)) == recorded(1, at_unix_s=int(row.at.timestamp()))


def test_texts_that_no_database_holds_are_mended() -> None:
    stored.store_diffs([diff(1, detail="a\0b", request="\ud800" + "x" * 600)])
    row = ShadowDiff.objects.get()
    assert (row.detail, len(row.request), row.request[0]) == ("a\ufffdb", 500, "?")


def test_the_newest_are_kept_in_number_and_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "RECORDS_KEPT", 3)
    stored.store_records([recorded(number) for number in range(5)] + [recorded(9, endpoint="letters")])
    held = RecordedRequest.objects.filter(endpoint="digits").order_by("at")
    assert list(held.values_list("sequence", flat=True)) == [2, 3, 4]
    monkeypatch.setattr(stored, "RECORDS_KEPT_BYTES", 13)
    stored.store_records([recorded(5)])
    assert list(held.values_list("sequence", flat=True)) == [4, 5]
    assert RecordedRequest.objects.filter(endpoint="letters").count() == 1
    monkeypatch.setattr(stored, "DIFFS_KEPT", 2)
    stored.store_diffs([diff(number, at_unix_s=1000 + number) for number in range(4)])
    assert list(ShadowDiff.objects.order_by("at").values_list("sequence", flat=True)) == [2, 3]


def test_purging_takes_all_of_one_endpoint() -> None:
    stored.store_records([recorded(1), recorded(2), recorded(3, endpoint="letters")])
    assert stored.purge("digits") == 2
    assert RecordedRequest.objects.get().endpoint == "letters"


def test_the_report_adds_up_copies_and_shows_the_worst(django_assert_num_queries) -> None:
    now = int(time.time())

    def sample(sequence, **more):
        values = {"source": "g", "sequence": sequence, "at_unix_s": now - 5, "endpoint": "digits"}
        return Sample(**(values | more))

    actions.store(
        [
            sample(1, version=1, arm="primary", requests=10, latency_counts={bucket_of(2.0): 10}),
            sample(2, version=2, arm="shadow", requests=6, errors=1, latency_counts={bucket_of(8.0): 6}, compared=4,
                   drifted=1, drift_sum=1.0, drift_sq=1.0, dropped=3),
            sample(3, version=2, arm="shadow", source="h", requests=2, compared=1, drift_sum=0.5),
        ]
    )  # fmt: skip
    stored.store_diffs([diff(1, distance=0.2), diff(2, distance=0.9), diff(3, candidate=3)])
    with django_assert_num_queries(2):
        report = shadow_report("digits", 2, now - 60)
    assert (report["compared"], report["drifted"], report["dropped"], report["mean_distance"]) == (5, 1, 3, 0.3)
    assert (report["stable"]["version"], report["stable"]["requests"]) == (1, 10)
    assert (report["candidate"]["requests"], report["candidate"]["errors"]) == (8, 1)
    assert report["stable"]["p50_ms"] == pytest.approx(2.0, rel=0.25)
    assert report["candidate"]["p50_ms"] == pytest.approx(8.0, rel=0.25)
    assert [one["distance"] for one in report["worst"]] == [0.9, 0.2]
