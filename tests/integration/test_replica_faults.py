"""Rows 21, 25 and 42 of the fault matrix at a real replica's socket: whatever one request makes of the model, its
neighbours get their answers and the process stays the same.
"""

import numpy as np
import pytest

from inference.protocol.messages import Answer, Ask, Fault, Told
from tests.integration.test_replica import PLAN, answers, ask, make  # noqa: F401

MAGIC = 55.0


def plan(kind):
    return PLAN | {"faults": [{"value": MAGIC, "kind": kind}]}


def asked(wire, *values):
    """One request a value, all of which come into one batch; the faults' codes and the answers' first numbers."""
    for request_id, value in enumerate(values):
        ask(wire, request_id, value)
    found = answers(wire, len(values))
    return [
        found[number][0].code if isinstance(found[number][0], Fault) else found[number][1][0]
        for number in range(len(values))
    ]


@pytest.mark.parametrize("kind", ["raise", "exit", "interrupt"])
@pytest.mark.parametrize("place", [0, 7])
def test_rows_21_and_42_one_of_eight_fails_whatever_it_raises(make, kind, place):  # noqa: F811
    replica = make(plan(kind)).ready()
    wire = replica.connect()
    values = [float(number) for number in range(8)]
    values[place] = MAGIC
    for _ in range(2):
        found = asked(wire, *values)
        assert found[place] == "poison_input"
        assert found[:place] + found[place + 1 :] == [2 * v + 1 for v in values if v != MAGIC]
    assert replica.process.poll() is None
    wire.send(Ask(1))
    told, _ = wire.next()
    assert isinstance(told, Told)
    assert (told.statistics.success.count, told.statistics.fail.count) == (14, 2)


def test_row_25_by_default_nan_is_given_out_bit_for_bit(make):  # noqa: F811
    wire = make(plan("nan")).ready().connect()
    found = asked(wire, 1.0, MAGIC, 3.0)
    assert (found[0], found[2]) == (3, 7)
    assert np.isnan(found[1])


def flags(wire, *values):
    """Whether each answer is said to be invalid, for requests that are sent together."""
    for number, value in enumerate(values):
        ask(wire, number + 1, value)
    told = {}
    while len(told) < len(values):
        message = wire.next()[0]
        if message.final:
            told[message.id] = told.get(message.id, False) | message.is_invalid
    return [told[number + 1] for number in range(len(values))]


def test_answers_with_nan_say_so_unless_the_version_means_them(make):  # noqa: F811
    assert flags(make(plan("nan")).ready().connect(), 1.0, MAGIC, 3.0) == [False, True, False]


def test_answers_with_nan_are_not_kept_as_good_ones(make):  # noqa: F811
    cached = make(plan("nan"), response_cache_bytes=1 << 20).ready().connect()
    assert flags(cached, MAGIC) + flags(cached, MAGIC) + flags(cached, 1.0) == [True, True, False]


def test_a_version_that_means_infinity_is_not_looked_at(make):  # noqa: F811
    assert flags(make(plan("nan"), nan_policy="ignore").ready().connect(), 1.0, MAGIC) == [False, False]


def test_a_decoupled_models_answers_with_nan_say_so(make):  # noqa: F811
    wire = make(plan("nan") | {"repeat": 2}, decoupled=True).ready().connect()
    ask(wire, 1, MAGIC)
    found = []
    while not found or not found[-1].final:
        found.append(wire.next()[0])
    assert [answer.is_invalid for answer in found if answer.tensors] == [True] * 2


def test_row_25_where_the_version_says_so_nan_is_a_typed_error_and_neighbours_are_answered(make):  # noqa: F811
    replica = make(plan("nan"), nan_policy="reject").ready()
    wire = replica.connect()
    assert asked(wire, 1.0, MAGIC, 3.0) == [3, "invalid_output", 7]
    assert asked(wire, MAGIC) == ["invalid_output"]
    wire.send(Ask(1))
    told, _ = wire.next()
    assert (told.statistics.success.count, told.statistics.fail.count) == (2, 2)


def test_row_25_of_a_decoupled_model_the_stream_ends_with_the_error(make):  # noqa: F811
    wire = make(plan("nan") | {"repeat": 3}, nan_policy="reject", decoupled=True).ready().connect()
    ask(wire, 1, 1.0)
    assert [type(wire.next()[0]) for _ in range(3)] == [Answer] * 3
    message = wire.next()[0]
    while isinstance(message, Answer) and not message.final:
        message = wire.next()[0]
    ask(wire, 2, MAGIC)
    message = wire.next()[0]
    assert isinstance(message, Fault)
    assert message.code == "invalid_output"
