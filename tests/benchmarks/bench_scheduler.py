"""Microseconds that schedule, flatten and commit take in an iteration in which all running sequences decode.

`python tests/benchmarks/bench_scheduler.py` prints medians at 64 and 256 running, without and with three drafts each,
and the part of a 10 ms iteration (a small model on a GPU) that they are.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from inference.generation.blocks import BlockPool
from inference.generation.scheduler import Limits, Scheduler, flatten
from inference.generation.sequence import Sequence

PROMPT, ANSWER, ITERATION_US = 1000, 320, 10_000


def measure(running: int, drafts: int) -> tuple[float, float, float]:
    """Medians of schedule, flatten and commit in us."""
    pool, draw = BlockPool(running * 96, 16), random.Random(0)
    scheduler = Scheduler(Limits(8192, running, PROMPT + ANSWER), pool)
    sequences = [Sequence(n, draw.choices(range(50_000), k=PROMPT), ANSWER) for n in range(running)]
    for sequence in sequences:
        scheduler.add(sequence)
    laps: list[tuple[float, float, float]] = []
    while len(sequences[-1].output) < ANSWER - drafts - 1:
        for sequence in sequences if drafts else ():
            sequence.drafts = [5] * drafts
        begin = time.perf_counter()
        plan = scheduler.schedule()
        planned = time.perf_counter()
        flatten(plan)
        flat = time.perf_counter()
        results = [[7] if item.wants_logits else [] for item in plan.items]
        ready = time.perf_counter()
        scheduler.commit(plan, results)
        if plan.decode_tokens == running:
            laps.append((planned - begin, flat - planned, time.perf_counter() - ready))
        for item in plan.items:
            if len(item.sequence.output) >= ANSWER:
                scheduler.finish(item.sequence)
    schedule, flattened, commit = (statistics.median(lap) * 1e6 for lap in zip(*laps, strict=True))
    return schedule, flattened, commit


def main() -> None:
    print("running  drafts  schedule  flatten  commit  together  of 10 ms")
    for running in (64, 256):
        for drafts in (0, 3):
            parts = measure(running, drafts)
            total = sum(parts)
            figures = "  ".join(f"{part:7.0f}" for part in (*parts, total))
            print(f"{running:7}  {drafts:6}   {figures}   {total / ITERATION_US:7.1%}")


if __name__ == "__main__":
    main()
