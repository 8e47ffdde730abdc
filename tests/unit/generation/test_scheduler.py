"""The laws of scheduler and pool, each in a case small enough to follow by hand."""

from __future__ import annotations

import pytest

from inference.errors import InvalidInput
from inference.generation.blocks import BlockPool
from inference.generation.scheduler import BACKGROUND, TURN, Limits, Scheduler, flatten
from inference.generation.sequence import Sequence, Status
from tests.support.paged import PagedModel


def scheduler(count=64, size=4, budget=32, seats=8, context=200, caching=True, offload=0, **limits) -> Scheduler:
    pool = BlockPool(count, size, caching=caching, offload=offload)
    return Scheduler(Limits(budget, seats, context, watermark=0.0, **limits), pool)


def step(one: Scheduler, token=7):
    plan = one.schedule()
    one.commit(plan, [[token] if item.wants_logits else [] for item in plan.items])
    one.check_integrity()
    return plan


def added(one: Scheduler, number, prompt, most=8, **fields) -> Sequence:
    sequence = Sequence(number, list(prompt), most, **fields)
    one.add(sequence)
    return sequence


def shares(plan):
    return [(item.sequence.id, item.start, item.count, item.wants_logits) for item in plan.items]


def test_decodes_come_before_chunks_of_prompts():
    one = scheduler(budget=8)
    added(one, 1, range(4))
    step(one)
    added(one, 2, range(100, 120))
    assert shares(step(one)) == [(1, 4, 1, True), (2, 0, 7, False)]
    assert shares(step(one)) == [(1, 5, 1, True), (2, 7, 7, False)]
    assert shares(step(one)) == [(1, 6, 1, True), (2, 14, 6, True)]


def test_a_long_prompt_is_bounded_only_beside_decodes():
    one = scheduler(budget=16, long_prefill_threshold=3)
    added(one, 1, range(10))
    assert shares(step(one)) == [(1, 0, 10, True)]
    added(one, 2, range(50, 60))
    assert shares(step(one)) == [(1, 10, 1, True), (2, 0, 3, False)]


def test_drafts_are_cut_to_the_budget_and_to_the_answer():
    one = scheduler(budget=6)
    sequence = added(one, 1, range(4), most=4)
    step(one)
    sequence.drafts = [1, 2, 3, 4, 5]
    plan = one.schedule()
    assert (plan.items[0].count, plan.items[0].drafts) == (3, [1, 2])  # three more tokens are allowed, one is no draft
    one.commit(plan, [[1, 9]])
    assert (sequence.output, sequence.computed, sequence.drafts) == ([7, 1, 9], 6, [])


def test_prompts_that_wait_keep_a_share_from_the_drafts():
    one = scheduler(budget=8)
    first = added(one, 1, range(4), most=40)
    step(one)
    first.drafts = [1] * 7
    assert shares(step(one)) == [(1, 4, 8, True)]
    first.drafts = [1] * 7
    added(one, 2, range(20, 40))
    assert shares(step(one)) == [(1, 5, 4, True), (2, 0, 4, False)]


def test_who_can_never_fit_is_refused_with_both_numbers():
    one = scheduler(count=2, size=4, context=100)
    with pytest.raises(InvalidInput, match=r"7 tokens and the answer may have 2, together 9, but the key-value .* 8"):
        one.add(Sequence(1, list(range(7)), 2))
    with pytest.raises(InvalidInput, match="together 11, but the context of this model is 10"):
        scheduler(context=10).add(Sequence(1, list(range(9)), 2))
    with pytest.raises(InvalidInput, match="empty"):
        one.add(Sequence(1, [], 2))


def test_a_prefix_hit_leaves_the_last_token_to_be_computed():
    one = scheduler()
    first = added(one, 1, range(16))
    step(one)
    one.finish(first)
    second = added(one, 2, range(16))
    assert shares(step(one)) == [(2, 12, 4, True)]
    assert (second.cached, one.prefix_queries, one.prefix_hits) == (12, 32, 12)


@pytest.mark.parametrize("fields", [{"salt": b"x"}, {"adapter": 1}, {"every_logit": True}])
def test_a_prefix_is_not_shared(fields):
    one = scheduler()
    added(one, 1, range(16))
    step(one)
    assert added(one, 2, range(16), **fields).cached == 0
    assert shares(step(one))[1] == (2, 0, 16, True)


