"""The order of the line: levels strictly, keys in turns, first come first served within a key."""

from unittest.mock import sentinel

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.batching.line import Line, Ticket

INPUTS = {"x": np.zeros((1, 1))}
arrivals = st.lists(st.tuples(st.integers(1, 3), st.sampled_from("abc"), st.integers(1, 4)), min_size=1, max_size=60)


def ticket(rows=1, key="", due=float("inf"), deadline=float("inf")):
    one = Ticket(INPUTS, rows, deadline, 0.0, sentinel.reply, key=key)
    one.due = due
    return one


def drained(line, largest=8):
    batches = []
    while groups := line.groups():
        batches.append(line.take(groups[0][1], largest))
    return batches


@given(arrivals)
def test_levels_are_strict_and_the_order_within_a_level_and_key_is_kept(came):
    line, tickets = Line(levels=3), []
    for level, key, rows in came:
        tickets.append(ticket(rows, key))
        line.add(tickets[-1], level)
    out = [one for batch in drained(line) for one in batch]
    assert sorted(map(id, out)) == sorted(map(id, tickets))
    assert [one.rank[0] for one in out] == sorted(one.rank[0] for one in out)
    for level in (1, 2, 3):
        for key in "abc":
            orders = [one.order for one in out if (one.rank[0], one.key) == (level, key)]
            assert orders == sorted(orders)


@given(flood=st.integers(10, 300), few=st.integers(1, 8), rows=st.integers(1, 4))
@settings(max_examples=50)
def test_a_flood_of_one_key_passes_nobody_elses_few(flood, few, rows):
    line = Line()
    for _ in range(flood):
        line.add(ticket(rows, "flood"))
    started = line.take(line.groups()[0][1], 8)
    mine = [ticket(rows, "few") for _ in range(few)]
    for one in mine:
        line.add(one)
    out = [one for batch in drained(line) for one in batch]
    assert all(one.key == "flood" for one in started)
    # Turn by turn: before my n-th there are at most n of the flood's, and the one whose turn it was.
    for place, one in enumerate(mine):
        assert out.index(one) <= 2 * place + 2


def test_a_flood_in_many_shapes_passes_nobody_either():
    line = Line()
    for width in range(1, 60):
        one = Ticket({"x": np.zeros((1, width))}, 1, float("inf"), 0.0, sentinel.reply, key="flood")
        line.add(one)
    line.take(line.groups()[0][1], 8)
    mine = ticket(key="few")
    line.add(mine)
    assert mine in [one for batch in drained(line)[:3] for one in batch]


def test_who_waited_too_long_goes_behind_all_levels_where_the_policy_delays():
    line = Line(levels=2)
    slow, low, late = ticket(due=1.0), ticket(), ticket(due=1.0, deadline=5.0)
    slow.is_delayable = late.is_delayable = True
    for one, level in ((slow, 1), (low, 2), (late, 1)):
        line.add(one, level)
    assert list(line.expired(2.0)) == []
    assert (line.waiting_at(1), line.waiting_at(2), line.count, line.rows) == (0, 1, 3, 3)
    newcomer = ticket()
    line.add(newcomer, 2)
    assert list(line.expired(6.0)) == [late]
    assert [one for batch in drained(line, 1) for one in batch] == [low, newcomer, slow]


def test_the_largest_preferred_prefix_is_found():
    line = Line()
    for rows in (1, 2, 1, 3):
        line.add(ticket(rows))
    ((_, group),) = line.groups()
    assert [group.prefix(sizes) for sizes in ((4,), (3, 4), (2,), (3, 6), (7, 4), (8,))] == [4, 4, 0, 3, 7, 0]


def test_keys_that_come_once_are_forgotten():
    line = Line()
    for n in range(20_000):
        line.add(ticket(key=str(n)))
        if n % 8 == 7:
            line.take(line.groups()[0][1], 4)
            line.take(line.groups()[0][1], 4)
    assert sum(map(len, line._ends)) < 10
