"""What the language models' compiled loops are made of: arrays at addresses, functions compiled apart, atomics, and the
products of attention as vectors (`lanes`).
"""

# ruff: noqa: ARG001 (what an intrinsic is given, the code that it generates reads)
# mypy: disable-error-code="misc, no-untyped-call, untyped-decorator, no-any-return, call-arg, import-untyped, attr-defined"
from __future__ import annotations

import platform
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from inference.models.on_torch.lanes import (
    FLOATS,
    LANES,
    WORD,
    at,
    fused,
    number,
    prefetch,
    splat,
    store,
    vector,
)
from inference.models.on_torch.stored import compiled_apart

PIECES = (1, 2, 4, 5, 6, 8)  # how many times 16 floats a row may have that `dots` takes: each is compiled


def apart(kinds: str, form: object = None, **flags: Any) -> Any:
    """Compiles a function for itself, so that it is not compiled again within everything that calls it, which would take
    most of a model's start; a machine does it once (`stored`). kinds: of its arguments, a letter each, i for a whole number
    (or an address), f for a float32. form: what else the function depends on than its text, where it is a closure.
    """
    types_ = {"i": types.intp, "f": types.float32}

    def decorate(function: Any) -> Any:
        assert function.__closure__ is None or form is not None, "what its closure holds must have a name"
        name = f"{function.__module__}.{function.__qualname__} {'' if form is None else repr(form)}"
        signature = types.void(*(types_[kind] for kind in kinds))
        return compiled_apart(function, signature, name, error_model="numpy", **flags)

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


@intrinsic
def add_up(_typing: Any, address: Any, amount: Any) -> Any:
    """Adds to the whole number at the address, atomically; gives what it was."""

    def generate(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        return builder.atomic_rmw("add", builder.inttoptr(given[0], WORD.as_pointer()), given[1], "seq_cst")

    return types.intp(types.intp, types.intp), generate


@intrinsic
def look(_typing: Any, address: Any) -> Any:
    """The whole number at the address, as other threads have left it, after a breath."""

    def generate(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        if platform.machine() in {"x86_64", "AMD64"}:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return builder.load_atomic(builder.inttoptr(given[0], WORD.as_pointer()), "seq_cst", 8)

    return types.intp(types.intp), generate


@intrinsic
def dots(  # noqa: PLR0917
    _typing: Any, queries: Any, group: Any, keys: Any, count: Any, pieces: Any, out: Any, out_stride: Any, asked: Any,
    asked_too: Any,
) -> Any:  # fmt: skip
    """out[g, n] = the sum of products of row g of `queries` with row n of `keys`, n < count; rows of `pieces` times 16
    floats, one of PIECES. out_stride: floats. asked, asked_too: addresses of `count` rows more that will be needed soon.
    """

    def generate(context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        queries, group, keys, count, pieces, *rest = given
        end = builder.append_basic_block("end")
        chosen = builder.switch(pieces, end)
        for number_ in PIECES:
            begin = builder.append_basic_block(f"pieces{number_}")
            chosen.add_case(WORD(number_), begin)
            builder.position_at_end(begin)
            _write_dots(builder, number_, queries, group, keys, count, *rest)
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(*(types.intp,) * 9), generate


def _write_dots(  # noqa: PLR0917
    builder: Any, pieces: int, queries: Any, group: Any, keys: Any, count: Any, out: Any, out_stride: Any, asked: Any,
    asked_too: Any,
) -> None:  # fmt: skip
    size = 4 * LANES * pieces
    kind = ir.FunctionType(ir.FloatType(), [ir.FloatType(), FLOATS])
    total = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")
    with cgutils.for_range(builder, count) as token:
        line = at(builder, keys, token.index, size)
        held = [vector(builder, builder.add(line, WORD(4 * LANES * n)), ir.FloatType()) for n in range(pieces)]
        for ahead in (asked, asked_too):
            for n in range(pieces):
                prefetch(builder, builder.add(at(builder, ahead, token.index, size), WORD(4 * LANES * n)))
        with cgutils.for_range(builder, group) as row:
            query = at(builder, queries, row.index, size)
            found = None
            for n in range(pieces):
                own = vector(builder, builder.add(query, WORD(4 * LANES * n)), ir.FloatType())
                found = builder.fmul(own, held[n]) if found is None else fused(builder, own, held[n], found)
            value = builder.call(total, [ir.Constant(ir.FloatType(), -0.0), found], fastmath=("reassoc",))
            place = at(builder, out, builder.add(builder.mul(row.index, out_stride), token.index), 4)
            builder.store(value, builder.inttoptr(place, ir.FloatType().as_pointer()))


@intrinsic
def mix(_typing: Any, shares: Any, rows: Any, stride: Any, count: Any, out: Any, lanes: Any) -> Any:  # noqa: PLR0917
    """out[:lanes] += the sum of `count` rows, each times its share. stride: floats between rows; lanes: of 16, 32 or 64."""

    def generate(context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        *rest, lanes = given
        end = builder.append_basic_block("end")
        chosen = builder.switch(lanes, end)
        for vectors_ in (1, 2, 4):
            begin = builder.append_basic_block(f"lanes{vectors_ * LANES}")
            chosen.add_case(WORD(vectors_ * LANES), begin)
            builder.position_at_end(begin)
            _write_mix(builder, vectors_, rest)
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, types.intp, types.intp, types.intp), generate


def _write_mix(builder: Any, count: int, given: Any) -> None:
    shares, rows, stride, tokens, out = given
    places = [builder.add(out, WORD(4 * LANES * n)) for n in range(count)]
    sums = [cgutils.alloca_once_value(builder, vector(builder, place, ir.FloatType())) for place in places]
    with cgutils.for_range(builder, tokens) as loop:
        share = splat(builder, number(builder, at(builder, shares, loop.index, 4)))
        row = at(builder, rows, builder.mul(loop.index, stride), 4)
        for n in range(count):
            held = vector(builder, builder.add(row, WORD(4 * LANES * n)), ir.FloatType())
            builder.store(fused(builder, held, share, builder.load(sums[n])), sums[n])
    for place, total in zip(places, sums, strict=True):
        store(builder, builder.load(total), place)


@numba.njit(nogil=True, error_model="numpy")
def add_bias(out: int, bias: int, rows: int, outputs: int, first: int, last: int) -> None:  # noqa: PLR0917
    """Adds it, where it is not 0, to columns first to last of out [rows, outputs]. Addresses."""
    if bias:
        whole, added = floats(out, rows, outputs), floats(bias, 1, outputs)
        for row in range(rows):
            for column in range(first, last):
                whole[row, column] += added[0, column]