def test_the_victim_is_the_least_important_and_nobody_enters_beside_it():
    one = scheduler(count=4, size=2, context=8)
    first, second = added(one, 1, range(4), most=4), added(one, 2, range(10, 14), most=4)
    assert len(step(one).items) == 2
    waiting = added(one, 3, [20], most=1)
    plan = step(one)
    assert plan.preempted == [second]
    assert [item.sequence for item in plan.items] == [first]
    assert (second.status, second.preemptions, second.computed, second.blocks) == (Status.WAITING, 1, 0, [])
    assert one.waiting == 2
    assert one.waiting_tokens == second.length + waiting.length


def test_a_preempted_one_comes_back_before_those_who_never_ran():
    one = scheduler(count=4, size=2, context=8, patience=0)
    first, second = added(one, 1, range(4), most=4), added(one, 2, range(10, 14), most=4)
    step(one)
    added(one, 3, [20], most=1)
    step(one)
    one.finish(first)
    plan = step(one)
    assert plan.items[0].sequence is second
    assert second.cached == 0


def test_a_preempted_one_comes_back_before_an_earlier_one_that_it_passed():
    one = scheduler(count=4, size=2, context=8)
    keeper = added(one, 1, range(3), most=5)
    step(one)
    added(one, 2, range(20, 27), most=1)
    small = added(one, 3, range(30, 33), most=5)
    preempted = []
    while not preempted:
        preempted = step(one).preempted
    assert preempted == [small]
    one.finish(keeper)
    assert [item.sequence for item in step(one).items] == [small]


def test_a_blocked_one_is_passed_only_so_often():
    one = scheduler(count=8, size=2, context=16, patience=2)
    keeper = added(one, 1, range(8), most=6)
    step(one)
    big = added(one, 2, range(20, 30), most=2)
    small = [added(one, n, [40 + n], most=1) for n in range(3, 7)]
    entered = []
    for _ in range(4):
        for item in step(one).items:
            if item.sequence in small:
                entered.append(item.sequence.id)
                one.finish(item.sequence)
    assert entered == [3, 4]
    assert big.passed == 2
    one.finish(keeper)
    assert next(item.sequence.id for item in step(one).items) == 2


def test_a_more_important_one_takes_the_seat_of_a_less_important():
    one = scheduler(seats=1)
    batch = added(one, 1, range(4), priority=5)
    step(one)
    added(one, 2, range(10, 14), priority=0)
    assert step(one).preempted == [batch]
    assert [item.sequence.id for item in step(one).items] == [2]


def test_the_background_takes_part_in_every_fourth_iteration_while_others_run():
    one = scheduler()
    added(one, 1, range(4), most=40, priority=BACKGROUND)
    step(one)
    live = added(one, 2, range(10, 14), most=40)
    step(one)  # it comes in
    added(one, 3, range(20, 28), most=40, priority=BACKGROUND + 5)
    seen = [[item.sequence.id for item in step(one).items] for _ in range(2 * TURN)]
    assert seen == [[2], [2], [2], [2, 1, 3]] * 2
    live.held = True
    assert [item.sequence.id for item in step(one).items] == [1, 3]
    live.held = False
    assert [item.sequence.id for item in step(one).items] == [2]
    one.finish(live)
    assert [[item.sequence.id for item in step(one).items] for _ in range(2)] == [[1, 3]] * 2


def test_who_is_held_neither_runs_nor_keeps_others_out():
    one = scheduler(seats=1)
    slow = added(one, 1, range(4))
    step(one)
    slow.held = True
    assert step(one).items == []
    added(one, 2, range(10, 14))
    assert step(one).preempted == [slow]
    assert [item.sequence.id for item in step(one).items] == [2]


def test_forks_share_blocks_and_copy_the_last_when_they_write():
    one = scheduler()
    parent = added(one, 1, range(6))
    step(one)
    children = [Sequence(n, parent.prompt, 8, output=[n]) for n in (2, 3)]
    one.fork(parent, children)
    assert children[0].blocks == children[1].blocks == parent.blocks
    shared = parent.blocks[1]
    plan = step(one)
    assert [source for source, _ in plan.copies] == [shared, shared]  # the last of three writes in place
    assert children[1].blocks[1] == shared
    assert len({one.blocks[1] for one in [parent, *children]}) == 3


def test_a_fork_that_shares_a_named_block_does_not_write_into_it():
    one = scheduler()
    parent = added(one, 1, range(8))
    step(one)
    child = Sequence(2, parent.prompt, 8)  # without a token of its own: the prompt's last is computed again
    one.fork(parent, [child])
    one.finish(parent)
    source = child.blocks[1]
    plan = step(one)
    assert plan.copies == [(source, child.blocks[1])]
    assert child.blocks[1] != source


