"""Milliseconds of one step of a decoder against its floor: matrix products at their measured best rate, and weights
read once at the measured memory bandwidth.

Run: python tests/benchmarks/bench_decoder.py FOLDER [threads] [none|int8|int4|gguf]
"""

import sys
import time
from pathlib import Path

import torch

from inference.models.language import Step
from inference.models.on_torch.language import TorchLanguageModel, source_of
from inference.protocol.settings import GenerationSettings

BLOCK, BLOCKS = 16, 2048
DECODES = (1, 8, 16, 32, 64)
CHUNKS = ((1, 256), (1, 512), (2, 256))
HISTORY = 160  # tokens in the cache of a decoding sequence


def step_of(counts, histories):
    """One step of sequences that have `histories` tokens in the cache and bring `counts`; the last row of each is wanted."""
    tokens, positions, slots, starts, lengths, tables, free = [], [], [], [0], [], [], 1
    for count, history in zip(counts, histories, strict=True):
        needed = -(-(count + history) // BLOCK)
        table = list(range(free, free + needed))
        free += needed
        places = range(history, history + count)
        tokens += [(7919 * place + 13) % 1000 for place in places]
        positions += places
        slots += [table[place // BLOCK] * BLOCK + place % BLOCK for place in places]
        starts.append(len(tokens))
        lengths.append(history + count)
        tables.append(table)
    width = max(map(len, tables))
    longs = [torch.tensor(one) for one in (tokens, positions, slots)]
    padded = [table + [0] * (width - len(table)) for table in tables]
    ints = [torch.tensor(one, dtype=torch.int32) for one in (starts, lengths, padded)]
    return Step(*longs, *ints, torch.tensor(starts[1:]) - 1)


def best_s(work, repeats=3, calls=4):
    work()
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(calls):
            work()
        found.append((time.perf_counter() - began) / calls)
    return min(found)


def bandwidth(size_bytes=1 << 29):
    """Bytes a second of reading memory once, as a matrix times a vector does."""
    matrix, vector = torch.ones(size_bytes // 4096, 1024), torch.ones(1024)
    return size_bytes / best_s(lambda: matrix @ vector)


def rate(rows):
    """FLOP a second of one large product with so many rows, weights in the cache, the better of two orders."""
    weight, x = torch.randn(3072, 576), torch.randn(rows, 576)
    took = min(best_s(lambda: torch.nn.functional.linear(x, weight)), best_s(lambda: weight @ x.T))
    return 2 * rows * weight.numel() / took


def held(model):
    """Bytes of the weights that a step reads, the embedding's lookup aside."""
    names = ("qkv", "output", "gate_up", "down")
    parts = [getattr(layer, name) for layer in model.layers for name in names] + [model.head]
    return sum(one.nbytes for one in parts)


def main(folder, threads=2, quantization="none"):
    torch.set_num_threads(threads)
    settings = GenerationSettings(max_model_len=2048, quantization=quantization)
    began = time.perf_counter()
    model = TorchLanguageModel(source_of(Path(folder)), settings, "cpu")
    model.allocate(BLOCKS, BLOCK)
    print(f"loaded in {time.perf_counter() - began:.1f} s, {threads} threads, quantization {quantization}")
    spec, read, flops = model.spec, bandwidth(), rate(256)
    inside = spec.layers * spec.width * (
        (2 * spec.heads + 2 * spec.kv_heads) * spec.head_width + 3 * spec.inner
    )  # fmt: skip
    head = spec.vocabulary * spec.width
    print(
        f"memory {read / 1e9:.1f} GB/s; products {flops / 1e9:.0f} GFLOP/s at 256 rows; {(inside + head) / 1e6:.1f} M"
    )
    cases = [(f"decode {n}", [1] * n, [HISTORY] * n) for n in DECODES]
    cases += [(f"prefill {n} x {size}", [size] * n, [0] * n) for n, size in CHUNKS]
    cases += [("mixed 31 + 225", [1] * 31 + [225], [HISTORY] * 31 + [0])]
    for name, counts, histories in cases:
        step = step_of(counts, histories)
        took = best_s(lambda step=step: model.forward(step))
        floor = max(held(model) / read, 2 * (inside * sum(counts) + head * len(counts)) / flops)
        print(f"{name:16} {took * 1e3:8.1f} ms  floor {floor * 1e3:7.1f} ms  {floor / took:5.0%}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *(int(one) for one in sys.argv[2:3]), *sys.argv[3:4])
