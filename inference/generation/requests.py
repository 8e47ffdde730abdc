"""What the engine's thread and the event loop hand each other: requests going in, tokens coming out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference.errors import SerinusError
    from inference.generation.grammar import Grammar, Matcher
    from inference.generation.sequence import Sequence
    from inference.protocol.generation import Sampling

# One of the most likely tokens at a place: its id and its logprob.
Likely = tuple[int, float]


@dataclass(slots=True, eq=False)
class Run:
    """One choice of a request: a sequence, its row in the sampler, its grammar.

    stops: token ids that end it. limit: most tokens of its answer. has_ended: nothing more is said about it.
    """

    request: Request
    index: int
    sequence: Sequence
    slot: int = -1
    matcher: Matcher | None = None
    limit: int = 0
    has_ended: bool = False


@dataclass(slots=True, eq=False)
class Request:
    """A request as the engine sees it: token ids and rules. arrived_at: monotonic s.

    prompt_logprobs: None or how many of the most likely; such a prompt is never taken from the prefix cache.
    runs: the first is made with the request, the others when the prompt is computed.
    """

    id: int
    prompt: list[int]
    sampling: Sampling
    limit: int
    stops: frozenset[int]
    banned: tuple[int, ...] = ()
    bad_words: list[list[int]] = field(default_factory=list)
    grammar: Grammar | None = None
    priority: int = 0
    salt: bytes = b""
    adapter: int = 0
    arrived_at: float = 0.0
    runs: list[Run] = field(default_factory=list)
    began_at: float = 0.0

    @property
    def prompt_logprobs(self) -> int | None:
        return self.sampling.prompt_logprobs


@dataclass(slots=True, eq=False)
class Output:
    """New tokens of one choice. finish: "", "stop" or "length"; stop_token: the id that ended it, which is among
    `tokens`. logprobs: of each token, and the likeliest at its place. cached: prompt tokens that came from the cache.
    error: it ended with this. prompt: logprobs of the prompt's tokens from `prompt_at` on, in chunks.
    """

    run: Run
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    likely: list[list[Likely]] = field(default_factory=list)
    finish: str = ""
    stop_token: int | None = None
    error: SerinusError | None = None
    prompt_logprobs: list[float] = field(default_factory=list)
    prompt_likely: list[list[Likely]] = field(default_factory=list)