def test_forks_without_a_seat_wait_and_are_computed():
    one = scheduler(seats=1)
    parent = added(one, 1, range(6))
    step(one)
    child = Sequence(2, parent.prompt, 8, output=[5])
    one.fork(parent, [child])
    assert child.status is Status.WAITING
    one.finish(parent)
    assert shares(step(one)) == [(2, 4, 3, True)]


def test_a_cold_prefix_goes_to_the_host_and_comes_back():
    one = scheduler(count=4, size=4, context=16, offload=4)
    model = PagedModel(4, 4, 4)

    def run(number, prompt):
        sequence, plans = added(one, number, prompt, most=1), []
        while sequence.status is not Status.FINISHED:
            plans.append(one.schedule())
            one.commit(plans[-1], model.step(plans[-1]))
            if sequence.output:
                one.finish(sequence)
            one.check_integrity()
        return sequence, plans[0]

    run(1, range(13))
    _, plan = run(2, range(50, 63))
    assert len(plan.saves) == 3
    again, plan = run(3, range(13))
    assert (again.cached, len(plan.loads)) == (12, 3)


def test_host_slots_go_to_newer_prefixes_in_later_plans():
    one = scheduler(count=2, size=2, context=4, offload=1)
    for number in range(3):
        sequence = added(one, number, range(10 * number, 10 * number + 3), most=1)
        plan = step(one)
        assert len(plan.saves) == (number > 0)
        one.finish(sequence)


def test_a_slot_that_is_read_is_not_overwritten_in_the_same_plan():
    one = scheduler(count=2, size=2, context=4, offload=1)
    model = PagedModel(2, 2, 1)
    for number, prompt in enumerate([[0, 1, 2], [3, 4, 5], [0, 1, 2], [6, 7, 8], [3, 4, 5]]):
        sequence = added(one, number, prompt, most=1)
        plan = one.schedule()
        one.commit(plan, model.step(plan))
        one.finish(sequence)
        one.check_integrity()


def test_aborting_frees_at_once_and_twice_is_once():
    one = scheduler()
    sequence = added(one, 1, range(6))
    plan = one.schedule()
    assert one.usage > 0
    one.abort(sequence)
    one.abort(sequence)
    assert (one.usage, one.running, sequence.status) == (0, 0, Status.FINISHED)
    one.commit(plan, [[7]])
    assert sequence.output == []


def test_a_restart_computes_everything_anew():
    one = scheduler()
    sequence = added(one, 1, range(8))
    step(one)
    one.restart()
    assert shares(step(one)) == [(1, 0, 9, True)]
    assert sequence.output == [7, 7]


def test_an_illegal_move_says_what_was_found():
    sequence = Sequence(4, [1], 1, status=Status.FINISHED)
    with pytest.raises(RuntimeError, match="4 is finished and cannot become running"):
        sequence.move(Status.RUNNING)


def test_the_arrays_of_a_step():
    one = scheduler(size=4, budget=9)
    first = added(one, 1, [10, 11, 12, 13, 14])
    step(one, token=15)
    first.drafts = [16, 17]
    added(one, 2, range(20, 32), adapter=3)
    plan = one.schedule()
    flat = flatten(plan)
    a, b = first.blocks, plan.items[1].sequence.blocks
    assert shares(plan) == [(1, 5, 3, True), (2, 0, 6, False)]
    assert list(flat.tokens) == [15, 16, 17, 20, 21, 22, 23, 24, 25]
    assert list(flat.positions) == [5, 6, 7, 0, 1, 2, 3, 4, 5]
    assert list(flat.slots) == [a[1] * 4 + n for n in (1, 2, 3)] + [b[n // 4] * 4 + n % 4 for n in range(6)]
    assert (list(flat.starts), list(flat.lengths), flat.width) == ([0, 3, 9], [8, 6], 3)
    assert list(flat.tables) == [*a, 0, *b]
    assert (list(flat.wanted), list(flat.rows), list(flat.adapters or [])) == ([0, 1, 2], [3, 0], [0, 3])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda pool: pool.refs.__setitem__(0, 5), "leaked or owned twice"),
        (lambda pool: pool.refs.__setitem__(0, 0), "free list and counts differ in"),
        (lambda pool: pool.names.__setitem__(63, b"x"), "names differ in blocks"),
        (lambda pool: pool._free.popitem(), "free list and counts differ in"),
    ],
)
def test_a_wrong_table_is_named(harm, message):
    one = scheduler()
    added(one, 1, range(3))
    step(one)
    harm(one.pool)
    with pytest.raises(AssertionError, match=message):
        one.check_integrity()
