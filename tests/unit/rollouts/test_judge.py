"""judge: verdicts on bins, hard stops, the split, and laws that hold for any bins."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollouts.judge import DEFAULT_GUARDRAILS, Bin, Guardrail, Judgement, JudgeSettings, coarsened, judge

T0 = 1_800_000_000
DEFAULTS = JudgeSettings()


def arm(seconds: int, per_second: int, **sums: int | Callable[[int], int]) -> list[Bin]:
    """A bin per second; each sum a number or a function of the second. Latency: bucket 20, one request in ten 24."""
    bins = []
    for second in range(seconds):
        values = {name: value(second) if callable(value) else value for name, value in sums.items()}
        slow = per_second * (second + 1) // 10 - per_second * second // 10
        values.setdefault("drawn", per_second)
        latency = {20: per_second - slow, 24: slow}
        bins.append(Bin(T0 + second, requests=per_second, latency=latency, **values))
    return bins


def verdict(
    stable: Sequence[Bin], canary: Sequence[Bin], *, share: float | None = 0.1, seconds: int = 600, **more: object
) -> Judgement:
    chosen = more.pop("settings", DEFAULTS)
    return judge(stable, canary, chosen, now_unix_s=T0 + seconds, expected_share=share, **more)


def finding(judged: Judgement, metric: str):
    return next(item for item in judged.findings if item.metric == metric)


def test_an_equal_canary_passes() -> None:
    judged = verdict(arm(600, 45, errors=lambda s: s % 10 == 3), arm(600, 5, errors=lambda s: s % 90 == 7))
    assert judged.verdict == "pass"
    assert (judged.canary_requests, judged.stable_requests) == (3000, 27000)
    assert finding(judged, "score").verdict == "no_data"


def test_more_errors_fail_and_the_reason_says_which() -> None:
    judged = verdict(arm(60, 45, errors=lambda s: s % 5 == 0), arm(60, 5, errors=lambda s: s % 4 == 0))
    assert (judged.verdict, judged.hard_stop) == ("fail", False)
    assert judged.reason.startswith("Errors: 5.00 % against 0.44 % on the stable version")
    found = finding(judged, "error_rate")
    assert found.lower > 0.001
    assert found.lower < found.difference < found.upper


def test_slower_answers_fail() -> None:
    slower = [replace(item, latency={22: 5}) for item in arm(100, 5)]
    judged = verdict(arm(100, 45), slower, seconds=100)
    assert judged.verdict == "fail"
    assert finding(judged, "slow_p50").verdict == "fail"


def test_faster_answers_pass() -> None:
    faster = [replace(item, latency={15: 5}) for item in arm(300, 5)]
    assert verdict(arm(300, 45), faster, seconds=300).verdict == "pass"


def test_few_requests_hold_and_say_how_many_are_missing() -> None:
    judged = verdict(arm(20, 45), arm(20, 5), seconds=20)
    assert judged.verdict == "hold"
    assert "100 of at least 150 requests" in judged.reason
    assert finding(judged, "error_rate").needed_requests >= 50


def test_needed_requests_are_about_what_it_then_takes() -> None:
    judged = verdict(arm(60, 45), arm(60, 5), seconds=60)
    needed = finding(judged, "error_rate").needed_requests
    assert finding(judged, "error_rate").eta_s == pytest.approx(needed / 5, rel=0.05)
    later = 60 + needed // 5
    early = verdict(arm(later - 15, 45), arm(later - 15, 5), seconds=later)
    late = verdict(arm(later + 15, 45), arm(later + 15, 5), seconds=later + 15)
    assert (finding(early, "error_rate").verdict, finding(late, "error_rate").verdict) == ("hold", "pass")


@pytest.mark.parametrize("canary", [[], [Bin(T0)], [Bin(T0 + 5, requests=0)]], ids=["no bins", "empty bin", "idle"])
def test_no_canary_requests_never_pass(canary: list[Bin]) -> None:
    judged = verdict(arm(600, 50), canary, share=None)
    assert judged.verdict == "hold"
    assert all(item.verdict == "no_data" for item in judged.findings)


def test_no_stable_requests_hold() -> None:
    judged = verdict([], arm(600, 5), share=None)
    assert judged.verdict == "hold"


@pytest.mark.parametrize(
    ("more", "said"),
    [({"load_failed": True}, "could not be loaded"), ({"crashes": 3}, "crashed 3 times")],
    ids=["load", "crashes"],
)
def test_a_version_that_cannot_stand_is_stopped_at_once(more: dict, said: str) -> None:
    judged = verdict(arm(1, 45), [], seconds=1, **more)
    assert (judged.verdict, judged.hard_stop) == ("fail", True)
    assert said in judged.reason


def test_two_crashes_are_no_loop() -> None:
    assert not verdict(arm(1, 45), [], seconds=1, crashes=2).hard_stop


def test_nan_is_stopped_within_seconds() -> None:
    judged = verdict(arm(3, 45), arm(3, 5, invalid=1), seconds=3)
    assert (judged.verdict, judged.hard_stop) == ("fail", True)
    assert not verdict(arm(3, 45, invalid=1), arm(3, 5, invalid=1), seconds=3).hard_stop


def test_a_canary_that_fails_everything_is_stopped_within_seconds() -> None:
    judged = verdict(arm(8, 45), arm(8, 5, errors=5), seconds=8)
    assert (judged.verdict, judged.hard_stop) == ("fail", True)
    assert "40 of the last 40 requests to the new version failed" in judged.reason
    busy, slow = arm(3, 50, errors=50), arm(8, 2, errors=2)
    assert verdict(arm(3, 450), busy, seconds=3).hard_stop
    assert verdict(arm(8, 18), slow, seconds=8).hard_stop


@pytest.mark.parametrize(("per_second", "within_s"), [(5, 15), (50, 5)], ids=["quiet", "busy"])
def test_a_canary_that_fails_most_is_stopped_within_seconds(per_second: int, within_s: int) -> None:
    def is_stopped(seconds: int) -> bool:
        canary = arm(seconds, per_second, errors=per_second * 3 // 5)
        return verdict(arm(seconds, 9 * per_second), canary, seconds=seconds).hard_stop

    assert next(n for n in range(1, 30) if is_stopped(n)) == within_s


def test_it_is_found_though_it_was_healthy_for_long() -> None:
    canary = arm(600, 5, errors=lambda s: 5 if s >= 590 else 0)
    assert verdict(arm(600, 45), canary).hard_stop


def test_an_outage_of_both_stops_nothing() -> None:
    assert not verdict(arm(20, 45, errors=45), arm(20, 5, errors=5), seconds=20).hard_stop


def test_one_failed_batch_stops_nothing() -> None:
    one = arm(40, 5)
    one[37:] = [Bin(T0 + 37 + i, requests=5, errors=5) for i in range(3)]
    judged = verdict(arm(40, 45, errors=lambda s: s % 5 == 0), one, seconds=40)
    assert judged.verdict == "hold"


def test_a_wrong_split_is_unhealthy() -> None:
    judged = verdict(arm(300, 45), arm(300, 5), share=0.25, seconds=300)
    assert judged.verdict == "unhealthy"
    assert judged.srm_p < 0.001
    assert verdict(arm(300, 45), arm(300, 5), share=None, seconds=300).srm_p is None


def test_a_split_that_changed_on_the_way_is_healthy() -> None:
    canary = arm(300, 25, drawn=lambda s: 5 if s < 150 else 25)
    stable = arm(300, 45, drawn=lambda s: 45 if s < 150 else 25)
    shares = [(T0, 0.1), (T0 + 150, 0.5)]
    assert judge(stable, canary, DEFAULTS, now_unix_s=T0 + 300, expected_share=shares).srm_p == 1.0
    assert judge(stable, canary, DEFAULTS, now_unix_s=T0 + 300, expected_share=0.1).verdict == "unhealthy"


def test_a_canary_proven_bad_fails_though_the_split_is_wrong() -> None:
    """Rolling back costs nobody a request; holding a bad version does."""
    assert verdict(arm(100, 45), arm(100, 5, errors=1), share=0.5, seconds=100).verdict == "fail"


def test_only_requests_drawn_by_themselves_tell_of_the_split() -> None:
    """One key with half of all traffic that sticks to the canary is no fault of the split."""
    sticky = [replace(item, requests=30) for item in arm(300, 5)]
    assert verdict(arm(300, 45), sticky, seconds=300).srm_p == 1.0
    assert verdict(arm(300, 45), arm(300, 30), seconds=300).verdict == "unhealthy"


def test_a_bad_hour_of_the_endpoint_blames_nobody() -> None:
    """The weight rose while the endpoint failed: pooled over time the canary looks four times worse."""
    stable = arm(300, 47, errors=0) + [replace(b, at_unix_s=b.at_unix_s + 300) for b in arm(300, 25, errors=1)]
    canary = arm(300, 3, errors=0) + [replace(b, at_unix_s=b.at_unix_s + 300) for b in arm(300, 25, errors=1)]
    judged = verdict(stable, canary, share=None)
    assert finding(judged, "error_rate").difference == pytest.approx(0, abs=1e-4)
    assert judged.verdict != "fail"


def test_warming_up_counts_for_errors_only() -> None:
    canary = [replace(b, latency={40: 5} if b.at_unix_s < T0 + 5 else b.latency) for b in arm(300, 5)]
    judged = verdict(arm(300, 45), canary, seconds=300)
    assert finding(judged, "slow_p99").canary == pytest.approx(finding(judged, "slow_p99").stable, abs=0.002)
    assert finding(judged, "error_rate").n_requests == 1500


def test_nothing_passes_before_times_are_judged() -> None:
    """A very busy endpoint is sure of errors within a second or two, when no time counts yet."""
    stable, canary = arm(60, 9000), arm(60, 1000)
    warm = DEFAULTS.warmup_s
    early = verdict(stable[:warm], canary[:warm], seconds=warm)
    assert (early.verdict, finding(early, "error_rate").verdict, finding(early, "slow_p95").verdict) == (
        "hold", "pass", "no_data",
    )  # fmt: skip
    assert "warms up" in early.reason
    assert verdict(stable, canary, seconds=60).verdict == "pass"


def test_a_signal_holds_and_does_not_roll_back() -> None:
    canary = arm(300, 5, compared=5, drifted=1, drift_sum=1)
    judged = verdict(arm(300, 45), canary, seconds=300)
    assert (finding(judged, "drift_rate").verdict, judged.verdict) == ("fail", "hold")
    assert judged.reason.startswith("A signal asks for a look: Outputs that differ")


def test_a_score_gets_worse_downwards() -> None:
    chosen = replace(DEFAULTS, guardrails=(Guardrail("score", 0.05, direction="decrease"),))

    def scored(per_second: int, score: float) -> list[Bin]:
        return [
            Bin(T0 + s, requests=per_second, scores=per_second, score_sum=per_second * score,
                score_sq=per_second * score * score) for s in range(300)
        ]  # fmt: skip

    worse = verdict(scored(45, 0.8), scored(5, 0.6), settings=chosen, seconds=300)
    assert worse.verdict == "fail"
    assert finding(worse, "score").difference == pytest.approx(-0.2)
    assert finding(worse, "score").upper < 0
    assert verdict(scored(45, 0.8), scored(5, 0.9), settings=chosen, seconds=300).verdict == "pass"


def test_little_exposure_needs_little_proof() -> None:
    guardrail = DEFAULT_GUARDRAILS[0]
    ceilings = [DEFAULTS.ceiling(guardrail, share) for share in (0.5, 0.25, 0.1, 0.01, 0.0001)]
    assert ceilings == sorted(ceilings)
    assert ceilings[0] == guardrail.ceiling
    assert ceilings[-1] == pytest.approx(5 * guardrail.ceiling)
    assert replace(DEFAULTS, ease=1.0).ceiling(guardrail, 0.01) == guardrail.ceiling


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Guardrail("speed", 0.1),
        lambda: Guardrail("error_rate", 0),
        lambda: Guardrail("error_rate", 0.1, ceiling=0.05),
        lambda: JudgeSettings(alpha=0),
        lambda: JudgeSettings(proof=2),
        lambda: JudgeSettings(unit_s=0),
        lambda: JudgeSettings(guardrails=(DEFAULT_GUARDRAILS[0], DEFAULT_GUARDRAILS[0])),
    ],
    ids=["metric", "margin", "ceiling", "alpha", "proof", "unit", "twice"],
)
def test_wrong_settings_are_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        wrong()


counts = st.dictionaries(st.integers(10, 30), st.integers(1, 9), max_size=4)


@st.composite
def bins(draw: st.DrawFn, most: int = 40) -> list[Bin]:
    """Random seconds of one arm, some idle, some failing."""
    found = []
    for second in sorted(draw(st.sets(st.integers(0, 120), max_size=most))):
        latency = draw(counts)
        requests = sum(latency.values())
        errors = draw(st.integers(0, requests))
        found.append(Bin(T0 + second, requests, errors=errors, invalid=draw(st.integers(0, 1)), latency=latency))
    return found


@settings(max_examples=40)
@given(bins(), bins(), st.integers(0, 1000))
def test_the_order_of_bins_changes_nothing(stable: list[Bin], canary: list[Bin], seed: int) -> None:
    shuffled = [random.Random(seed).sample(arm, len(arm)) for arm in (stable, canary)]
    assert verdict(*shuffled) == verdict(stable, canary)


@settings(max_examples=40)
@given(bins(), bins(), st.data())
def test_two_gateways_that_share_a_second_change_nothing(
    stable: list[Bin], canary: list[Bin], data: st.DataObject
) -> None:
    halves = [half for item in canary for half in _split(item, data.draw(st.integers(0, 9)))]
    assert verdict(stable, halves) == verdict(stable, canary)


def _split(item: Bin, part: int) -> tuple[Bin, Bin]:
    first = {bucket: min(part, count) for bucket, count in item.latency.items() if part}
    second = {b: count - first.get(b, 0) for b, count in item.latency.items() if count > first.get(b, 0)}
    requests, errors, invalid = sum(first.values()), min(part, item.errors), min(part, item.invalid)
    return (
        Bin(item.at_unix_s, requests, errors=errors, invalid=invalid, latency=first),
        Bin(item.at_unix_s, item.requests - requests, item.errors - errors, 0, item.invalid - invalid, second),
    )


@settings(max_examples=60)
@given(bins(), st.integers(1, 4))
def test_symmetric_arms_never_fail(stable: list[Bin], times: int) -> None:
    larger = [other for item in stable for other in [item] * times]
    judged = verdict(larger, stable, share=None)
    assert judged.verdict != "fail"
    assert not judged.hard_stop


@settings(max_examples=60)
@given(bins(), bins())
def test_bounds_enclose_the_estimate_and_verdicts_follow_from_them(stable: list[Bin], canary: list[Bin]) -> None:
    judged = verdict(stable, canary, share=None)
    for item in judged.findings:
        if item.verdict == "no_data":
            continue
        assert -1 <= item.lower <= item.difference + 1e-6
        assert item.difference - 1e-6 <= item.upper <= 1
        if item.n_requests >= DEFAULTS.min_units:
            proven = item.lower > DEFAULTS.proof * item.margin - 1e-6 and item.difference > item.margin
            assert (item.verdict == "fail") <= proven
            assert (item.verdict == "pass") <= (item.upper < item.ceiling + 1e-6)
        else:
            assert item.verdict == "hold"


@settings(max_examples=30)
@given(st.integers(100, 900), st.integers(1, 20))
def test_more_harmless_seconds_do_not_undo_a_pass(seconds: int, added: int) -> None:
    stable, canary = arm(seconds + added, 45), arm(seconds + added, 5)
    before = verdict(stable[:seconds], canary[:seconds], seconds=seconds)
    after = verdict(stable, canary, seconds=seconds + added)
    assert before.verdict in ("hold", "pass")
    assert (before.verdict == "pass") <= (after.verdict == "pass")


@settings(max_examples=30)
@given(st.floats(0.02, 0.9))
def test_any_clearly_wrong_split_is_unhealthy(share: float) -> None:
    judged = verdict(arm(300, 45), arm(300, 5), share=share, seconds=300)
    far = abs(share - 0.1) > 0.03
    assert (judged.verdict == "unhealthy") >= far


def test_coarser_bins_give_the_same_sums() -> None:
    stable, canary = arm(600, 45, errors=lambda s: s % 10 == 3), arm(600, 5, errors=lambda s: s % 90 == 7)
    fine, coarse = verdict(stable, canary), verdict(coarsened(stable, 10), coarsened(canary, 10))
    assert coarse.verdict == fine.verdict
    for metric in ("error_rate", "slow_p95"):
        assert finding(coarse, metric).difference == pytest.approx(finding(fine, metric).difference, abs=0.01)
    assert sum(item.requests for item in coarsened(stable, 10)) == 27000


def test_bins_of_the_future_and_before_the_canary_count_for_nothing() -> None:
    stable, canary = arm(600, 45), arm(600, 5)[100:]
    judged = verdict(stable, canary, seconds=300)
    assert (judged.canary_requests, judged.stable_requests) == (201 * 5, 201 * 45)
