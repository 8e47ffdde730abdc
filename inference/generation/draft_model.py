"""Drafts out of a smaller model, which follows the same texts over blocks of its own.

The law: the model that answers never waits for this one to be complete. A text that it does not know yet is read in
chunks of one iteration's budget, and has no drafts before that; one that finds no blocks has none either. What it has
computed of drafts that were not taken is written over, and its prefix cache names only what was known.

Drafts are drawn by each request's own rules, its grammar too, so that they are likely to be accepted (see `sampler`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
import torch

from inference.generation.plan import Item, Plan, flatten
from inference.generation.sampler import Rows
from inference.generation.sequence import Sequence
from inference.generation.steps import step_of
from inference.models.language import Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from inference.generation.blocks import BlockPool
    from inference.generation.grammar import Masks, Matcher
    from inference.generation.requests import Run
    from inference.generation.sampler import Sampler
    from inference.models.language import LanguageModel

NEW = 2  # tokens that a text in use may lack: after all drafts were taken, the last of them and the one behind it


@dataclass(slots=True, eq=False)
class _Text:
    """own: the same tokens with the blocks of this model's pool, and `computed` there. guessed: drafts whose keys and
    values lie behind the `known` tokens that there were.
    """

    target: Sequence
    own: Sequence
    known: int = 0
    guessed: list[int] = field(default_factory=list)

    @property
    def missing(self) -> int:
        return self.own.length - self.own.computed

    def settle(self) -> None:
        """Of the drafts that were computed, those stay that became part of the text."""
        if not self.guessed:
            return
        text = self.own.slice(self.known, self.known + len(self.guessed))
        same = takewhile(lambda pair: pair[0] == pair[1], zip(text, self.guessed, strict=False))
        self.own.computed = self.known + sum(1 for _ in same)
        self.guessed = []


@dataclass(slots=True, eq=False)
class _Guess:
    """One text's drafts under way. most: as many as it may have. matcher: its grammar, a copy that goes ahead."""

    text: _Text
    run: Run
    most: int
    matcher: Matcher | None
    drafts: list[int] = field(default_factory=list)
    weights: list[torch.Tensor] = field(default_factory=list)
    has_ended: bool = False

    @property
    def goes_on(self) -> bool:
        return not self.has_ended and len(self.drafts) < self.most

    def take(self, token: int, weights: torch.Tensor | None) -> None:
        if token < 0:
            self.has_ended = True
            return
        self.drafts.append(token)
        if weights is not None:
            self.weights.append(weights)
        is_end = token in self.run.request.stops
        self.has_ended = is_end or (self.matcher is not None and not self._follows(self.matcher, token))

    def _follows(self, matcher: Matcher, token: int) -> bool:
        return matcher.accept(token) and not matcher.is_done


