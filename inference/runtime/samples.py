"""Warm-up requests that a version's author wrote: zeros, random values, or the bytes of a file of the artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inference.errors import InvalidInput, Rejected
from inference.protocol.oip import TensorSpec
from inference.protocol.settings import WarmupSample
from inference.runtime import tensors
from inference.runtime.tensors import Arrays

SEED = 0  # a warm-up that fails shall fail again


@dataclass(frozen=True, slots=True)
class Sample:
    """inputs: complete, at the sample's batch size; count: how often it is run."""

    name: str
    inputs: Arrays
    count: int


def read(folder: Path, samples: Sequence[WarmupSample], *, batched: bool) -> list[Sample]:
    """The samples as arrays. Raises Rejected for a file that is missing or does not fit its tensor."""
    random = np.random.default_rng(SEED)
    return [
        Sample(
            sample.name,
            {spec.name: _array(folder, sample, spec, random, batched=batched) for spec in sample.inputs},
            sample.count,
        )
        for sample in samples
    ]


def _array(
    folder: Path, sample: WarmupSample, spec: TensorSpec, random: np.random.Generator, *, batched: bool
) -> tensors.Array:
    shape = [sample.batch_size, *spec.shape[1:]] if batched else list(spec.shape)
    if any(size < 1 for size in shape):
        raise _wrong(sample, f"input {spec.name} needs whole sizes, not {shape}")
    word = sample.data.get(spec.name, "zero")
    if word == "zero":
        return _filled(spec.datatype, shape, b"")
    if word == "random":
        return _random(spec.datatype, shape, random)
    path = folder / word
    if not path.is_file() or not path.resolve().is_file():
        raise _wrong(sample, f"there is no file {word}")
    try:
        return tensors.from_bytes(spec.datatype, shape, path.read_bytes())
    except InvalidInput as error:
        raise _wrong(sample, f"{word}: {error.message}") from error


def _filled(datatype: str, shape: list[int], text: bytes) -> tensors.Array:
    if datatype == "BYTES":
        found: tensors.Array = np.empty(int(np.prod(shape)), dtype=object)
        found[:] = [text] * found.size
        return found.reshape(shape)
    return np.zeros(shape, dtype=tensors.numpy_dtype(datatype))


def _random(datatype: str, shape: list[int], random: np.random.Generator) -> tensors.Array:
    """Floats from 0 to 1; integers 0 and 1, which are tokens of any vocabulary; words."""
    if datatype == "BYTES":
        found: tensors.Array = np.empty(int(np.prod(shape)), dtype=object)
        found[:] = [str(number).encode() for number in random.integers(0, 1000, found.size)]
        return found.reshape(shape)
    if datatype == "BF16":
        short: tensors.Array = (random.random(shape).astype("<f4").view("<u4") >> 16).astype("<u2")
        return short
    if datatype.startswith("FP"):
        return random.random(shape).astype(tensors.numpy_dtype(datatype))
    return random.integers(0, 2, shape).astype(tensors.numpy_dtype(datatype))


def _wrong(sample: WarmupSample, reason: str) -> Rejected:
    remedy = "see model_warmup in docs/triton.md: dims without the batch dimension, files as raw little-endian bytes"
    return Rejected(f"warm-up sample '{sample.name}': {reason}", remedy=remedy, check="warm-up")
