"""Everything that can happen to a scheduler, with the checks that must hold after each of it."""

from __future__ import annotations

import pytest

from inference.errors import InvalidInput
from inference.generation.blocks import BlockPool
from inference.generation.scheduler import BACKGROUND, TURN, Scheduler
from inference.generation.sequence import Sequence, Status
from tests.support.paged import PagedModel, greedy


class World:
    """A scheduler, the hand-made model, and callers who come and go."""

    def __init__(self, limits, shape):
        count, size, caching, offload = shape
        self.pool = BlockPool(count, size, caching=caching, offload=offload)
        self.scheduler = Scheduler(limits, self.pool)
        self.model = PagedModel(count, size, offload)
        self.live: list[Sequence] = []
        self.ended: list[Sequence] = []
        self.children: dict[int, int] = {}
        self.given: dict[int, list[int]] = {}
        self.left_out: dict[int, int] = {}  # iterations in a row without it, though it lacked one token
        self.last = 0

    def sequence(self, prompt, **fields) -> Sequence:
        self.last += 1
        return Sequence(self.last, prompt, **fields)

    def arrive(self, prompt, most, priority, salt, adapter, every, children):
        sequence = self.sequence(
            prompt, max_output=most, priority=priority, salt=salt, adapter=adapter, every_logit=every
        )
        if len(prompt) + most > self.scheduler.max_context:
            with pytest.raises(InvalidInput, match=rf"{len(prompt) + most}, but .* {self.scheduler.max_context}:"):
                self.scheduler.add(sequence)
            return
        self.scheduler.add(sequence)
        self.children[sequence.id] = children
        self.live.append(sequence)

    def leave(self, sequence):
        self.scheduler.abort(sequence)
        self.live.remove(sequence)
        assert not sequence.blocks
        self.scheduler.check_integrity()

    def lose_the_cache(self):
        self.scheduler.restart()
        self.model = PagedModel(self.pool.count, self.pool.block_size, self.pool.host.count)

    def step(self, guesses, wrong_at, leaver):
        self.guess(guesses, wrong_at)
        before = {one for one in self.live if one.status is Status.RUNNING}
        plan = self.scheduler.schedule()
        self.scheduler.check_integrity()
        self.check(plan, before)
        results = self.model.step(plan)
        if leaver < len(plan.items) and plan.items[leaver].sequence in self.live:
            self.scheduler.abort(plan.items[leaver].sequence)  # while the forward pass runs
            self.live.remove(plan.items[leaver].sequence)
        self.scheduler.commit(plan, results)
        self.scheduler.check_integrity()
        for item in plan.items:
            if item.sequence.status is Status.RUNNING and item.wants_logits:
                self.after(item.sequence)
        self.scheduler.check_integrity()

    def guess(self, guesses, wrong_at):
        for sequence in self.live:
            if sequence.output and not sequence.is_prefilling:
                right = greedy(sequence, sequence.tokens, guesses, self.model.vocabulary)
                sequence.drafts = [token + (at == wrong_at) for at, token in enumerate(right)]

    def check(self, plan, before):
        limits = self.scheduler.limits
        assert plan.tokens == sum(item.count for item in plan.items) <= limits.token_budget
        planned = [item.sequence for item in plan.items]
        assert len(set(planned)) == len(planned)
        assert not set(planned) & set(plan.preempted)
        assert not any(one.held for one in planned)
        if plan.preempted:
            assert {one for one in self.live if one.status is Status.RUNNING} <= before
        for one in self.live:
            lacks_one = one.status is Status.RUNNING and not one.is_prefilling and not one.held
            rests = one.priority >= BACKGROUND and any(other.priority < BACKGROUND for other in planned)
            assert not (lacks_one and one in before) or one in planned or rests, "a decode was left out"
            ran = one in planned or not (lacks_one and one in before)
            self.left_out[one.id] = 0 if ran else self.left_out.get(one.id, 0) + 1
            assert self.left_out[one.id] < TURN, "the background was starved"

    def after(self, sequence):
        children = self.children.pop(sequence.id, 0)
        born = [
            self.sequence(
                sequence.prompt,
                output=[(sequence.output[0] + n) % 3],
                max_output=sequence.max_output,
                priority=sequence.priority,
                salt=sequence.salt,
                adapter=sequence.adapter,
            )
            for n in range(children)
        ]
        self.given |= {one.id: list(one.output) for one in born}
        self.scheduler.fork(sequence, born)
        self.scheduler.check_integrity()
        for one in [sequence, *born]:
            if len(one.output) >= one.max_output:
                self.scheduler.finish(one)
                self.ended.append(one)
            if one.status is not Status.FINISHED and one not in self.live:
                self.live.append(one)
        if sequence.status is Status.FINISHED:
            self.live.remove(sequence)

    def verify(self):
        self.settle()
        for one in self.ended:
            born_with = 1 if one.id in self.given else 0
            rest = greedy(one, one.prompt + one.output[:born_with], len(one.output) - born_with, 3)
            assert one.output[born_with:] == rest
            assert one.output[:born_with] == self.given.get(one.id, [])
        assert self.pool.available == self.pool.count
        assert self.scheduler.waiting == self.scheduler.waiting_tokens == self.scheduler.running == 0

    def settle(self):
        """Everybody whose caller stays ends within a bounded number of iterations."""
        for sequence in self.live:
            sequence.held = False
        allowed = 20 * sum(one.length + one.max_output * 4 for one in self.live) + 20
        while self.live:
            allowed -= 1
            assert allowed > 0, "it goes on for ever"
            self.step(0, 0, 99)
