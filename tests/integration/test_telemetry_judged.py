"""The sums that a rollout's judge reads, out of real rows."""

from __future__ import annotations

import time

import pytest

from inference.protocol.samples import Sample, bucket_of
from telemetry import actions, judged
from telemetry.judged import JudgedBin, judged_bins
from telemetry.models import StoredSample

pytestmark = pytest.mark.django_db


def sample(sequence: int, at_unix_s: int, **more) -> Sample:
    values = {
        "source": "gateway-1", "sequence": sequence, "at_unix_s": at_unix_s, "endpoint": "digits", "version": 1,
        "arm": "primary", "requests": 3, "latency_counts": {bucket_of(2.0): 2, bucket_of(9.0): 1},
    }  # fmt: skip
    return Sample(**(values | more))


def test_seconds_of_all_gateways_are_added_up() -> None:
    at = int(time.time()) - 10
    actions.store(
        [
            sample(1, at, errors=1, error_counts={"overloaded": 1}, queue_counts={0: 3}, first_counts={4: 1}),
            sample(2, at, source="gateway-2", errors=3, error_counts={"overloaded": 1, "model_failed": 2}, invalid=1,
                   rescued=2, queue_counts={0: 1, 5: 2}, next_counts={7: 9}, latency_sum_ms=1.5, queue_sum_ms=0.5),
            sample(3, at + 1, scores=2, score_sum=1.5, score_sq=1.25),
            sample(4, at, version=2, arm="shadow", compared=3, drifted=1, drift_sum=0.5, drift_sq=0.25, dropped=4),
            sample(5, at, endpoint="letters"),
        ]
    )  # fmt: skip
    found = judged_bins("digits", at)
    assert set(found) == {(1, "primary"), (2, "shadow")}
    first, second = found[1, "primary"]
    assert first == JudgedBin(
        at, requests=6, errors=4, invalid=1, rescued=2, latency_sum_ms=1.5, queue_sum_ms=0.5,
        latency={bucket_of(2.0): 4, bucket_of(9.0): 2}, queue={0: 4, 5: 2}, first={4: 1}, next={7: 9},
        error_counts={"overloaded": 2, "model_failed": 2},
    )  # fmt: skip
    assert first.refusals == 2
    assert (second.at_unix_s, second.scores, second.score_sum, second.score_sq) == (at + 1, 2, 1.5, 1.25)
    (shadow,) = found[2, "shadow"]
    assert (shadow.compared, shadow.drifted, shadow.drift_sum, shadow.dropped) == (3, 1, 0.5, 4)


def test_reading_goes_on_where_it_stopped() -> None:
    at = int(time.time()) - 10
    actions.store([sample(number, at + number) for number in range(6)])
    seconds = [one.at_unix_s for one in judged_bins("digits", at + 2, at + 5)[1, "primary"]]
    assert seconds == [at + 2, at + 3, at + 4]
    assert judged_bins("digits", at + 6) == {}


def test_it_looks_back_a_day_and_no_further(django_assert_num_queries) -> None:
    now = int(time.time())
    actions.store([sample(1, now - 25 * 3600), sample(2, now - 23 * 3600)])
    with django_assert_num_queries(1):
        assert [one.at_unix_s for one in judged_bins("digits", 0)[1, "primary"]] == [now - 23 * 3600]


def test_every_judged_column_is_read() -> None:
    """A sum that is stored and that the judge could need must not be forgotten here."""
    columns = {field.name for field in StoredSample._meta.get_fields()}
    told = {"id", "source", "sequence", "at", "endpoint", "version", "arm"}
    of_stages = {"compute_sum_ms", "batch_sum", "input_sum_ms", "output_sum_ms", "batch_counts"}
    assert columns - told - of_stages == set(judged._SUMS) | set(judged._COUNTS)
