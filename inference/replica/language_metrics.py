"""What a language model's replica counts, as exact sums; the gateways add those of all replicas."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference.protocol.statistics import GenerationStatistics, Histogram

if TYPE_CHECKING:
    from inference.generation.engine import Engine
    from inference.protocol.generation import Usage

FIRST_S = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
NEXT_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
# The same for all replicas, whose counts are added up; vLLM's, so that dashboards read on.
REQUEST_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0,
    7680.0,
)  # fmt: skip
TOKENS = tuple(float(step * 10**power) for power in range(6) for step in (1, 2, 5))


class LanguageMeter:
    """Sums since the start; written in the event loop, while the engine's own are read as they are."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sums = GenerationStatistics(
            first_token=Histogram.over(FIRST_S),
            next_token=Histogram.over(NEXT_S),
            whole=Histogram.over(REQUEST_S),
            queued=Histogram.over(REQUEST_S),
            prompts=Histogram.over(TOKENS),
            answers=Histogram.over(TOKENS),
        )

    def first_token(self, seconds: float, queued_s: float) -> None:
        """queued_s: how long the engine had it before its first chunk ran."""
        self._sums.first_token.observe(seconds)
        self._sums.queued.observe(queued_s)

    def next_tokens(self, seconds: float, count: int) -> None:
        """`count` tokens came at once, `seconds` each."""
        self._sums.next_token.observe(seconds, count)

    def ended(self, usage: Usage, finishes: list[str]) -> None:
        self._sums.prompt_tokens += usage.prompt_tokens
        self._sums.output_tokens += usage.completion_tokens
        for finish in finishes:
            if finish:
                self._sums.finished[finish] = self._sums.finished.get(finish, 0) + 1

    def finished(self, usage: Usage, seconds: float) -> None:
        """A request has got all of its answer, `seconds` after it came."""
        self._sums.whole.observe(seconds)
        self._sums.prompts.observe(usage.prompt_tokens)
        self._sums.answers.observe(usage.completion_tokens)

    def sums(self) -> GenerationStatistics:
        """With what is so now. usage: 0..1 of the cache's blocks."""
        found, scheduler, engine = self._sums, self._engine.scheduler, self._engine
        found.running, found.waiting = scheduler.running, scheduler.waiting
        found.cache_usage = scheduler.usage
        found.preempted = scheduler.preempted
        found.prefix_queries, found.prefix_hits = scheduler.prefix_queries, scheduler.prefix_hits
        found.iterations = engine.spent.iterations
        found.scheduling_ns, found.forward_ns = engine.spent.scheduling_ns, engine.spent.forward_ns
        found.sampling_ns = engine.spent.sampling_ns
        found.drafted, found.accepted = engine.spent.drafted, engine.spent.accepted
        return found
