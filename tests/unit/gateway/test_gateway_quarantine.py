"""Two crashes bar an input, an answer clears it, and suspects are tried one at a time."""

import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import NotReady, PoisonInput
from inference.gateway.calls import Call
from inference.gateway.quarantine import BARRED_S, MAX_HASHED_BYTES, MAX_KEPT, Record, Trials, digest_of
from inference.protocol.messages import TensorHeader

MARKS = [("m", 1, bytes([n])) for n in range(6)]


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("crash"), st.sets(st.sampled_from(MARKS), min_size=1)),
            st.tuples(st.just("answer"), st.sampled_from(MARKS)),
        )
    )
)
def test_barred_is_who_was_in_two_crashes_since_its_last_answer(events):
    record, since = Record(), dict.fromkeys(MARKS, 0)
    for number, (what, whom) in enumerate(events):
        if what == "crash":
            for mark in whom:
                since[mark] += 1
                assert record.crashed(mark, number) == (since[mark] >= 2)
        else:
            since[whom] = 0
            record.cleared(whom)
        assert {mark for mark in MARKS if record.is_barred(mark)} == {mark for mark in MARKS if since[mark] >= 2}


def test_one_crash_counts_once_however_many_had_this_input():
    record = Record()
    assert not any(record.crashed(MARKS[0], 7) for _ in range(8))
    assert not record.is_barred(MARKS[0])


def test_it_forgets_after_some_minutes_and_is_bounded():
    clock = Clock()
    record = Record(clock)
    record.crashed(MARKS[0], 1)
    assert record.crashed(MARKS[0], 2)
    clock.now = BARRED_S - 1
    assert record.is_barred(MARKS[0])
    clock.now = BARRED_S + 1
    assert not record.is_barred(MARKS[0])
    for number in range(MAX_KEPT + 50):
        record.crashed(("m", 1, str(number).encode()), number)
    assert len(record.suspects) == MAX_KEPT
    clock.now *= 3
    record.forget()
    assert not record.suspects


def call(*values):
    data = bytes(values)
    return Call("", [TensorHeader("x", "UINT8", [len(data)], len(data))], [data])


def test_the_digest_tells_tensors_apart_and_leaves_huge_ones_alone():
    assert digest_of(call(1, 2)) == digest_of(call(1, 2)) != digest_of(call(1, 3))
    assert digest_of(Call("", [], [bytes(MAX_HASHED_BYTES + 1)])) == b""


def flight(value, *, remaining_s=60.0):
    endpoint = SimpleNamespace(route=SimpleNamespace(name="m"))
    variant = SimpleNamespace(route=SimpleNamespace(version=1))
    found = SimpleNamespace(
        endpoint=endpoint, variant=variant, call=call(value), has_ended=False, held_until=0.0,
        remaining_s=lambda: remaining_s,
    )  # fmt: skip
    return _Hashable(found)


class _Hashable:
    def __init__(self, given):
        self.__dict__.update(given.__dict__)


class Plane:
    """Sends what Trials sends, and breaks with the killer."""

    def __init__(self):
        self.sent, self.ended = [], []
        self.trials = Trials(self.sent.append, self.end)

    def end(self, one, error):
        one.has_ended = True
        self.ended.append((one, error))
        self.trials.ended(one, answered=False)

    def answer(self, one):
        one.has_ended = True
        self.trials.ended(one, answered=True)


async def turn():
    for _ in range(3):
        await asyncio.sleep(0)


async def test_suspects_go_one_at_a_time_and_only_the_killer_is_barred():
    plane = Plane()
    killer, innocents = flight(9), [flight(number) for number in range(4)]
    for one in (killer, *innocents):
        assert not plane.trials.lost(one)
        plane.trials.enter(one)
    await turn()
    assert plane.sent == [killer]
    fresh = flight(7)
    assert [plane.trials.lost(one) for one in (killer, fresh)] == [True, False]
    plane.trials.enter(fresh)
    killer.has_ended = True
    for one in (*innocents, fresh):
        await turn()
        assert plane.sent[-1] is one
        plane.answer(one)
    with pytest.raises(PoisonInput):
        plane.trials.check(flight(9))
    for value in (0, 1, 2, 3, 7):
        plane.trials.check(flight(value))
    await turn()
    assert not plane.trials.tried
    assert len(plane.trials.suspects) == 1


async def test_who_overran_its_turn_was_not_alone_and_is_not_counted():
    plane = Plane()
    slow, next_one = flight(1, remaining_s=0.04), flight(2)
    for one in (slow, next_one):
        plane.trials.lost(one)
        plane.trials.enter(one)
    await asyncio.sleep(0.05)
    assert plane.sent == [slow, next_one]
    assert not plane.trials.lost(slow)
    assert plane.trials.lost(next_one)


async def test_while_no_replica_is_there_the_line_waits():
    plane = Plane()
    first, second, third = flight(1, remaining_s=0.4), flight(2), flight(3)
    first.held_until = second.held_until = 1e9
    for one in (first, second, third):
        plane.trials.lost(one)
        plane.trials.enter(one)
    await asyncio.sleep(0.2)
    assert plane.sent == [first]
    plane.end(first, NotReady())
    await turn()
    assert plane.sent == [first, second]
    await asyncio.sleep(0.1)
    second.held_until = 0.0  # it was sent: its turn is whole from here on, and it is alone in it
    await asyncio.sleep(0.1)
    assert plane.sent == [first, second]
    assert plane.trials.lost(second)
