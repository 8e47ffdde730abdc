"""Buckets and padding: programs compiled for certain batch sizes get exactly those. Pure.

Arrays have the batch as their first dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    Arrays = dict[str, np.ndarray]


def bucket_for(rows: int, buckets: Sequence[int]) -> int:
    """The batch size to run `rows` rows at: the smallest bucket that holds them, or `rows` without buckets.

    Raises ValueError when no bucket is large enough.
    """
    if not buckets:
        return rows
    fitting = [bucket for bucket in buckets if bucket >= rows]
    if not fitting:
        raise ValueError(f"{rows} rows do not fit into the largest bucket of {max(buckets)}")
    return min(fitting)


def pad(arrays: Mapping[str, np.ndarray], size: int) -> Arrays:
    """Each array grown to `size` rows by repeating its last row: real values, so that no model divides by zero."""
    return {name: _grown(array, size) for name, array in arrays.items()}


def stack(parts: Sequence[Mapping[str, np.ndarray]]) -> Arrays:
    """Requests one after the other along the batch dimension; a single one uncopied."""
    if len(parts) == 1:
        return dict(parts[0])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def split(outputs: Mapping[str, np.ndarray], rows: Sequence[int]) -> list[Arrays]:
    """The outputs cut back into requests of `rows` rows each; rows of padding are dropped."""
    found: list[Arrays] = []
    start = 0
    for count in rows:
        found.append({name: array[start : start + count] for name, array in outputs.items()})
        start += count
    return found


def _grown(array: np.ndarray, size: int) -> np.ndarray:
    missing = size - len(array)
    return array if missing <= 0 else np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])
