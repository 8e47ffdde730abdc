"""W3 against one OpenAI door: 32 mixed requests (4,348 prompt and 2,268 output tokens), greedy, streamed, no end of text.

Every window asks other prompts of the same lengths, so that none finds an earlier one's prefixes in an engine's cache;
seed `OWN_SEED` gives the prompts that W3's published figures were measured with.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.benchmarks.bench_language import ANSWERS, GAPS, PROMPTS, TIMEOUT_S, Streamed, quantile, stream
from tests.benchmarks.peers.workloads import WORDS

OWN_SEED = 99
GREEDY_TOKENS = 32
Prompts = list[list[int]]


@dataclass(frozen=True)
class Endpoint:
    """Where an engine answers: `url` + /v1/completions, with this key, by this model's name."""

    url: str
    key: str
    model: str


@dataclass(frozen=True)
class Window:
    """What one W3 run showed. Times in ms; cores: CPU seconds a second of the engine's processes, of the load
    generator, and of everything else on the machine (foreign).
    """

    tokens_per_s: float
    first_p50_ms: float
    first_p99_ms: float
    gap_p50_ms: float
    gap_p99_ms: float
    cpu_ms_per_token: float
    server_cores: float
    client_cores: float
    foreign_cores: float


def prompts(encode: Callable[[str], list[int]], seed: int) -> Prompts:
    """Token ids of 32 texts of common words, drawn as W3's were; encode: text to ids."""
    draw, found = random.Random(seed), []
    for size in PROMPTS:
        draw.randint(16, 256)
        found.append(encode(" ".join(draw.choice(WORDS) for _ in range(400)))[:size])
        draw.randint(16, 128)
        draw.expovariate(1.0)
    return found


def arrivals(rate: float | None) -> list[float]:
    """Seconds from the beginning at which each request is sent: all at once, or at `rate` a second by W3's draw."""
    at, found = 0.0, []
    for gap in GAPS:
        at += gap / rate if rate else 0.0
        found.append(at)
    return found


async def asked(at: Endpoint, bodies: list[dict[str, Any]], delays: list[float]) -> list[Streamed]:
    async with httpx.AsyncClient(timeout=TIMEOUT_S, limits=httpx.Limits(max_connections=None)) as client:
        return list(
            await asyncio.gather(
                *(
                    stream(client, at.url, at.key, {"model": at.model, **body}, delay)
                    for body, delay in zip(bodies, delays, strict=True)
                )
            )
        )


def greedy(at: Endpoint, given: Prompts) -> Prompts:
    """The first 32 tokens that the engine says to each prompt, asked all at once. It warms the engine up as well."""
    bodies = [{"prompt": ids, "max_tokens": GREEDY_TOKENS, "return_token_ids": True} for ids in given]
    return [one.ids for one in asyncio.run(asked(at, bodies, arrivals(None)))]


def w3(at: Endpoint, given: Prompts, pids: Callable[[], list[int]], rate: float | None = None) -> Window:
    """Runs W3. rate: arrivals a second, None for all at once. Raises AssertionError when tokens are missing."""
    bodies = [{"prompt": ids, "max_tokens": most} for ids, most in zip(given, ANSWERS, strict=True)]
    engine = pids()
    busy, server, client, began = busy_s(), cpu_s(engine), time.process_time(), time.perf_counter()
    found = asyncio.run(asked(at, bodies, arrivals(rate)))
    took = time.perf_counter() - began
    used = busy_s() - busy, cpu_s(engine) - server, time.process_time() - client
    return window(found, took, used)


def window(found: list[Streamed], seconds: float, used: tuple[float, float, float]) -> Window:
    """used: CPU seconds of the whole machine, of the engine and of the load generator."""
    tokens = sum(one.tokens for one in found)
    assert tokens == sum(ANSWERS), f"{tokens} tokens came, not {sum(ANSWERS)}"
    gaps = [late - early for one in found for early, late in zip(one.times, one.times[1:], strict=False)]
    firsts = [one.first for one in found]
    machine, server, client = used
    return Window(
        tokens / seconds,
        *(quantile(values, share) for values in (firsts, gaps) for share in (0.5, 0.99)),
        1e3 * server / tokens,
        *(part / seconds for part in (server, client, machine - server - client)),
    )


def median(windows: list[Window]) -> Window:
    """Field by field."""
    names = Window.__dataclass_fields__
    return Window(*(statistics.median(getattr(one, name) for one in windows) for name in names))


def agreeing(ours: Prompts, theirs: Prompts) -> int:
    """How many answers are the same, token for token."""
    return sum(one == other for one, other in zip(ours, theirs, strict=True))


def busy_s() -> float:
    """CPU seconds that this machine's cores were not idle, since it started; stolen time counts."""
    user, nice, system, idle, wait, *others = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:])
    del idle, wait
    return (user + nice + system + sum(others[:3])) / os.sysconf("SC_CLK_TCK")


def cpu_s(pids: list[int]) -> float:
    """CPU seconds of those of these processes that are still there."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")
