"""What the batcher itself costs: a model that does nothing, tickets as the replica's server makes them.

`python tests/benchmarks/bench_batcher.py` prints microseconds of CPU a batch and a request, by batch size: the median
and the best of several rounds, because the best is what the code costs and the median what the machine let it cost.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time

import numpy as np
import uvloop

from inference.batching.batcher import Batcher
from inference.batching.bounds import Bounds
from inference.batching.window import Rules
from inference.runtime.runner import Ran
from inference.runtime.work import Ticket

ROUNDS = 300
INPUTS = {"x": np.zeros((1, 16), dtype="f4")}
OUTPUTS = {"y": np.zeros((1, 4), dtype="f4")}


async def round_of(batcher: Batcher, size: int, *, keys: int) -> tuple[float, float]:
    """(CPU us to make the tickets, CPU us of all else) of one full batch, thread hand-over included."""
    left, done = [size], asyncio.get_running_loop().create_future()

    def reply(ticket: Ticket, result: object, final: bool) -> None:
        left[0] -= 1
        if not left[0]:
            done.set_result(None)

    began = time.process_time_ns()
    now = time.monotonic()
    tickets = [Ticket(INPUTS, 1, now + 30, now, reply, key=str(n % keys)) for n in range(size)]
    made = time.process_time_ns()
    for ticket in tickets:
        batcher.submit(ticket)
    await done
    return (made - began) / 1e3, (time.process_time_ns() - made) / 1e3


async def measure(size: int, *, keys: int = 1, inline_below_s: float = 0.0) -> dict[str, float]:
    def run(requests: list[object]) -> Ran:
        return Ran([OUTPUTS for _ in requests])

    batcher = Batcher(run, Bounds(Rules(size, 0.0), inline_below_s=inline_below_s), on_hang=lambda: None)
    found = [await round_of(batcher, size, keys=keys) for _ in range(ROUNDS)]
    batcher.stop()
    costs = [cost for _, cost in found[ROUNDS // 10 :]]
    return {
        "batch": size,
        "keys": keys,
        "inline": bool(inline_below_s),
        "median_us_a_batch": round(statistics.median(costs), 1),
        "best_us_a_batch": round(min(costs), 1),
        "median_us_a_request": round(statistics.median(costs) / size, 2),
        "best_us_a_request": round(min(costs) / size, 2),
        "ticket_us": round(statistics.median(made for made, _ in found) / size, 2),
    }


if __name__ == "__main__":
    for rows, keys in ((1, 1), (8, 1), (64, 1), (64, 8)):
        for inline_below_s in (0.0, 1.0):
            print(json.dumps(uvloop.run(measure(rows, keys=keys, inline_below_s=inline_below_s))))
