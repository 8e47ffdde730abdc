"""The waiting line, as a state machine under random use."""

import random
from math import inf
from unittest.mock import sentinel

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from inference.batching.line import Line, Ticket


def ticket(rows=1, width=1, deadline=inf, at=0.0):
    return Ticket({"x": np.zeros((rows, width))}, rows, deadline, at, sentinel.future)


@given(st.integers(0, 2**32 - 1))
def test_counts_stay_true_whatever_happens(seed):
    rng, line, present = random.Random(seed), Line(), []
    for step in range(60):
        act = rng.random()
        if act < 0.6:
            present.append(ticket(rng.randint(1, 4), rng.randint(1, 3), rng.choice([inf, step + 5.0]), step))
            line.add(present[-1])
        elif act < 0.7 and present:
            line.drop(present.pop(rng.randrange(len(present))))
        elif act < 0.8:
            gone = list(line.expired(step))
            assert all(one.deadline <= step for one in gone)
            present = [one for one in present if one not in gone]
        elif groups := line.groups():
            oldest, group = groups[0]
            assert oldest.order == min(one.order for one in present)
            taken = line.take(group, 5)
            assert taken[0] is oldest
            assert sum(one.rows for one in taken) <= 5
            assert len({one.inputs["x"].shape[1:] for one in taken}) == 1
            present = [one for one in present if one not in taken]
        assert line.count == len(present)
        assert line.rows == sum(one.rows for one in present)
    assert sorted(one.order for one in line.clear()) == sorted(one.order for one in present)
    assert (line.count, line.rows, line.groups()) == (0, 0, [])


def test_dropping_twice_counts_once():
    line, one = Line(), ticket()
    line.add(one)
    line.drop(one)
    line.drop(one)
    assert (line.count, line.rows) == (0, 0)


def test_the_first_is_taken_even_when_it_is_too_large_for_the_room():
    line = Line()
    line.add(ticket(rows=7))
    ((_, group),) = line.groups()
    assert len(line.take(group, 4)) == 1
