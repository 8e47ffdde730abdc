"""`python tests/benchmarks/bench_language.py`: SmolLM2-135M through the whole server, beside transformers in the same run.

A real `serinus up` serves the GGUF of the demo package in fp32; the load comes from this process by streamed
completions. W3 is 32 mixed requests (4,348 prompt and 2,268 output tokens), as a burst and as Poisson arrivals.
`--write` writes docs/benchmarks-language.md, of which `make bench-peers-language` keeps a section.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "platform"), str(Path(__file__).parent)]

from tests.benchmarks import pages  # noqa: E402

PAGE = ROOT / "docs" / "benchmarks-language.md"
BESIDE = "## Beside its peers (`make bench-peers-language`)"
PROMPTS = [
    119, 86, 228, 83, 187, 138, 242, 181, 61, 219, 124, 115, 93, 230, 61, 51, 106, 235, 184, 112, 191, 32, 221, 18, 146,
    159, 206, 133, 197, 43, 41, 106,
]  # fmt: skip
ANSWERS = [
    78, 17, 67, 21, 101, 52, 40, 41, 122, 54, 47, 117, 108, 43, 94, 104, 72, 84, 91, 75, 28, 78, 31, 32, 107, 54, 81, 26,
    101, 110, 72, 120,
]  # fmt: skip
# Gaps of an exponential distribution with mean 1: one fixed draw, as the peers had it.
GAPS = [
    0.189, 5.912, 0.176, 1.016, 0.314, 0.484, 0.359, 0.019, 0.225, 1.093, 0.056, 1.206, 0.009, 0.675, 1.841, 0.125,
    0.056, 1.359, 1.829, 0.279, 0.458, 0.075, 0.636, 0.147, 0.871, 0.485, 0.485, 0.323, 0.669, 0.242, 0.307, 2.581,
]  # fmt: skip
RATE = 0.35
TIMEOUT_S = 300
REPEATS = 3
BURSTS = {"fp32": 3, "int8": 1, "ngram": 1}


@dataclass
class Streamed:
    """One request: times (s) at which it was sent and at which each event with text came; tokens of its usage; their ids,
    where they were asked for.
    """

    sent: float
    times: list[float] = field(default_factory=list)
    tokens: int = 0
    ids: list[int] = field(default_factory=list)

    @property
    def first(self) -> float:
        return self.times[0] - self.sent


def prompts(seed: int = 1) -> list[list[int]]:
    """Token ids; another seed for every run, so that no run finds the last one's prefixes in the cache."""
    draw = random.Random(seed)
    return [[draw.randrange(20, 40_000) for _ in range(size)] for size in PROMPTS]


async def stream(client: httpx.AsyncClient, url: str, key: str, body: dict[str, Any], delay_s: float = 0.0) -> Streamed:
    await asyncio.sleep(delay_s)
    found = Streamed(time.perf_counter())
    body = {"temperature": 0, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}, **body}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with client.stream("POST", f"{url}/v1/completions", json=body, headers=headers) as response:
        if response.status_code != 200:
            raise SystemExit((await response.aread()).decode())
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if event["choices"]:
                found.times.append(time.perf_counter())
                found.ids += event["choices"][0].get("token_ids") or []
            if event.get("usage"):
                found.tokens = event["usage"]["completion_tokens"]
    return found


async def w3(url: str, key: str, model: str, rate: float | None = None, seed: int = 1) -> tuple[list[Streamed], float]:
    """(what came, seconds until the last). rate: arrivals a second, None for all at once."""
    delays, at = [], 0.0
    for gap in GAPS:
        at += gap / rate if rate else 0.0
        delays.append(at)
    async with httpx.AsyncClient(timeout=TIMEOUT_S, limits=httpx.Limits(max_connections=None)) as client:
        began = time.perf_counter()
        bodies = [
            {"model": model, "prompt": ids, "max_tokens": most}
            for ids, most in zip(prompts(seed), ANSWERS, strict=True)
        ]
        found = await asyncio.gather(
            *(stream(client, url, key, body, delay) for body, delay in zip(bodies, delays, strict=True))
        )
        return list(found), time.perf_counter() - began


def row(name: str, found: list[Streamed], seconds: float) -> str:
    gaps = [late - early for one in found for early, late in zip(one.times, one.times[1:], strict=False)]
    firsts = [one.first for one in found]
    tokens = sum(one.tokens for one in found)
    assert tokens == sum(ANSWERS), f"{tokens} tokens came, not {sum(ANSWERS)}"
    return (
        f"| {name} | {tokens / seconds:.1f} | {quantile(firsts, 0.5):.0f} | {quantile(firsts, 0.99):.0f} "
        f"| {quantile(gaps, 0.5):.0f} | {quantile(gaps, 0.99):.0f} |"
    )


def quantile(values: list[float], share: float) -> float:
    """In ms."""
    ordered = sorted(values)
    return 1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def prefix(url: str, key: str, model: str) -> tuple[float, float]:
    """Median ms to the first token of a 2,000-token prompt: new, and with another end on the same 2,000 tokens."""
    draw = random.Random(2)
    cold, warm = [], []
    async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
        for _ in range(REPEATS):
            shared = [draw.randrange(20, 40_000) for _ in range(2000)]
            for ids, into in ((shared, cold), ([*shared, 700, 701], warm)):
                one = await stream(client, url, key, {"model": model, "prompt": ids, "max_tokens": 2})
                into.append(1e3 * one.first)
    return statistics.median(cold), statistics.median(warm)


