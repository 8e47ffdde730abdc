from __future__ import annotations

import time

import pytest

from inference.gateway.lending import IDLE_S, LEAST_BYTES, Budget, Lender, block_of, lender_of, number_of
from inference.protocol.blocks import Block

MIB = 1 << 20


class Told:
    """A lender whose replica maps at once what it is offered, if it `maps`."""

    def __init__(self, budget: Budget | None = None, *, maps: bool = True) -> None:
        self.budget = budget or Budget()
        self.offered: list[tuple[int, int]] = []  # number, size: a reference would keep it in use
        self.recalled: list[int] = []
        self.maps = maps
        self.lender = Lender(self.budget, self.offer, self.recalled.append)
        self.lender.is_open = True

    def offer(self, block: Block) -> None:
        self.offered.append((block.number, len(block)))
        if self.maps:
            self.lender.mapped.add(block.number)


@pytest.fixture
def told() -> Told:
    return Told()


def test_a_body_lies_where_it_was_asked_to_in_a_block_that_is_offered(told: Told) -> None:
    body = told.lender.take(MIB, -100)
    assert body is not None
    assert len(body) == MIB
    assert told.lender.place([body[100:]]) == (1, 128)
    assert told.offered == [(1, MIB + 256 * 1024)]
    assert lender_of([body]) is told.lender


def test_a_block_is_taken_again_only_when_nobody_refers_to_it(told: Told) -> None:
    body = told.lender.take(MIB, 0)
    assert body is not None
    part = body[7:9]
    del body
    other = told.lender.take(MIB, 0)
    assert other is not None
    assert told.lender.place([other]) == (2, 0)
    del part
    again = told.lender.take(MIB, 0)
    assert again is not None
    assert told.lender.place([again]) == (1, 0)


def test_a_block_is_not_taken_for_what_is_much_smaller(told: Told) -> None:
    assert told.lender.take(16 * MIB, 0) is not None
    assert told.lender.take(MIB, 0) is not None
    assert told.offered == [(1, 16 * MIB), (2, MIB)]


def test_parts_are_found_only_one_after_the_other_in_one_block_of_this_lender(told: Told) -> None:
    body = told.lender.take(MIB, 0)
    other = told.lender.take(MIB, 0)
    foreign = Told().lender.take(MIB, 0)
    assert body is not None
    assert other is not None
    assert foreign is not None
    place = told.lender.place
    assert place([body[:10], body[10:20]]) == (1, 0)
    assert place([body[5:10], body[10:20]]) == (1, 5)
    for parts in ([body[10:20], body[:10]], [body[:10], body[11:20]], [body[:10], b"x"], [b"x", body[:10]],
                  [body[:10], other[:10]], [foreign], [memoryview(b"x")], [b"x"], []):  # fmt: skip
        assert place(parts) == (0, 0)


def test_what_the_replica_has_not_mapped_goes_through_the_socket() -> None:
    told = Told(maps=False)
    body = told.lender.take(MIB, 0)
    assert body is not None
    assert told.lender.place([body]) == (0, 0)
    told.lender.saw_answer(MIB)
    assert told.lender.room() is None
    told.lender.is_mapped(1)
    told.lender.is_mapped(2)
    assert told.lender.place([body]) == (1, 0)
    assert number_of(told.lender.room()) == 2


def test_a_block_that_was_given_up_before_it_was_mapped_is_recalled_then() -> None:
    told = Told(maps=False)
    body = told.lender.take(MIB, 0)
    assert body is not None
    told.lender.give_up([body])
    assert told.recalled == []
    told.lender.is_mapped(1)
    assert told.recalled == [1]
    assert told.lender.mapped == set()


def test_a_block_that_is_given_up_is_recalled_and_never_taken_again(told: Told) -> None:
    body = told.lender.take(MIB, 0)
    assert body is not None
    told.lender.give_up([body])
    assert told.recalled == [1]
    assert told.lender.place([body]) == (0, 0)
    assert told.budget.left_bytes == Budget().left_bytes
    del body
    assert told.lender.take(MIB, 0) is not None
    assert [number for number, _ in told.offered] == [1, 2]
    told.lender.give_up([b"no block"])
    assert told.recalled == [1]


def test_all_lenders_together_hold_no_more_than_their_budget() -> None:
    budget = Budget(3 * MIB)
    one, other = Told(budget), Told(budget)
    held = [one.lender.take(MIB, 0), one.lender.take(MIB, 0), other.lender.take(MIB, 0)]
    assert all(body is not None for body in held)
    assert one.lender.take(MIB, 0) is None
    assert other.lender.take(MIB, 0) is None
    one.lender.lost()
    assert budget.left_bytes == 2 * MIB
    assert one.lender.take(MIB, 0) is None  # until a replica is there again
    assert one.recalled == []  # there is nobody to tell
    assert other.lender.take(MIB, 0) is not None


def test_an_answer_gets_room_only_where_the_last_one_was_large(told: Told) -> None:
    assert told.lender.room() is None
    told.lender.saw_answer(LEAST_BYTES)
    room = told.lender.room()
    assert room is not None
    assert len(room) >= LEAST_BYTES
    block = block_of([room])
    assert block is not None
    assert block.is_for_answers
    told.lender.saw_answer(10)
    assert told.lender.room() is None
    body = told.lender.take(LEAST_BYTES, 0)
    assert body is not None
    assert block_of([body]) is not block


def test_idle_blocks_are_given_up_and_used_ones_are_not(told: Told) -> None:
    held = told.lender.take(MIB, 0)
    assert told.lender.take(2 * MIB, 0) is not None
    last = time.monotonic()
    told.lender.tidy(last + IDLE_S - 1)
    assert told.recalled == []
    told.lender.tidy(last + IDLE_S + 1)
    assert told.recalled == [2]
    assert held is not None
    assert told.lender.place([held]) == (1, 0)
