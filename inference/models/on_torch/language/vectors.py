"""What the language models' compiled loops are made of beside arrays (`addresses`): atomics, and the products of attention
as vectors (`lanes`).
"""

# ruff: noqa: ARG001 (what an intrinsic is given, the code that it generates reads)
# mypy: disable-error-code="misc, no-untyped-call, untyped-decorator, no-any-return, call-arg, import-untyped, attr-defined"
from __future__ import annotations

import platform
from typing import Any

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

PIECES = (1, 2, 4, 5, 6, 8)  # how many times 16 floats a row may have that `dots` takes: each is compiled


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
