"""One kernel alarm over several lanes: it always stands at the earliest."""

import random

from hypothesis import given
from hypothesis import strategies as st

from inference.replica.alarm import Alarm


@given(st.integers(0, 2**32 - 1))
def test_it_stands_at_the_earliest_pass_and_is_off_when_nothing_runs(seed):
    rng, now, stands_at = random.Random(seed), [0.0], [None]

    def set_timer(seconds):
        stands_at[0] = now[0] + seconds if seconds else None

    alarm, running = Alarm(10.0, clock=lambda: now[0], set_timer=set_timer), {}
    for _ in range(60):
        now[0] += rng.random()
        lane = rng.randrange(4)
        if lane in running:
            del running[lane]
            alarm.ended(lane)
        else:
            running[lane] = now[0] + 10.0
            alarm.began(lane)
        wanted = min(running.values(), default=None)
        assert (stands_at[0] is None) == (wanted is None)
        assert wanted is None or abs(stands_at[0] - wanted) < 1e-6
