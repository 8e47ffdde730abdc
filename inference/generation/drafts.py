"""Guesses for the tokens that come next, which one forward pass verifies; and whether guessing pays.

A draft changes nothing about the output but how many tokens a pass gives (see `sampler`): so what is guessed, and when,
is free. Prompt lookup: the text's last few tokens stood somewhere before; what followed them there may follow again.
`draft_model` has a smaller model say what comes next.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from inference.generation.plan import Plan
from inference.generation.sequence import Sequence

if TYPE_CHECKING:
    from inference.protocol.settings import Speculation

log = logging.getLogger(__name__)
SMOOTHING = 0.2
TRIAL = 8  # iterations of a manner before it is judged
AGAIN_AFTER = 256  # iterations after which the manner that lost is tried anew
SPREAD = 64  # iterations over which the time to catch up with a text is spread


class Proposer(Protocol):
    """`request` of a sequence is the engine's Run: its slot in the sampler, its grammar."""

    def enter(self, sequence: Sequence) -> None: ...

    def leave(self, sequence: Sequence) -> None: ...

    def forget(self) -> None:
        """What is kept for texts to come is nobody's."""
        ...

    def close(self) -> None: ...

    def propose(self, sequences: list[Sequence], room: int) -> float:
        """Sets `drafts` of those that lack one token, no more than about `room` in all. Returns the seconds that went
        into texts that were not known yet, which later iterations profit from too.
        """
        ...


@dataclass(slots=True)
class _Known:
    """Where each run of n tokens was last seen: the place after it. read: tokens that are in it."""

    ends: dict[tuple[int, ...], int] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    read: int = 0


class Ngrams:
    """Prompt lookup over each sequence's own text. A step costs O(new tokens)."""

    def __init__(self, settings: Speculation) -> None:
        self._most = settings.tokens
        self._sizes = range(settings.longest_match, min(settings.shortest_match, settings.longest_match) - 1, -1)
        self._known: dict[int, _Known] = {}

    def enter(self, sequence: Sequence) -> None:
        self._known[sequence.id] = _Known(tokens=list(sequence.prompt))

    def leave(self, sequence: Sequence) -> None:
        self._known.pop(sequence.id, None)

    def forget(self) -> None:
        """Nothing to do: each text is looked up in itself only."""

    def close(self) -> None:
        self._known.clear()

    def propose(self, sequences: list[Sequence], room: int) -> float:
        for sequence in sequences:
            drafts, run = self.drafts(sequence), sequence.request
            if drafts and run.matcher is not None and run.matches:
                drafts = drafts[: run.matcher.valid_drafts(drafts)]
            sequence.drafts = drafts
        return 0.0

    def drafts(self, sequence: Sequence) -> list[int]:
        """What followed the latest place where the text's last tokens stood before; the longest match wins."""
        known = self._known[sequence.id]
        tokens = known.tokens
        tokens += sequence.output[len(tokens) - len(sequence.prompt) :]
        self._read(known, len(tokens) - 1)  # the newest run is looked for, so it must not find itself
        for size in self._sizes:
            if size <= len(tokens) and (at := known.ends.get(tuple(tokens[-size:]))) is not None:
                return tokens[at : at + self._most]
        return []

    def _read(self, known: _Known, stop: int) -> None:
        tokens = known.tokens
        for end in range(known.read + 1, stop + 1):
            for size in self._sizes:
                if size <= end:
                    known.ends[tuple(tokens[end - size : end])] = end
        known.read = max(known.read, stop)


class Payoff:
    """Whether drafts make tokens cheaper, measured on the iterations themselves, apart for each number of sequences.

    Both manners are tried, the cheaper one (seconds per token) goes on, and the other is tried again now and then.
    """

    def __init__(self) -> None:
        self._cost: dict[tuple[int, bool], float] = {}
        self._seen: dict[tuple[int, bool], int] = {}
        self._since: dict[int, int] = {}

    def forget(self) -> None:
        for kept in (self._cost, self._seen, self._since):
            kept.clear()

    def wants(self, sequences: int) -> bool:
        """Whether the next iteration of so many sequences shall have drafts."""
        size = sequences.bit_length()
        drafted, plain = (self._seen.get((size, manner), 0) for manner in (True, False))
        if drafted < TRIAL or plain < TRIAL:
            return drafted < TRIAL
        better = self._cost[size, True] <= self._cost[size, False]
        if self._since.get(size, 0) >= AGAIN_AFTER:
            self._since[size] = 0
            self._seen[size, not better] = 0
        return better

    def took(self, sequences: int, *, drafted: bool, seconds: float, tokens: int) -> None:
        """An iteration of decoding only is over."""
        key = (sequences.bit_length(), drafted)
        cost = seconds / max(tokens, 1)
        seen = self._seen.get(key, 0)
        self._seen[key] = seen + 1
        self._since[key[0]] = self._since.get(key[0], 0) + 1
        if not seen and key not in self._cost:
            self._cost[key] = cost
        else:
            self._cost[key] += SMOOTHING * (cost - self._cost[key])


class Drafts:
    """A proposer, asked only while it pays. One that fails is not asked again: the answers do without."""

    def __init__(self, proposer: Proposer, payoff: Payoff | None = None) -> None:
        self.proposer = proposer
        self._payoff = payoff or Payoff()
        self._tokens = 0
        self._ahead_s = 0.0  # spent on texts in this iteration
        self._debt_s = 0.0  # of that, what no iteration was charged for yet
        self.has_failed = False

    def enter(self, sequence: Sequence) -> None:
        self.proposer.enter(sequence)

    def leave(self, sequence: Sequence) -> None:
        self.proposer.leave(sequence)

    def forget(self) -> None:
        """What was measured and kept so far was the warm-up's."""
        self._payoff.forget()
        self._debt_s = 0.0
        self.proposer.forget()

    def close(self) -> None:
        self.proposer.close()

    def propose(self, sequences: Iterable[Sequence], room: int) -> None:
        """room: drafts that the next iteration has budget for."""
        ready = [sequence for sequence in sequences if sequence.computed and not sequence.is_prefilling]
        self._tokens, self._ahead_s = 0, 0.0
        if not ready or self.has_failed or not self._payoff.wants(len(ready)):
            return
        try:
            self._ahead_s = self.proposer.propose(ready, room)
        except Exception:
            log.exception("drafts failed: from now on there are none")
            self.has_failed = True
            for sequence in ready:
                sequence.drafts = []

    def judged(self, accepted: int) -> None:
        """So many of a sequence's drafts were taken."""
        self._tokens += accepted

    def timed(self, plan: Plan, seconds: float) -> None:
        """An iteration for which nothing was found to guess tells what one without drafts costs."""
        seconds -= self._ahead_s
        self._debt_s += self._ahead_s
        if plan.decode_tokens and not plan.prompt_tokens:
            tokens = plan.decode_tokens + self._tokens
            drafted = plan.draft_tokens > 0
            if drafted:
                share = self._debt_s / SPREAD
                self._debt_s -= share
                seconds += share
            self._payoff.took(plan.decode_tokens, drafted=drafted, seconds=seconds, tokens=tokens)
