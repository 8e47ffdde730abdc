"""The classification extension: an output's largest values as texts, "value:index[:label]", made from bytes alone.

As Triton does it: values in descending order, equal ones by index; whole numbers in decimal, others with six digits;
each row of a batch is ranked by itself.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import Any

from inference.errors import InvalidInput
from inference.gateway import codec
from inference.protocol.messages import TensorHeader

NUMBERS = frozenset(codec.NUMBERS)


@dataclass(frozen=True, slots=True)
class Ranking:
    """How one output is ranked. has_rows: its first dimension is the batch's."""

    count: int
    labels: list[str]
    has_rows: bool


def check(count: object, datatype: str, output: str) -> int:
    """The number of classes wanted. Raises InvalidInput."""
    if type(count) is not int or not 0 <= count <= 2**31:
        raise InvalidInput(f"'classification' of output '{output}' must be a whole number of classes")
    if count and datatype not in NUMBERS:
        raise InvalidInput(f"class result not available for output due to unsupported type '{datatype}'")
    return count


def rank(data: memoryview, tensor: TensorHeader, how: Ranking) -> tuple[list[int], list[str]]:
    """Shape and texts of the ranked output."""
    cast: Any = data.cast  # its stub knows literal codes only
    values: list[Any] = cast(codec.NUMBERS[tensor.datatype][0]).tolist()
    rows = tensor.shape[0] if how.has_rows and tensor.shape else 1
    width = len(values) // rows if rows else 0
    texts: list[str] = []
    for row in range(rows):
        texts += _ranked(values[row * width : (row + 1) * width], how)
    count = min(how.count, width)
    return ([rows, count] if how.has_rows else [count]), texts


def _ranked(values: list[Any], how: Ranking) -> list[str]:
    order = heapq.nlargest(how.count, range(len(values)), key=lambda index: _weight(values[index]))
    return [_text(values[index], index, how.labels) for index in order]


def _weight(value: float) -> float:
    return -math.inf if value != value else value  # noqa: PLR0124 (not a number: last)


def _text(value: float, index: int, labels: list[str]) -> str:
    number = f"{value}" if type(value) is int else f"{value:f}"
    return f"{number}:{index}:{labels[index]}" if index < len(labels) else f"{number}:{index}"
