"""Sentences of unlike lengths through batcher and encoder, in process: packed, grouped and as they come, side by side.

`python tests/benchmarks/bench_lengths.py [--sentences FILE.json]` takes turns over the ways, so that what else the machine
does meets all of them, and prints medians: sentences a second, CPU ms a sentence, p99, part of the work that was padding.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import numpy as np
import torch
import uvloop

from inference.artifacts.manifest import RuntimeSettings
from inference.models import LoadContext, load
from inference.replica import executors
from inference.runtime.runner import Runner
from inference.runtime.warmup import WarmUp, warm_up
from serinus.demo import minilm

WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "you",
    "that",
    "it",
    "server",
    "latency",
    "model",
    "batching",
    "request",
    "tensor",
    "gradient",
    "scheduler",
    "canary",
    "rollout",
]
CORES = len(os.sched_getaffinity(0))
Built = tuple[Runner, RuntimeSettings, WarmUp]


def sentences(file: str) -> list[bytes]:
    if file:
        return [text.encode() for text in json.loads(Path(file).read_text())]
    rng = random.Random(2024)
    return [" ".join(rng.choices(WORDS, k=rng.randint(5, 120))).encode() for _ in range(512)]


class AsTheyCome:
    """The padded encoder without grouping: what a batcher does that knows no lengths."""

    def __init__(self, model) -> None:
        self._model, self.signature, self.is_shareable = model, model.signature, True
        self.run, self.work, self.close = model.run, model.work, model.close
        self.prepare, self.pads = model.prepare, False


def build(folder: Path, instances: int, way: str) -> Built:
    settings = RuntimeSettings(instances=instances)
    model = load("hf_encoder", LoadContext(folder, settings, "cpu", max(1, CORES // instances)))
    if way != "packed":
        model.packed = None
    runner = Runner(AsTheyCome(model) if way == "as they come" else model)
    warm = warm_up(runner, repeats=1)
    runner.grow(instances, lambda: model, lambda _: None)
    return runner, settings, warm


async def measure(built: Built, texts: list[bytes], connections: int, seconds: float) -> dict[str, float]:
    runner, settings, warm = built
    torch.set_num_threads(max(1, CORES // settings.instances))
    executor = executors.make(runner, settings, warm, on_hang=lambda: None)
    latencies: list[float] = []
    began, cpu = time.monotonic(), time.process_time()

    async def client(number: int) -> None:
        turn = number * 7
        while time.monotonic() < began + seconds:
            text = np.empty(1, dtype=object)
            text[0] = texts[turn % len(texts)]
            at, turn = time.monotonic(), turn + 1
            await executor.predict({"text": text}, 1)
            latencies.append(time.monotonic() - at)

    await asyncio.gather(*(client(number) for number in range(connections)))
    took, cpu = time.monotonic() - began, time.process_time() - cpu
    sums = executor.statistics
    executor.stop()
    return {
        "sentences_per_s": len(latencies) / took,
        "cpu_ms": cpu / len(latencies) * 1e3,
        "p99_ms": sorted(latencies)[int(0.99 * len(latencies))] * 1e3,
        "waste": sums.padding_elements / max(1, sums.elements),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--sentences", default="")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as held:
        minilm.make(Path(held))
        ways = {
            (way, instances): build(Path(held), instances, way)
            for way in ("as they come", "grouped", "packed")
            for instances in (1, 2)
        }
        found: dict[tuple[str, int], list[dict[str, float]]] = {name: [] for name in ways}
        for _ in range(given.rounds):
            for name, made in ways.items():
                found[name].append(
                    uvloop.run(measure(made, sentences(given.sentences), given.connections, given.seconds))
                )
        for (way, instances), runs in found.items():
            medians = {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}
            print(json.dumps({"way": way, "instances": instances, **medians}))
