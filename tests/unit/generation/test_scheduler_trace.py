"""A thousand requests of a real trace through the scheduler alone, on a simulated clock: order, budget, memory.

An iteration takes 10 ms and 20 us for each token, as a small model on a GPU might; lengths and arrivals are the trace's,
played five times in a row with other texts. Prints what it saw (`pytest -s`).
"""

from __future__ import annotations

import csv
import random
import statistics
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pytest

from inference.generation.blocks import BlockPool
from inference.generation.scheduler import Limits, Plan, Scheduler
from inference.generation.sequence import Sequence

TRACE = Path(__file__).resolve().parents[2] / "data" / "azure_llm_2023_conv_200.csv"
ITERATION_S, TOKEN_S = 0.010, 20e-6
SYSTEM = list(range(1000, 1200))  # every chat begins with the same system prompt


def requests(times: int, speed: float) -> list[tuple[float, int, int]]:
    """(arrival in seconds, prompt tokens, answer tokens)."""
    with TRACE.open() as lines:
        rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    stamps = [datetime.fromisoformat(row["TIMESTAMP"][:26]) for row in rows]
    offsets = [(stamp - stamps[0]).total_seconds() / speed for stamp in stamps]
    span = offsets[-1] + 0.1
    return [
        (turn * span + at, int(row["ContextTokens"]), int(row["GeneratedTokens"]))
        for turn in range(times)
        for at, row in zip(offsets, rows, strict=True)
    ]


@dataclass
class Simulation:
    blocks: int
    batch_every: int = 0  # every so many is of the class that has time
    now: float = 0.0
    iterations: int = 0
    most_passed: int = 0
    first_at: dict[int, float] = field(default_factory=dict)
    arrived_at: dict[int, float] = field(default_factory=dict)
    budget_use: list[float] = field(default_factory=list)  # of iterations that left somebody with a prompt to compute
    scheduler: Scheduler = field(init=False)

    def run(self, times: int = 5, speed: float = 4.0) -> None:
        limits = Limits(token_budget=2048, max_sequences=128, max_context=8192)
        self.scheduler = Scheduler(limits, BlockPool(self.blocks, 16))
        coming, draw = deque(requests(times, speed)), random.Random(4)
        while coming or self.scheduler.running or self.scheduler.waiting:
            if not self.scheduler.running and not self.scheduler.waiting:
                self.now = max(self.now, coming[0][0])
            while coming and coming[0][0] <= self.now:
                self._arrive(*coming.popleft(), draw)
            self._iterate()

    def _arrive(self, at: float, prompt: int, answer: int, draw: random.Random) -> None:
        number = len(self.arrived_at)
        self.arrived_at[number] = at
        tokens = (SYSTEM + draw.choices(range(1000), k=prompt))[:prompt]
        late = self.batch_every and number % self.batch_every == 0
        self.scheduler.add(Sequence(number, tokens, answer, priority=int(bool(late))))

    def _iterate(self) -> None:
        plan = self.scheduler.schedule()
        assert plan.items, "an iteration without work"
        self.iterations += 1
        self.now += ITERATION_S + TOKEN_S * plan.tokens
        if self._lacks_prompt() and not plan.preempted:
            self.budget_use.append(plan.tokens / self.scheduler.limits.token_budget)
        self._commit(plan)
        if self.iterations % 50 == 0:
            self.scheduler.check_integrity()

    def _lacks_prompt(self) -> bool:
        full = self.scheduler.running >= self.scheduler.limits.max_sequences
        return self.scheduler.waiting > 0 and not full and self.scheduler.usage < 0.8

    def _commit(self, plan: Plan) -> None:
        self.scheduler.commit(plan, [[1] if item.wants_logits else [] for item in plan.items])
        for item in plan.items:
            sequence = item.sequence
            self.most_passed = max(self.most_passed, sequence.passed)
            if sequence.output:
                self.first_at.setdefault(sequence.id, self.now)
            if len(sequence.output) >= sequence.max_output:
                self.scheduler.finish(sequence)

    def ttft(self, numbers) -> list[float]:
        return sorted(self.first_at[n] - self.arrived_at[n] for n in numbers)

    def inversions(self) -> int:
        """Neighbours in arrival of whom the later one got its first token first."""
        return sum(self.first_at[n] > self.first_at[n + 1] for n in range(len(self.first_at) - 1))

    def report(self, name: str) -> None:
        ttft = self.ttft(self.first_at)
        print(
            f"\n{name}: {len(ttft)} requests in {self.now:.1f} s and {self.iterations} iterations; TTFT p50 "
            f"{statistics.median(ttft):.3f} p99 {ttft[int(len(ttft) * 0.99)]:.3f} s; {self.inversions()} neighbours out of "
            f"order; budget used {statistics.fmean(self.budget_use or [0]):.1%} in {len(self.budget_use)} iterations in which prompts waited for nothing else; "
            f"{self.scheduler.preempted} preempted; prefix hits {self.scheduler.prefix_hits} of "
            f"{self.scheduler.prefix_queries} tokens"
        )


@pytest.mark.parametrize(("blocks", "out_of_order"), [(16384, 0), (2048, 500)])
def test_a_thousand_requests_end_in_order_and_fill_the_budget(blocks, out_of_order):
    """Where memory is short, small ones may pass; none is passed more often than the law allows."""
    seen = Simulation(blocks)
    seen.run(speed=8.0)
    seen.report(f"{blocks} blocks")
    assert len(seen.first_at) == 1000
    assert seen.scheduler.pool.available == blocks
    assert seen.inversions() <= out_of_order
    assert seen.most_passed <= seen.scheduler.limits.patience
    assert (seen.scheduler.preempted == 0) == (out_of_order == 0)
    assert seen.scheduler.prefix_hits > 0.9 * 1000 * len(SYSTEM)  # a few prompts are shorter than the system's
    assert statistics.fmean(seen.budget_use) > 0.9


def test_the_same_trace_gives_the_same_times():
    first, second = Simulation(2048), Simulation(2048)
    first.run(times=1)
    second.run(times=1)
    assert first.first_at == second.first_at


def test_batch_work_does_not_delay_live_traffic():
    mixed = Simulation(1024, batch_every=3)
    mixed.run(times=2, speed=8.0)
    mixed.report("every third has time")
    live = mixed.ttft(n for n in mixed.first_at if n % 3)
    late = mixed.ttft(n for n in mixed.first_at if n % 3 == 0)
    assert statistics.median(live) < statistics.median(late)
    assert live[int(len(live) * 0.9)] < late[int(len(late) * 0.9)]