class DraftModel:
    """A `drafts.Proposer`. pool: blocks that `model` has allocated. sampler: the engine's own. tokens: drafts a step.
    budget: tokens of texts that are read in one iteration.
    """

    def __init__(
        self,
        model: LanguageModel,
        pool: BlockPool,
        sampler: Sampler,
        *,
        tokens: int,
        budget: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model = model
        self.pool = pool
        self._sampler = sampler
        self._tokens = tokens
        self._budget = budget
        self._clock = clock
        self._texts: dict[int, _Text] = {}

    # --- coming and going -----------------------------------------------------------------------------------------

    def enter(self, sequence: Sequence) -> None:
        own = Sequence(sequence.id, sequence.prompt, sequence.max_output, salt=sequence.salt, output=sequence.output)
        self._texts[sequence.id] = _Text(sequence, own)

    def leave(self, sequence: Sequence) -> None:
        text = self._texts.pop(sequence.id, None)
        if text is not None:
            self._release(text)

    def forget(self) -> None:
        self.pool.forget()

    def close(self) -> None:
        self.model.close()

    def check_integrity(self) -> None:
        """Raises AssertionError that names what is wrong with the blocks."""
        self.pool.check_integrity([text.own.blocks for text in self._texts.values()])

    def _release(self, text: _Text) -> None:
        self.pool.release(text.own)
        text.guessed = []

    # --- drafts ---------------------------------------------------------------------------------------------------

    def propose(self, sequences: list[Sequence], room: int) -> float:
        """1. Who may have how many. 2. Blocks for them. 3. Texts that are not known yet. 4. Drafts, token by token."""
        wanted = [sequence for sequence in sequences if not sequence.drafts]  # others did not run since their last ones
        most = min(self._tokens, room // max(len(wanted), 1))
        if most < 1:
            return 0.0
        guesses = [self._guess(sequence, most) for sequence in wanted]
        guesses = self._seated([guess for guess in guesses if guess.most > 0])
        began = self._clock()
        has_read = self._read([guess.text for guess in guesses])
        spent = self._clock() - began if has_read else 0.0
        guesses = [guess for guess in guesses if guess.text.missing <= NEW]
        if guesses:
            self._draft(guesses)
        for guess in guesses:
            guess.text.target.drafts, guess.run.guesses = guess.drafts, guess.weights
        return spent

    def _guess(self, sequence: Sequence, most: int) -> _Guess:
        text, run = self._texts[sequence.id], sequence.request
        left = sequence.max_output - len(sequence.output) - 1
        context = min(self.model.facts.max_context, self.pool.count * self.pool.block_size) - sequence.length
        matcher = run.matcher.copy() if run.matcher is not None and run.matches else None
        text.settle()
        return _Guess(text, run, min(most, left, context), matcher)

    def _seated(self, guesses: list[_Guess]) -> list[_Guess]:
        """Those that have blocks for their text and their drafts; who has no drafts now gives up what is needed."""
        kept = {guess.text.own.id for guess in guesses}
        idle = [text for text in self._texts.values() if text.own.blocks and text.own.id not in kept]
        found = []
        for guess in guesses:
            own = guess.text.own
            while not self._take(own, own.length + guess.most - 1):
                if not idle:
                    break
                self._release(idle.pop())
            else:
                found.append(guess)
        if copies := self.pool.take_transfers().copies:
            self.model.copy_blocks(copies)
        return found

    def _take(self, own: Sequence, tokens: int) -> bool:
        """Blocks for so many tokens; False where there are too few."""
        pool = self.pool
        if not own.blocks:
            hits = pool.match(own)
            if pool.cost(own, hits) > pool.available:
                return False
            pool.admit(own, hits)
        if pool.missing(own, tokens) > pool.available:
            return False
        pool.grow(own, tokens)
        return True

    def _read(self, texts: list[_Text]) -> bool:
        """Computes what long texts lack, all but the newest token, as far as the budget goes."""
        plan = Plan(self.pool.block_size)
        for text in texts:
            count = min(text.missing - 1, self._budget - plan.prompt_tokens)
            if text.missing > NEW and count > 0:
                plan.items.append(Item(text.own, text.own.computed, count, [], wants_logits=False))
                plan.prompt_tokens += count
        if not plan.items:
            return False
        self.model.forward(step_of(flatten(plan)))
        for item in plan.items:
            item.sequence.computed += item.count
            self.pool.seal(item.sequence)
        return True

    def _draft(self, guesses: list[_Guess]) -> None:
        """The newest tokens of all texts in one pass, then one pass for each further draft."""
        plan = Plan(self.pool.block_size)
        for guess in guesses:
            own = guess.text.own
            plan.items.append(Item(own, own.computed, guess.text.missing, [], wants_logits=True))
        logits = self.model.forward(step_of(flatten(plan)))
        for guess in guesses:
            own = guess.text.own
            own.computed = guess.text.known = own.length
            self.pool.seal(own)
        self._choose(guesses, logits)
        tables = _tables([guess.text.own.blocks for guess in guesses])
        rows = list(range(len(guesses)))
        while rows := [row for row in rows if guesses[row].goes_on]:
            going = [guesses[row] for row in rows]
            logits = self.model.forward(self._next(going, tables[rows]))
            for guess in going:
                guess.text.guessed.append(guess.drafts[-1])
                guess.text.own.computed += 1
            self._choose(going, logits)

    def _next(self, guesses: list[_Guess], tables: torch.Tensor) -> Step:
        """One new token of each: its latest draft."""
        count, size = len(guesses), self.pool.block_size
        places = torch.tensor([guess.text.own.computed for guess in guesses])
        blocks = tables.gather(1, (places // size)[:, None])[:, 0].long()
        return Step(
            tokens=torch.tensor([guess.drafts[-1] for guess in guesses]),
            positions=places,
            slots=blocks * size + places % size,
            starts=torch.arange(count + 1, dtype=torch.int32),
            lengths=(places + 1).int(),
            tables=tables,
            wanted=torch.arange(count),
        )

    def _choose(self, guesses: list[_Guess], logits: torch.Tensor) -> None:
        slots = np.array([guess.run.slot for guess in guesses], np.int64)
        numbers = np.array([guess.run.made + len(guess.drafts) for guess in guesses], np.int64)
        masks, masked = self._masks(guesses)
        rows = Rows(np.arange(len(guesses)), slots, numbers, masks, masked)
        found = self._sampler.guess(logits, rows)
        for guess, token, weights in zip(guesses, found.tokens, found.weights, strict=True):
            guess.take(token, weights)

    def _masks(self, guesses: list[_Guess]) -> tuple[Masks | None, np.ndarray[tuple[int], np.dtype[np.int64]] | None]:
        held = [(row, guess.matcher) for row, guess in enumerate(guesses) if guess.matcher is not None]
        if not held:
            return None, None
        masks = np.full((len(guesses), (self._sampler.vocabulary + 31) // 32), -1, np.int32)
        for row, matcher in held:
            matcher.fill(masks[row])
        return masks, np.array([row for row, _ in held], np.int64)


def _tables(blocks: list[list[int]]) -> torch.Tensor:
    """int32 [S, blocks of the longest], padded with 0."""
    width = max(map(len, blocks))
    return torch.tensor([one + [0] * (width - len(one)) for one in blocks], dtype=torch.int32)
