"""One text that grows: its tokens, where their keys and values lie, and how far they are computed.

The law: a token is `known` once it is in prompt or output, and `computed` once its keys and values are in the cache.
A running sequence has at least one known token that is not computed; the logits of the last one give the next token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Status(Enum):
    """Where a sequence stands. The legal moves are `MOVES`."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


MOVES = {
    Status.WAITING: frozenset({Status.RUNNING, Status.FINISHED}),
    Status.RUNNING: frozenset({Status.WAITING, Status.FINISHED}),
    Status.FINISHED: frozenset[Status](),
}


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt and what came after it. Only the scheduler moves the fields below the first group.

    id: the engine's own. prompt: token ids, at least one, never changed (forks may share the list). max_output: the
    most tokens that may be made. priority: a smaller one goes first. salt: prefixes are shared only among equal salts.
    adapter: LoRA slot, 0 for none; it is part of the prefix hash, so a slot that gets another adapter needs another
    salt, or `BlockPool.forget`. every_logit: the logits of all prompt tokens are wanted, so no prefix hit is used.
    held: the caller reads slowly; it is neither run nor admitted until this is False again. drafts: guesses for the
    tokens after the last one, set by the engine after `commit` and verified in the next step. request: the engine's.

    order: arrival, given by `Scheduler.add`. computed: tokens whose keys and values are in the cache. blocks: the
    block table. returning: it ran before (or its parent did), and waits ahead of those that never did. cached: prompt tokens that came from the prefix cache when it was first admitted. passed: how many
    later ones went before it while it did not fit. digests: chained hashes of its full blocks, kept for good.
    sealed: blocks of the table that the prefix cache knows.
    """

    id: int
    prompt: list[int]
    max_output: int
    priority: int = 0
    salt: bytes = b""
    adapter: int = 0
    every_logit: bool = False
    held: bool = False
    drafts: list[int] = field(default_factory=list)
    request: Any = None

    output: list[int] = field(default_factory=list)
    order: int = -1
    status: Status = Status.WAITING
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    cached: int = 0
    preemptions: int = 0
    returning: bool = False
    passed: int = 0
    digests: list[bytes] = field(default_factory=list)
    sealed: int = 0

    @property
    def length(self) -> int:
        """Known tokens."""
        return len(self.prompt) + len(self.output)

    @property
    def tokens(self) -> list[int]:
        """All known tokens, as a new list."""
        return self.prompt + self.output

    @property
    def is_prefilling(self) -> bool:
        """More than the newest token is still to be computed: the prompt, or all of it after a preemption."""
        return len(self.prompt) + len(self.output) - self.computed > 1

    def slice(self, start: int, stop: int) -> list[int]:
        """Known tokens [start, stop)."""
        border = len(self.prompt)
        if start >= border:
            return self.output[start - border : stop - border]
        if stop <= border:
            return self.prompt[start:stop]
        return self.prompt[start:] + self.output[: stop - border]

    def move(self, to: Status) -> None:
        """Raises RuntimeError for a move that is not in `MOVES`."""
        if to not in MOVES[self.status]:
            raise RuntimeError(f"Sequence {self.id} is {self.status.value} and cannot become {to.value}.")
        self.status = to
