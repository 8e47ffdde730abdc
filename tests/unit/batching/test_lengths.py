"""Similar lengths run together; nobody is passed over for long."""

import random
from math import inf
from unittest.mock import sentinel

from hypothesis import given
from hypothesis import strategies as st

from inference.batching.lengths import MAX_PASSED, pick
from inference.runtime.work import Ticket


def row(length, order):
    one = Ticket({}, 1, inf, 0.0, sentinel.reply)
    one.length = one.elements = length
    one.rank = (0, order, order)
    return one


lengths = st.lists(st.integers(1, 500), min_size=1, max_size=80)


@given(lengths, st.integers(1, 32), st.floats(0, 5000))
def test_it_takes_the_oldest_and_at_most_a_batch_each_once(sizes, largest, fixed):
    waiting = [row(size, n) for n, size in enumerate(sizes)]
    taken = pick(waiting, largest, fixed)
    assert waiting[0] in taken
    assert 1 <= len(taken) <= largest
    assert len(set(map(id, taken))) == len(taken)
    assert set(map(id, taken)) <= set(map(id, waiting))


@given(lengths, st.integers(2, 32), st.integers(0, 2**32 - 1))
def test_nobody_is_passed_over_longer_than_the_bound_and_the_turns_of_those_before(sizes, largest, seed):
    rng, waiting, order = random.Random(seed), [row(size, n) for n, size in enumerate(sizes)], len(sizes)
    place = {id(one): n for n, one in enumerate(waiting)}
    rounds = 0
    while place and rounds < 500:
        taken = pick(waiting, largest, 64)
        rounds += 1
        for one in taken:
            waiting.remove(one)
            if id(one) in place:
                assert rounds <= MAX_PASSED + 2 + place.pop(id(one))
        for _ in range(largest):
            waiting.append(row(rng.randint(1, 500), order))
            order += 1
    assert not place


def test_it_wastes_less_than_the_order_of_arrival():
    rng = random.Random(5)
    waiting = [row(rng.randint(5, 120), n) for n in range(64)]
    done = padded = 0
    while waiting:
        taken = pick(waiting, 32, 100)
        waiting = [one for one in waiting if one not in taken]
        done += sum(one.elements for one in taken)
        padded += len(taken) * max(one.length for one in taken)
    assert 1 - done / padded < 0.25
