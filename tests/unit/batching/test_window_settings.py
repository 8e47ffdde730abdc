"""The window's promises with preferred sizes, a maximum delay and several lanes."""

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from inference.batching.window import Outlook, Release, Rules, StepTime, Wait, Waiting, decide

seconds = st.floats(0, 1, allow_nan=False)
steps = st.builds(StepTime, per_row_s=st.floats(0, 0.05), fixed_s=st.floats(0, 0.5))
outlooks = st.builds(
    Outlook, gap_s=st.one_of(seconds, st.just(inf)), expected_rows=st.integers(0, 300), last_arrival_at=seconds
)


@st.composite
def cases(draw):
    largest = draw(st.integers(1, 64))
    preferred = tuple(sorted(draw(st.sets(st.integers(1, largest), max_size=3))))
    rule = Rules(
        largest,
        draw(st.floats(0, 0.05)),
        preferred,
        draw(st.one_of(st.none(), st.integers(0, 500_000).map(lambda us: us / 1e6))),
    )
    rows = draw(st.integers(1, 200))
    fits = [size for size in preferred if size <= rows]
    waiting = Waiting(
        rows,
        rows + draw(st.integers(0, 50)),
        draw(seconds),
        draw(st.one_of(st.just(inf), st.floats(0, 3))),
        draw(st.sampled_from([0, *fits])),
        draw(st.integers(1, 4)),
    )
    return rule, waiting


def run(rule, waiting, step, outlook, now, idle_since=0.0):
    return decide(waiting, rules=rule, step=step, outlook=outlook, idle_since=idle_since, now=now)


@given(case=cases(), step=steps, outlook=outlooks, after=seconds)
def test_it_never_exceeds_the_maximum_nor_waits_past_delay_or_deadline(case, step, outlook, after):
    rule, waiting = case
    now = waiting.oldest_at + after
    decision = run(rule, waiting, step, outlook, now)
    if isinstance(decision, Release):
        assert 1 <= decision.rows <= min(rule.max_batch_size, waiting.rows)
        return
    assert now < decision.until
    assert decision.until + step.of(waiting.rows) < waiting.earliest_deadline
    held_s = rule.window_s if rule.max_delay_s is None else rule.max_delay_s
    assert decision.until <= waiting.oldest_at + held_s
    assert isinstance(run(rule, waiting, step, outlook, decision.until), Release)


@given(case=cases(), step=steps, outlook=outlooks)
def test_a_preferred_size_that_is_there_goes_at_once_and_alone(case, step, outlook):
    rule, waiting = case
    now = waiting.oldest_at
    decision = run(rule, waiting, step, outlook, now)
    slack = waiting.earliest_deadline - step.of(waiting.rows) - 0.002
    if waiting.preferred_rows and now < slack and rule.max_delay_s != 0:
        assert decision == Release(waiting.preferred_rows)


@given(delay=st.floats(0.001, 0.5), rows=st.integers(1, 7), step=steps, outlook=outlooks)
def test_a_maximum_delay_holds_a_small_batch_whatever_is_expected(delay, rows, step, outlook):
    rule = Rules(8, 0.005, (), delay)
    assert run(rule, Waiting(rows, rows, 1.0), step, outlook, 1.0) == Wait(1.0 + delay)


def test_no_delay_means_no_holding():
    assert run(Rules(8, 0.05, (), 0.0), Waiting(1, 1, 0.0), StepTime(0, 1), Outlook(1e-6, 99, 0.0), 0.0) == Release(1)


def test_rows_are_shared_out_over_free_lanes_where_that_ends_sooner():
    dear_rows, dear_pass = StepTime(0.01, 0.001), StepTime(0.0001, 0.05)
    crowd = Waiting(9, 9, 0.0, idle_lanes=2)
    assert run(Rules(16, 0.0), crowd, dear_rows, Outlook(), 0.0) == Release(5)
    assert run(Rules(16, 0.0), crowd, dear_pass, Outlook(), 0.0) == Release(9)


def test_company_does_not_make_late_whoever_could_be_answered_in_time():
    step, crowd = StepTime(0.004, 0.001), {"rows": 10, "present_rows": 10, "oldest_at": 0.0, "earliest_deadline": 0.03}
    assert run(Rules(32, 0.0), Waiting(**crowd, urgent_rows=2), step, Outlook(), 0.0) == Release(6)
    assert run(Rules(8, 0.0), Waiting(**crowd, urgent_rows=2), step, Outlook(), 0.0) == Release(6)
    assert run(Rules(32, 0.0), Waiting(**crowd, urgent_rows=7), step, Outlook(), 0.0) == Release(7)
    assert run(Rules(32, 0.0), Waiting(**crowd, urgent_rows=8), step, Outlook(), 0.0) == Release(10), "late in any case"
    assert run(Rules(4, 0.0), Waiting(**crowd, urgent_rows=7), step, Outlook(), 0.0) == Release(4), "not among them"
