"""Answers leave in the order of arrival."""

import random
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from inference.batching.ordering import Ordering
from inference.errors import ModelFailed
from inference.runtime.work import Ticket


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_everybody_is_told_once_and_in_order_whatever_ends_first(count, seed):
    rng, ordering, told = random.Random(seed), Ordering(), []
    tickets = [Ticket({}, 1, inf, 0.0, lambda ticket, result, final: told.append(ticket)) for _ in range(count)]
    for one in tickets:
        ordering.came(one)
    left = [one for one in tickets if rng.random() < 0.2]
    for one in rng.sample(tickets, count):
        ended = []
        if one in left:
            one.has_ended = True
        else:
            ended = [(one, ModelFailed())]
        for ticket, result in ordering.finished(ended):
            ticket.end(result)
    assert told == [one for one in tickets if one not in left]
    assert (list(ordering._line), ordering._held) == ([], {})
