"""Arrays at addresses, for loops that numba compiles: what is where is told by whole numbers, so that one compiled function
takes all shapes; and functions that are compiled apart from what calls them.
"""

# mypy: disable-error-code="misc, no-untyped-call, untyped-decorator, no-any-return, call-arg, import-untyped, attr-defined"
from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from inference.models.on_torch import stored
from inference.models.on_torch.lanes import WORD


def apart(kinds: str, form: object = None, **flags: Any) -> Any:
    """Compiles a function for itself, so that it is not compiled again within everything that calls it, which would take
    most of a model's start; a machine does it once (`stored`). kinds: of its arguments, a letter each, i for a whole number
    (or an address), f for a float32. form: what else the function depends on than its text, where it is a closure.
    """
    types_ = {"i": types.intp, "f": types.float32}

    def decorate(function: Any) -> Any:
        signature = types.void(*(types_[kind] for kind in kinds))
        return stored.for_loops(function, signature, form, error_model="numpy", **flags)

    return decorate


def called(*kinds: Any, form: object = None) -> Any:
    """Compiles a function that Python calls, with arguments of exactly these types and without its lock; a machine does it
    once. form: as in `apart`.
    """

    def decorate(function: Any) -> Any:
        return stored.for_python(function, types.void(*kinds), form, nogil=True, error_model="numpy")

    return decorate


@intrinsic
def pointer(_typing: Any, _address: Any) -> Any:
    """To the float32 at that address, for numba.carray."""

    def generate(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        return builder.inttoptr(given[0], ir.FloatType().as_pointer())

    return types.CPointer(types.float32)(types.intp), generate


@intrinsic
def _to_ints(_typing: Any, _address: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        return builder.inttoptr(given[0], ir.IntType(32).as_pointer())

    return types.CPointer(types.int32)(types.intp), generate


@intrinsic
def _to_words(_typing: Any, _address: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        return builder.inttoptr(given[0], WORD.as_pointer())

    return types.CPointer(types.int64)(types.intp), generate


@numba.njit(nogil=True)
def ints(address: int, count: int) -> Any:
    """The int32 array [count] at that address."""
    return numba.carray(_to_ints(address), (count,))


@numba.njit(nogil=True)
def words(address: int, count: int) -> Any:
    """The int64 array [count] at that address."""
    return numba.carray(_to_words(address), (count,))


@numba.njit(nogil=True)
def floats(address: int, rows: int, width: int) -> Any:
    """The float32 array [rows, width] at that address."""
    return numba.carray(pointer(address), (rows, width))


@numba.njit(nogil=True, error_model="numpy")
def add_bias(out: int, stride: int, bias: int, rows: int, first: int, last: int) -> None:  # noqa: PLR0917
    """Adds it, where it is not 0, to columns first to last of out [rows, stride]. Addresses."""
    if bias:
        whole, added = floats(out, rows, stride), floats(bias, 1, last)
        for row in range(rows):
            for column in range(first, last):
                whole[row, column] += added[0, column]