def transformers_static(folder: Path, threads: int) -> float:
    """Output tokens a second of transformers' generate over the 32 requests as one padded batch, useful ones counted."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from inference.models.on_torch.gguf_weights import GgufWeights

    torch.set_num_threads(threads)
    source = GgufWeights(next(folder.glob("*.gguf")))
    model = LlamaForCausalLM(LlamaConfig(**source.config)).eval()
    weights = {name: source.get(name) for name in source.names()}
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    model.load_state_dict(weights)
    ids = prompts()
    longest = max(map(len, ids))
    padded = torch.tensor([[0] * (longest - len(one)) + one for one in ids])
    mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in ids])
    began = time.perf_counter()
    with torch.inference_mode():
        model.generate(
            padded, attention_mask=mask, max_new_tokens=max(ANSWERS), min_new_tokens=max(ANSWERS), do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
    return sum(ANSWERS) / (time.perf_counter() - began)


def floor_s(folder: Path, threads: int) -> tuple[float, float, float]:
    """(seconds that W3 costs at least, GFLOP/s of large products, GB/s): prompt and output FLOP at the rate of large
    products, or the weights read once for as many iterations as the longest answer has tokens, whichever is more.
    """
    import bench_decoder
    import torch

    torch.set_num_threads(threads)
    read, flops = bench_decoder.bandwidth(), bench_decoder.rate(256)
    inside, head = 106.2e6, 28.3e6
    rows = sum(PROMPTS) + sum(ANSWERS)
    products = 2 * (inside * rows + head * sum(ANSWERS)) / flops
    reading = max(ANSWERS) * 4 * (inside + head) / read
    return max(products, reading), flops / 1e9, read / 1e9


def main() -> None:
    import bench_engine

    from serinus.demo import smollm2
    from tests.support.house import running_house, until

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--no-peer", action="store_true", help="leave transformers out")
    given = parser.parse_args()
    lines: list[str] = []
    notes: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    threads = os.cpu_count() or 1
    from tests.benchmarks.__main__ import machine

    say("# Benchmarks of language models\n")
    say(f"Measured by `make bench` on {datetime.now(UTC):%Y-%m-%d}: {machine()}")
    say(f"Load average before: {os.getloadavg()[0]:.2f}. SmolLM2-135M-Instruct (Q4_1 GGUF), fp32 unless said.\n")
    with tempfile.TemporaryDirectory(prefix="serinus-bench-") as base:
        folder = Path(base) / "model"
        folder.mkdir()
        (Path(base) / "house").mkdir()
        smollm2.make(folder)
        with running_house(Path(base) / "house", SERINUS_VALIDATION_TIMEOUT_S="120") as house:
            models = {"fp32": {}, "int8": {"quantization": "int8"}, "ngram": {"speculation": {"method": "ngram"}}}
            say("| W3, 32 requests | output tokens/s | TTFT p50 ms | p99 | between tokens p50 ms | p99 |")
            say("|---|---|---|---|---|---|")
            url, key = house.gateway_url, house.control.key
            for name, generation in models.items():
                version = house.upload(name, folder, **({"generation": generation} if generation else {}))
                house.deploy(name, version["number"])
                until(f"{name} is ready", lambda name=name: ready(url, key, name), 120)
                for seed in range(1, 1 + BURSTS[name]):
                    say(row(f"{name}, burst", *asyncio.run(w3(url, key, name, seed=seed))))
                if name == "fp32":
                    say(row(f"{name}, Poisson {RATE} /s", *asyncio.run(w3(url, key, name, RATE, seed=99))))
                    cold, warm = asyncio.run(prefix(url, key, name))
                seconds = asyncio.run(alone(url, key, name))
                notes.append(f"- {name}: {seconds * 1e3:.1f} ms between tokens of one request alone.")
                house.scale(name, version["number"], 0)
                time.sleep(2)
        say("")
        for note in notes:
            say(note)
        say(
            f"- First token of a 2,000-token prompt: {cold:.0f} ms new, {warm:.0f} ms after the cache has it: {cold / warm:.1f} times."
        )
        least, flops, read = floor_s(folder, threads)
        say(
            f"- Floor of W3 here ({flops:.0f} GFLOP/s of large products, {read:.1f} GB/s): {least:.1f} s, "
            f"{sum(ANSWERS) / least:.0f} output tokens/s."
        )
        say(bench_engine.bookkeeping(threads))
        if not given.no_peer:
            say(bench_engine.exactness(threads))
            say(
                f"- transformers, one padded batch of 32, in process: {transformers_static(folder, threads):.1f} output tokens/s."
            )
    if given.write:
        written(lines)


def written(lines: list[str]) -> None:
    """Writes the page anew, but for the section that another program keeps in it."""
    beside = pages.section(PAGE.read_text(), BESIDE) if PAGE.exists() else ""
    PAGE.write_text("\n".join(lines) + "\n" + (f"\n{beside}" if beside else ""))


async def alone(url: str, key: str, model: str) -> float:
    """Median seconds between tokens of a single request."""
    async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
        one = await stream(client, url, key, {"model": model, "prompt": prompts(77)[0], "max_tokens": 64})
    return statistics.median(late - early for early, late in zip(one.times, one.times[1:], strict=False))


def ready(url: str, key: str, name: str) -> bool:
    found = httpx.get(f"{url}/v2/models/{name}/ready", headers={"Authorization": f"Bearer {key}"})
    return found.status_code == 200


if __name__ == "__main__":
    main()
