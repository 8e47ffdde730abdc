"""The sums of a replay, and what they say."""

from rollouts.replay_report import MAX_WORST, Asked, Report, judged


def told(**more):
    return Asked(1, 2.0, 3.0, **more)


def report(*found):
    total = Report()
    for asked in found:
        total.add(asked)
    return total


def test_skipped_ones_are_no_requests_and_sampled_ones_are_not_compared():
    total = report(told(skipped="gone"), told(), told(distance=0.25), told(distance=0.75, is_drift=True))
    assert (total.requests, total.skipped, total.compared, total.drifted, total.drift_sum) == (3, 1, 2, 1, 1.0)
    assert sum(total.latencies["replayed"].values()) == 3


def test_errors_come_first_among_the_worst_which_are_few():
    total = report(*(told(distance=number / 20) for number in range(1, 20)), told(error="model_failed"))
    assert len(total.worst) == MAX_WORST
    assert total.worst[0]["error"] == "model_failed"
    assert total.worst[1]["distance"] == 0.95


def test_it_passes_up_to_the_share_that_is_allowed():
    total = report(*(told(distance=0.0) for _ in range(99)), told(distance=1.0, is_drift=True))
    assert judged(total, 0.01)[0] == "passed"
    verdict, words = judged(total, 0.009)
    assert verdict == "failed"
    assert words.endswith("1 of 100 answers are other than recorded (1.0%, mean distance 0.01); 0.9% is allowed.")


def test_one_error_fails_and_nothing_asked_says_nothing():
    assert judged(report(told(), told(error="not_found")), 1.0) == (
        "failed", "2 recorded requests were asked again: 1 ended in an error, most often not_found."
    )  # fmt: skip
    assert judged(report(told(skipped="gone")), 1.0)[0] == "no_data"
    assert judged(report(told()), 0.0)[0] == "passed"


def test_latencies_are_told_as_quantiles():
    total = report(*(Asked(1, 4.0, 8.0) for _ in range(10)))
    found = total.quantiles()
    assert 3 < found["recorded"]["p50_ms"] <= 4.7
    assert 6 < found["replayed"]["p99_ms"] <= 9.5
