"""SmolLM2-135M in this process: how many greedy answers are transformers', and what an iteration costs beside computing.

Run: python tests/benchmarks/bench_engine.py [exactness|bookkeeping]; `bench_language.py` prints both.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

PROMPTS = 64
LIMIT = 32
SEATS = 64
ITERATIONS = 32


def exactness(threads: int) -> str:
    """64 chats at once, in chunks, streamed, against transformers' generate one by one."""
    import torch

    from tests.support import manners, smollm2

    torch.set_num_threads(threads)
    asked = smollm2.prompts(PROMPTS)
    wanted = [smollm2.greedy(prompt, LIMIT) for prompt in asked]
    smollm2.theirs.cache_clear()
    manner = manners.Manner(True, True, True, False, True, True)
    engine = manners.engine(smollm2.ours(), manner, asked, LIMIT)
    found = asyncio.run(manners.said(manner, engine, smollm2.text(), asked, LIMIT))
    equal = [one.tokens == own for one, own in zip(found, wanted, strict=True)]
    told = (
        f"- Exactness: {sum(equal)} of {PROMPTS} greedy answers of up to {LIMIT} tokens ({sum(map(len, wanted))} in all) "
        "equal transformers' token for token (all at once, chunks of 16 tokens, shared prefix cached, prompt lookup, streamed)"
    )
    others = [
        f"prompt {at} from token {_apart(one.tokens, own)} on"
        for at, (one, own) in enumerate(zip(found, wanted, strict=True))
        if one.tokens != own
    ]
    return told + ("; others: " + ", ".join(others) if others else "") + "."


def _apart(one: list[int], other: list[int]) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def bookkeeping(threads: int) -> str:
    """64 running sequences, each lacking one token: the share of an iteration outside the forward pass and sampling."""
    import torch

    from inference.generation.requests import Request
    from inference.protocol.generation import Sampling
    from inference.protocol.settings import GenerationSettings
    from inference.replica.language_start import engine_of
    from tests.support import manners, smollm2

    torch.set_num_threads(threads)
    model = smollm2.ours()
    settings = GenerationSettings(max_num_seqs=SEATS, enable_prefix_caching=True)
    limit = ITERATIONS + SEATS
    blocks = SEATS * manners.blocks_of(64 + limit)
    model.allocate(blocks, settings.block_size)
    engine = engine_of(model, settings, blocks)
    for prompt in smollm2.prompts(SEATS):
        engine.add(Request(prompt, Sampling(max_tokens=limit, temperature=0.0), limit))
    while engine.scheduler.waiting or any(run.made == 0 for run in engine._runs.values()):
        engine.step()
    computing = _Watch()
    engine.model.forward = computing.around(engine.model.forward)
    engine.sampler.sample = computing.around(engine.sampler.sample)
    totals, shares = [], []
    for _ in range(ITERATIONS):
        computing.seconds = 0.0
        began = time.perf_counter()
        assert len(engine.step()) == SEATS
        totals.append(time.perf_counter() - began)
        shares.append(1 - computing.seconds / totals[-1])
    del engine.model.forward
    total, share = statistics.median(totals), statistics.median(shares)
    return (
        f"- An iteration of {SEATS} running sequences: {total * 1e3:.1f} ms, of which {share:.1%} "
        f"({share * total * 1e3:.2f} ms) outside the forward pass and sampling (median of {ITERATIONS})."
    )


class _Watch:
    """Seconds spent within the functions it is around."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*given)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


if __name__ == "__main__":
    wanted = sys.argv[1:] or ["exactness", "bookkeeping"]
    for name in wanted:
        print({"exactness": exactness, "bookkeeping": bookkeeping}[name](2), flush=True)
