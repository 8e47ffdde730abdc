"""Which tokens the next forward pass computes. Pure: it knows no clock, no tensors and no model.

The law of an iteration: there are no phases, but one budget of tokens. Running sequences come first, those that lack
only their newest token before chunks of prompts; then, unless somebody was preempted, waiting ones are admitted.
Each running sequence that lacks one token gets it in every iteration, for no more run than there is budget for (but
see the law of the background).

The law of memory: blocks for a whole prompt are taken at admission, so only growing texts can find none. Then the
least important running sequence (largest priority, then arrival) gives up its blocks and waits at the front of its
line to be computed anew: it is never one that is already in the plan, for those in it are more important.

The law of the line: strict priority between classes. A sequence that finds no room where a less important class runs
(or someone whose caller does not read) has them preempted, and comes in the iteration after. One that does not fit for
want of memory is passed by later ones that do at most `Limits.patience` times; then nobody enters before it. So
within a class nobody starves: running sequences end, and memory comes back.

The law of the background: sequences of priority BACKGROUND or more (lines of batches) take part in every TURN-th
iteration only while others run. They keep their blocks meanwhile, and are not starved by what never ends.

After iteration-level scheduling (Orca, Yu et al. 2022), chunked prefill (Sarathi-Serve, Agrawal et al. 2024), vLLM v1.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from collections.abc import Sequence as Values
from dataclasses import dataclass

from inference.errors import ContextExceeded, InvalidInput
from inference.generation.blocks import BlockPool
from inference.generation.line import Line, rank_of
from inference.generation.plan import Flat, Item, Plan, flatten
from inference.generation.sequence import Sequence, Status

__all__ = ["Counts", "Flat", "Item", "Limits", "Plan", "Scheduler", "flatten"]

BACKGROUND = 100
TURN = 4
LOOKAHEAD = 8  # of those that do not fit, how many an iteration looks past: each costs a walk over its prefix


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of an iteration.

    token_budget: tokens of one forward pass. max_sequences: that run at once (no more than the budget has tokens).
    max_context: tokens of prompt and answer together. long_prefill_threshold: the most of one prompt in an iteration
    in which others decode, 0 for no bound. watermark: share of the blocks that admission leaves free, so that those
    who run can grow. patience: how often a waiting sequence that does not fit may be passed.
    """

    token_budget: int
    max_sequences: int
    max_context: int
    long_prefill_threshold: int = 0
    watermark: float = 0.01
    patience: int = 16


@dataclass(slots=True)
class Counts:
    """Totals since the start. prefix_queries, prefix_hits: tokens of first admissions, and those found in the cache."""

    preempted: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0


