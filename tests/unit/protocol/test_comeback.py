from hypothesis import given
from hypothesis import strategies as st

from inference.protocol.comeback import KEPT_COUNT, KEPT_S, MAX_S, MIN_S, Emptying, retry_after_s

DRAWS = (0.0, 0.999_999)


def told(empty_in_s):
    return tuple(retry_after_s(empty_in_s, lambda draw=draw: draw) for draw in DRAWS)


def test_a_wait_is_whole_seconds_rounded_up_and_spread():
    assert told(0.0) == told(1.0) == (1.0, 2.0)
    assert told(1.01) == (2.0, 3.0)
    assert told(8.0) == (8.0, 10.0)
    assert told(24.0) == told(1e9) == (24.0, 30.0)


@given(st.floats(0, 1e12), st.floats(0, 1, exclude_max=True))
def test_a_wait_is_never_out_of_its_bounds_and_never_shorter_than_a_line_that_is_not_the_longest(empty_in_s, draw):
    found = retry_after_s(empty_in_s, lambda: draw)
    assert found == int(found)
    assert MIN_S <= found <= MAX_S
    assert found >= min(empty_in_s, 24)


def test_those_who_were_refused_together_are_told_different_times():
    assert len({retry_after_s(10.0) for _ in range(100)}) == 3


def test_a_line_empties_as_fast_as_it_did():
    line = Emptying()
    line.began(100.0)
    assert line.empty_in_s(50, 103.0) == 3.0  # nobody has left yet
    for _ in range(10):
        line.left(lambda: 104.0)
    assert line.empty_in_s(50, 105.0) == 25.0
    line.began(200.0)
    assert line.empty_in_s(5, 200.5) == 0.5


def test_a_line_that_got_faster_is_seen_to_be():
    line = Emptying()
    line.began(0.0)
    line.left(lambda: 0.0)
    now, found = 10 * KEPT_S, []
    for _ in range(60):
        for _ in range(10):
            line.left(lambda at=now: at)
        found.append(line.empty_in_s(100, now))
        now += 1.0
    assert found[0] > 100
    assert 9 < found[-1] < 13  # ten a second
    for second in range(KEPT_COUNT):
        line.left(lambda at=now + second: at)
    assert line.empty_in_s(100, now + KEPT_COUNT) > 30  # one a second, mostly
