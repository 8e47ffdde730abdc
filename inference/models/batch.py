"""Finds the batch dimension of a program and says which sizes it runs at. Knows shapes, not frameworks.

A symbolic first dimension that all inputs and outputs share is the batch. A fixed one proves nothing by itself (a
matrix product of two square inputs has it too), so `with_fixed_batch` asks for evidence: the program is run twice with
one row changed, and it is a batch only when no other row of any output moved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from inference.artifacts.manifest import RuntimeSettings
from inference.protocol.oip import Signature, TensorSpec
from inference.protocol.settings import MAX_ROWS

if TYPE_CHECKING:
    from collections.abc import Callable

    from inference.models.contract import Arrays

DEFAULT_MAX_BATCH = 64
DEFAULT_BUCKETS = (1, 2, 4, 8, 16, 32, 64)


def max_batch(settings: RuntimeSettings, bound: int | None) -> int:
    """The largest batch: the settings' wish within the program's own `bound`; without a wish the bound (as far as
    settings can say it), or 64.
    """
    if bound is None:
        return settings.max_batch_size or DEFAULT_MAX_BATCH
    return max(1, min(settings.max_batch_size or bound, bound, MAX_ROWS))


def limited(signature: Signature, settings: RuntimeSettings) -> Signature:
    """A declared signature within the settings' largest batch."""
    if not signature.max_batch_size:
        return signature
    return msgspec.structs.replace(signature, max_batch_size=max_batch(settings, signature.max_batch_size))


def buckets_up_to(settings: RuntimeSettings, largest: int) -> list[int]:
    """Batch sizes to compile, ascending, the largest always among them."""
    wanted = settings.buckets or DEFAULT_BUCKETS
    return sorted({size for size in wanted if size < largest} | {largest})


def common_leading(specs: list[TensorSpec]) -> int | None:
    """The first dimension that all have in common; None when there is none."""
    leading = {spec.shape[0] if spec.shape else None for spec in specs}
    return leading.pop() if len(leading) == 1 else None


def with_fixed_batch(signature: Signature, run: Callable[[Arrays], Arrays]) -> Signature:
    """`signature` with its common fixed first dimension n as a batch padded to (buckets [n]), where rows prove to be
    independent of each other; else unchanged, so requests are never merged.
    """
    specs = [*signature.inputs, *signature.outputs]
    rows = common_leading(specs)
    free = any(-1 in spec.shape for spec in specs)
    if not rows or rows < 1 or free or (rows > 1 and not _rows_are_independent(signature, rows, run)):
        return signature
    return msgspec.structs.replace(
        signature,
        inputs=[_free_first(spec) for spec in signature.inputs],
        outputs=[_free_first(spec) for spec in signature.outputs],
        max_batch_size=rows,
        buckets=[rows],
    )


def _free_first(spec: TensorSpec) -> TensorSpec:
    return msgspec.structs.replace(spec, shape=[-1, *spec.shape[1:]])


def _rows_are_independent(signature: Signature, rows: int, run: Callable[[Arrays], Arrays]) -> bool:
    generator = np.random.default_rng(0)
    first = {spec.name: _sample(generator, spec) for spec in signature.inputs}
    for changed in {0, rows - 1}:
        second = {name: array.copy() for name, array in first.items()}
        for spec in signature.inputs:
            second[spec.name][changed] = _sample(generator, spec)[changed]
        try:
            before, after = run(first), run(second)
        except Exception:  # noqa: BLE001 (no evidence, whatever the framework raised)
            return False
        others = [row for row in range(rows) if row != changed]
        if not all(_same(before[name][others], after[name][others]) for name in before):
            return False
    return True


def _sample(generator: np.random.Generator, spec: TensorSpec) -> np.ndarray[Any, Any]:
    if spec.datatype == "BYTES":
        words = generator.integers(0, 1000, spec.shape)
        return np.array([str(word).encode() for word in words.ravel()], dtype=object).reshape(spec.shape)
    if spec.datatype == "BF16":
        return (generator.standard_normal(spec.shape).astype("<f4").view("<u4") >> 16).astype("<u2")
    if spec.datatype.startswith("FP"):
        return generator.standard_normal(spec.shape).astype(
            {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}[spec.datatype]
        )
    return generator.integers(0, 2, spec.shape).astype(spec.datatype.lower())


def _same(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    if one.dtype.kind == "f":
        return bool(np.allclose(one, other, rtol=1e-4, atol=1e-5, equal_nan=True))
    return bool(np.array_equal(one, other))