class Scheduler:
    """Decides who runs. An iteration is `schedule`, the engine's step, `commit`, and `finish` for those that ended."""

    def __init__(self, limits: Limits, pool: BlockPool) -> None:
        if limits.token_budget < 1 or limits.max_sequences < 1:
            raise ValueError(f"An iteration needs a token and a sequence: {limits}.")
        self.limits = limits
        self.pool = pool
        self.max_context = min(limits.max_context, pool.count * pool.block_size)
        self.counts = Counts()
        self._seats = min(limits.max_sequences, limits.token_budget)
        self._reserve = int(limits.watermark * pool.count)
        self._running: list[Sequence] = []  # the most important first
        self._line = Line()
        self._arrivals = 0
        self._turn = 0  # iterations since the background took part, 0 when it does in this one

    # --- what there is --------------------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._line)

    @property
    def waiting_tokens(self) -> int:
        """Known tokens of those that wait."""
        return self._line.tokens

    @property
    def preempted(self) -> int:
        """Preemptions since the start."""
        return self.counts.preempted

    @property
    def prefix_queries(self) -> int:
        return self.counts.prefix_queries

    @property
    def prefix_hits(self) -> int:
        return self.counts.prefix_hits

    @property
    def usage(self) -> float:
        """Share of the cache's blocks that sequences hold, 0..1."""
        return self.pool.usage

    # --- coming and going -----------------------------------------------------------------------------------------

    def add(self, sequence: Sequence) -> None:
        """A new sequence waits. Raises InvalidInput where it can never fit."""
        prompt, most = len(sequence.prompt), self.max_context
        if not prompt:
            raise InvalidInput("The prompt is empty: it needs at least one token.")
        if prompt + sequence.max_output > most:
            raise ContextExceeded(
                f"The prompt has {prompt} tokens and the answer may have {sequence.max_output}, together "
                f"{prompt + sequence.max_output}, but {self._bound()} {most}: shorten the prompt or ask for fewer."
            )
        self._arrive(sequence)
        self._line.add(sequence)

    def _bound(self) -> str:
        by_cache = self.max_context < self.limits.max_context
        return "the key-value cache of this replica holds" if by_cache else "the context of this model is"

    def _arrive(self, sequence: Sequence) -> None:
        assert sequence.order < 0, f"sequence {sequence.id} was added before"
        self._arrivals += 1
        sequence.order = self._arrivals

    def fork(self, parent: Sequence, children: Iterable[Sequence]) -> None:
        """Children with the parent's prompt join it, after `commit` has brought its prompt's end and before it ends.

        Each has its own first token in `output`. Where seats remain, and the child lacks only that token, it shares
        the parent's blocks; else it waits at the front, to be computed (from the prefix cache, as far as that has it).
        """
        assert parent.status is Status.RUNNING, f"sequence {parent.id} does not run and cannot be forked"
        for child in children:
            assert (child.salt, child.adapter) == (parent.salt, parent.adapter), "children share salt and adapter"
            self._arrive(child)
            computed = child.length - 1
            if len(self._running) < self._seats and computed <= parent.computed:
                child.computed = computed
                self.pool.share(parent, child)
                self._enter(child)
            else:
                child.returning = True
                self._line.add(child)

    def finish(self, sequence: Sequence) -> None:
        """It has ended: its blocks are free, and stay in the prefix cache. Nothing happens when it ended before."""
        if sequence.status is Status.RUNNING:
            self._leave(sequence)
        elif sequence.status is Status.WAITING and sequence.order >= 0:
            self._line.remove(sequence)
        if sequence.status is not Status.FINISHED:
            sequence.move(Status.FINISHED)

    def abort(self, sequence: Sequence) -> None:
        """The caller has left; may come at any time, during a step too."""
        self.finish(sequence)

    def restart(self) -> None:
        """The cache's content is lost (a step failed, the adapters changed): all is computed anew, nothing is forgotten."""
        for sequence in list(self._running):
            self._preempt(sequence)
        self.pool.forget()

    def _enter(self, sequence: Sequence) -> None:
        sequence.move(Status.RUNNING)
        insort(self._running, sequence, key=rank_of)

    def _leave(self, sequence: Sequence) -> None:
        place = bisect_left(self._running, rank_of(sequence), key=rank_of)
        assert self._running[place] is sequence, f"sequence {sequence.id} is not where it should run"
        del self._running[place]
        self.pool.release(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        self._leave(sequence)
        sequence.move(Status.WAITING)
        sequence.preemptions += 1
        sequence.returning = True
        sequence.drafts = []
        sequence.passed = 0
        self.counts.preempted += 1
        self._line.add(sequence)

    # --- an iteration ---------------------------------------------------------------------------------------------

    def schedule(self) -> Plan:
        """The next iteration.

        1. Less important ones make room for the head of the line. 2. Those that lack one token get it, with drafts.
        3. Chunks of prompts of those that run. 4. Admission, where nobody was preempted. 5. What is to be moved.
        """
        plan = Plan(self.pool.block_size)
        self.pool.begin()
        self._take_turn()
        self._make_room(plan)
        self._decode(plan)
        self._prefill(plan)
        if not plan.preempted:
            self._admit(plan)
        moved = self.pool.take_transfers()
        plan.saves, plan.copies, plan.loads = moved.saves, moved.copies, moved.loads
        return plan

    def commit(self, plan: Plan, results: Iterable[Values[int]]) -> None:
        """What the step gave: for each item, in order, its new tokens.

        They are the accepted drafts and the one after them; nothing for a chunk before its prompt's end. Items whose
        sequence was aborted in the meantime are passed over.
        """
        size = self.pool.block_size
        for item, new in zip(plan.items, results, strict=True):
            sequence = item.sequence
            if sequence.status is not Status.RUNNING:
                continue
            assert item.wants_logits or not new, "a chunk before its prompt's end gives no token"
            assert len(new) <= len(item.drafts) + 1, "more tokens than drafts and one"
            sequence.output += new
            assert len(sequence.output) <= sequence.max_output, f"sequence {sequence.id} should have been finished"
            sequence.computed = item.start + item.count - len(item.drafts) + max(0, len(new) - 1)
            sequence.drafts = []
            if sequence.computed // size > sequence.sealed:
                self.pool.seal(sequence)

    def _take_turn(self) -> None:
        others = any(one.priority < BACKGROUND and not one.held for one in self._running)
        self._turn = (self._turn + 1) % TURN if others else 0

    def _takes_part(self, sequence: Sequence) -> bool:
        return not sequence.held and (not self._turn or sequence.priority < BACKGROUND)

    @property
    def draft_room(self) -> int:
        """Drafts that the next iteration has budget for, as far as can be seen before it."""
        return self._spare(sum(one.length - one.computed == 1 for one in self._running))

    def _spare(self, ready: int) -> int:
        spare = self.limits.token_budget - ready
        if ready < len(self._running) or len(self._line):
            spare //= 2  # prompts that wait keep a share of the budget from the drafts
        return spare

    def _decode(self, plan: Plan) -> None:
        ready = [one for one in self._running if one.length - one.computed == 1 and self._takes_part(one)]
        spare = self._spare(len(ready))
        for sequence in ready:
            if sequence.status is not Status.RUNNING:
                continue
            drafts = sequence.drafts
            if drafts:
                drafts = drafts[: max(0, min(spare, sequence.max_output - len(sequence.output) - 1))]
            if self.pool.missing(sequence, sequence.length + len(drafts)):
                if not self._secure(sequence, len(drafts), plan):
                    continue
                drafts = drafts[: len(sequence.blocks) * self.pool.block_size - sequence.length]
            spare -= len(drafts)
            plan.items.append(Item(sequence, sequence.computed, 1 + len(drafts), drafts, wants_logits=True))
            plan.decode_tokens += 1
            plan.draft_tokens += len(drafts)

    def _secure(self, sequence: Sequence, drafts: int, plan: Plan) -> bool:
        """Blocks for the newest token, and for the drafts if they are there to be had; False if it was preempted."""
        pool, length = self.pool, sequence.length
        if pool.missing(sequence, length + drafts) <= pool.available:
            pool.grow(sequence, length + drafts)
            return True
        while pool.missing(sequence, length) > pool.available:
            victim = self._least_important()
            self._preempt(victim)
            plan.preempted.append(victim)
            if victim is sequence:
                return False
        pool.grow(sequence, length)
        return True

    def _least_important(self) -> Sequence:
        held = [sequence for sequence in self._running if sequence.held]
        return held[-1] if held else self._running[-1]

    def _prefill(self, plan: Plan) -> None:
        for sequence in self._running:
            if sequence.length - sequence.computed > 1 and self._takes_part(sequence):
                self._chunk(sequence, plan)

    def _chunk(self, sequence: Sequence, plan: Plan) -> None:
        start, length = sequence.computed, sequence.length
        count = min(length - start, self.limits.token_budget - plan.tokens)
        if self.limits.long_prefill_threshold and plan.decode_tokens:
            count = min(count, self.limits.long_prefill_threshold)
        if count:
            plan.items.append(Item(sequence, start, count, [], wants_logits=start + count == length))
            plan.prompt_tokens += count

    # --- admission ------------------------------------------------------------------------------------------------

    def _fits(self, sequence: Sequence, found: list[int]) -> bool:
        reserve = self._reserve if self._running else 0
        return self.pool.cost(sequence, found) + reserve <= self.pool.available

    def _make_room(self, plan: Plan) -> None:
        """Preempts those of a less important class, or held, where that lets the head of the line in."""
        head = self._line.head
        if head is None:
            return
        victims = [one for one in self._running if one.held or one.priority > head.priority]
        if not victims:
            return
        victims.sort(key=lambda one: (one.held, *rank_of(one)))
        hopeless = self.pool.available + sum(len(one.blocks) for one in victims)
        if self.pool.blocks_for(head.length) > hopeless:
            return
        while victims and not (len(self._running) < self._seats and self._fits(head, self.pool.match(head))):
            victim = victims.pop()
            self._preempt(victim)
            plan.preempted.append(victim)

    def _admit(self, plan: Plan) -> None:
        """Lets in who fits, in the order of the line; see the law for those that do not."""
        admitted: list[Sequence] = []
        blocked: list[Sequence] = []
        for sequence in self._line:
            if plan.tokens >= self.limits.token_budget or len(self._running) >= self._seats:
                break
            if not self._takes_part(sequence):
                continue
            if len(blocked) > LOOKAHEAD or any(other.passed >= self.limits.patience for other in blocked):
                break
            found = self.pool.match(sequence)
            if self._fits(sequence, found):
                self._start(sequence, found, plan)
                admitted.append(sequence)
                for other in blocked:
                    other.passed += 1
            else:
                blocked.append(sequence)
        for sequence in admitted:
            self._line.remove(sequence)

    def _start(self, sequence: Sequence, found: list[int], plan: Plan) -> None:
        self.pool.admit(sequence, found)
        if not sequence.returning:
            sequence.cached = sequence.computed
            self.counts.prefix_queries += sequence.length
            self.counts.prefix_hits += sequence.computed
        self._enter(sequence)
        self._chunk(sequence, plan)

    def check_integrity(self) -> None:
        """Raises AssertionError that names what is wrong with the tables, the counts or the lines."""
        self.pool.check_integrity([sequence.blocks for sequence in self._running])
        assert len(self._running) <= self._seats, f"{len(self._running)} run on {self._seats} seats"
        for sequence in self._running:
            assert sequence.status is Status.RUNNING, f"sequence {sequence.id} runs as {sequence.status}"
            assert sequence.computed <= sequence.length, f"sequence {sequence.id} is computed past its end"
            room = len(sequence.blocks) * self.pool.block_size
            assert sequence.computed <= room, f"sequence {sequence.id} is computed past its blocks"
        for sequence in self._line:
            assert sequence.status is Status.WAITING, f"sequence {sequence.id} waits as {sequence.status}"
            assert not sequence.blocks, f"sequence {sequence.id} waits and holds blocks {sequence.blocks}"
        tokens = sum(sequence.length for sequence in self._line)
        assert tokens == self._line.tokens, f"{tokens} tokens wait, {self._line.tokens} are counted"
