"""What the engine's thread and the event loop hand each other: requests going in, tokens coming out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from inference.errors import SerinusError
    from inference.generation.grammar import Grammar, Matcher
    from inference.generation.sequence import Sequence
    from inference.protocol.generation import Sampling

# The likeliest tokens at a place: their ids and their logprobs.
Likely = tuple[list[int], list[float]]


@dataclass(slots=True, eq=False)
class Run:
    """One choice of a request: a sequence, its slot in the sampler, its grammar. made: tokens of its answer.

    matches: its grammar holds now (it may begin only after the thoughts of a model that thinks first). guesses: the
    distributions [V] that the sequence's drafts were drawn from, by `Sampler.guess`; empty where they are taken as they
    are.
    """

    request: Request
    index: int
    sequence: Sequence
    slot: int = -1
    matcher: Matcher | None = None
    matches: bool = False
    guesses: list[torch.Tensor] = field(default_factory=list)
    has_ended: bool = False
    added_ns: int = 0
    queued_ns: int = -1

    @property
    def made(self) -> int:
        return len(self.sequence.output)


@dataclass(slots=True, eq=False)
class Request:
    """A request as the engine sees it: token ids and rules. limit: most tokens of each answer. stops: ids that end it.

    grammar_after: the grammar begins behind this token; None for at once. prompt_told: tokens of the prompt whose
    logprobs were given out. owner: the caller's own. runs: the first is made with the request, the others when the
    prompt is computed.
    """

    prompt: list[int]
    sampling: Sampling
    limit: int
    stops: frozenset[int] = frozenset()
    bad_words: list[list[int]] = field(default_factory=list)
    grammar: Grammar | None = None
    grammar_after: int | None = None
    priority: int = 0
    salt: bytes = b""
    adapter: int = 0
    owner: Any = None
    prompt_told: int = 1
    runs: list[Run] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Output:
    """New tokens of one choice. finish: "", "stop" or "length"; stop_token: the id that ended it, the last of `tokens`.
    logprobs, likely: of each token, where they are wanted. cached: prompt tokens that came from the prefix cache.
    prompt_logprobs, prompt_likely: of the prompt's tokens from the second on, in chunks. error: it ended with this.
    """

    run: Run
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    likely: list[Likely] = field(default_factory=list)
    finish: str = ""
    stop_token: int | None = None
    cached: int = 0
    prompt_logprobs: list[float] = field(default_factory=list)
    prompt_likely: list[Likely] = field(default_factory=list)
    error: SerinusError | None = None
