"""The batch sizes that a program with a symbolic batch allows, as its author constrained the symbol when exporting.

jax does not keep `constraints=["b <= 32"]` with the shapes of a serialised program: they survive only as assertions
inside the module, whose messages quote them. The quotes are given to jax's own parser of constraints, which then
decides what follows from them; what it cannot read bounds nothing, and the warm-up has the last word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jax import export

from inference.models import batch
from inference.protocol.settings import MAX_ROWS

if TYPE_CHECKING:
    from inference.artifacts.manifest import RuntimeSettings

QUOTED = re.compile(r"symbolic shape constraint (.{1,200}?)\. Expected ")
NAMES = re.compile(r"[A-Za-z_]\w*")
FUNCTIONS = frozenset({"floordiv", "mod", "max", "min"})
MULTIPLE = re.compile(r"(\d+)\*floordiv\((\w+), \1\) == \2|mod\((\w+), (\d+)\) == 0")


@dataclass(frozen=True, slots=True)
class Bounds:
    """Sizes from `least` to `largest` (None: any) that are multiples of `step`."""

    least: int = 1
    largest: int | None = None
    step: int = 1

    def buckets(self, settings: RuntimeSettings) -> list[int]:
        """Batch sizes to compile, ascending: the settings' or the usual ones, moved to what the program allows."""
        bound = MAX_ROWS if self.largest is None else self.largest
        wish = batch.max_batch(settings, bound) if settings.max_batch_size else min(batch.DEFAULT_MAX_BATCH, bound)
        lowest = _up(self.least, self.step)
        top = max(lowest, wish - wish % self.step)
        return sorted({min(top, max(lowest, _up(size, self.step))) for size in batch.buckets_up_to(settings, top)})


def read(assertions: Iterable[str], symbol: str) -> Bounds:
    """What the messages of a module's shape assertions say about `symbol`."""
    quotes = [match[1] for text in assertions if (match := QUOTED.search(text))]
    mine = [text for text in quotes if set(NAMES.findall(text)) - FUNCTIONS == {symbol}]
    step = max((_step(text) for text in mine), default=1)
    try:
        (size,) = export.symbolic_shape(symbol, constraints=mine)
    except Exception:  # noqa: BLE001 (whatever jax raises for text from an uploaded file: it bounds nothing)
        return Bounds(step=step)
    largest = _first(lambda rows: size <= rows)
    beyond = _first(lambda rows: not _is(lambda least: size >= least, rows))
    least = (beyond or MAX_ROWS + 1) - 1
    return Bounds(max(1, least), largest, step)


def _step(text: str) -> int:
    match = MULTIPLE.fullmatch(text)
    return min(MAX_ROWS, max(1, int(match[1] or match[4]))) if match else 1


def _first(true: Callable[[int], Any]) -> int | None:
    """The least number of rows for which `true`, which stays true above it; None when it is true for none."""
    low, high = 1, MAX_ROWS
    if not _is(true, high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _is(true, middle) else (middle + 1, high)
    return low


def _is(true: Callable[[int], Any], rows: int) -> bool:
    # jax raises where the constraints decide neither way.
    try:
        return bool(true(rows))
    except Exception:  # noqa: BLE001
        return False


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
