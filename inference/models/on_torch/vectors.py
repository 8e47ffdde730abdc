"""Sixteen floats as one value in code that numba compiles, and what can be done with them.

numba's own loops become half as wide as these processors are, and keep nothing in registers over a loop. LLVM makes of
sixteen lanes what the machine has: one register of AVX-512, two of AVX, four of NEON. Addresses are whole numbers of bytes.
"""

# mypy: disable-error-code="misc, no-untyped-call, untyped-decorator, import-untyped"
from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import extending
from numba.core import cgutils, types
from numba.extending import models, register_model

from inference.models.on_torch import lanes
from inference.models.on_torch.lanes import FLOATS, INTS, LANES, LINE, WORD

intrinsic: Any = extending.intrinsic
WIDTH = 2 * LANES  # columns of a tile
# Rows of a tile: the sums of as many fill the registers, with the vectors of columns that go at once (see lanes.halves).
ROWS = 8 if lanes.is_wide() else 6
_FLOAT, _WHOLE = ir.FloatType(), ir.IntType(32)
_FAST = ("fast",)
# 2 ** x for 0 <= x < 1, relative error 1e-7 (as in language.kernels).
_POWER = (1.8775767e-3, 8.9893397e-3, 5.5826318e-2, 2.4015361e-1, 6.9315308e-1, 9.9999994e-1)
# erf(x) = x * above(x * x) / below(x * x) for |x| <= ERF_END within 2e-7, and a little above 1 there, so that it can be
# bounded by 1 exactly: else GELU of large negative numbers would not vanish. A fit by iterated least squares.
ERF_END = 3.92
_ERF_ABOVE = (2.03472735e-06, 2.87480029e-04, 3.86836146e-03, 5.30605930e-02, 1.92764883e-01, 1.12837918)
_ERF_BELOW = (3.8070590e-5, 1.1881229e-3, 1.5172363e-2, 1.1508495e-1, 5.0416507e-1, 1.0)


class Floats(types.Type):
    """numba's name for sixteen floats."""

    def __init__(self) -> None:
        super().__init__(name="Floats16")


floats = Floats()


@register_model(Floats)
class _FloatsModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, FLOATS)


def _all(value: float) -> Any:
    return ir.Constant(FLOATS, [value] * LANES)


def _call(builder: Any, name: str, *given: Any, result: Any = FLOATS, flags: tuple[str, ...] = ()) -> Any:
    kind = ir.FunctionType(result, [one.type for one in given])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), given, fastmath=flags)


def _larger(builder: Any, one: Any, two: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", one, two), one, two)


def _total(builder: Any, value: Any) -> Any:
    name = f"llvm.vector.reduce.fadd.v{LANES}f32"
    return _call(builder, name, _FLOAT(0.0), value, result=_FLOAT, flags=_FAST)


def _exp2(builder: Any, value: Any) -> Any:
    """For values up to 0; what is below -125 counts as -125, since smaller numbers cost hundreds of cycles."""
    power = builder.select(builder.fcmp_ordered("<", value, _all(-125.0)), _all(-125.0), value)
    whole = _call(builder, f"llvm.floor.v{LANES}f32", power)
    bits = builder.add(builder.fptosi(whole, INTS), ir.Constant(INTS, [127] * LANES))
    scale = builder.bitcast(builder.shl(bits, ir.Constant(INTS, [23] * LANES)), FLOATS)
    return builder.fmul(_polynomial(builder, builder.fsub(power, whole), _POWER), scale)


def _polynomial(builder: Any, x: Any, factors: tuple[float, ...]) -> Any:
    found = _all(factors[0])
    for factor in factors[1:]:
        found = lanes.fused(builder, found, x, _all(factor))
    return found


def _bounded(builder: Any, x: Any, low: float, high: float) -> Any:
    at_least = builder.select(builder.fcmp_ordered("<", x, _all(low)), _all(low), x)
    return builder.select(builder.fcmp_ordered(">", at_least, _all(high)), _all(high), at_least)


def _first_of(builder: Any, value: Any, count: Any) -> Any:
    """The first `count` of them, and minus infinity instead of the others."""
    one = builder.insert_element(ir.Constant(INTS, ir.Undefined), builder.trunc(count, _WHOLE), _WHOLE(0))
    counts = builder.shuffle_vector(one, ir.Constant(INTS, ir.Undefined), ir.Constant(INTS, [0] * LANES))
    kept = builder.icmp_signed("<", ir.Constant(INTS, list(range(LANES))), counts)
    return builder.select(kept, value, _all(float("-inf")))


@intrinsic
def address(_typing: Any, array: Any) -> Any:
    """Where an array's elements begin."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        held = context.make_array(signature.args[0])(context, builder, given[0])
        return builder.ptrtoint(held.data, WORD)

    return types.int64(array), generate


@intrinsic
def load(_typing: Any, address: Any) -> Any:
    """The sixteen floats at an address."""
    return floats(address), lambda _context, builder, _signature, given: lanes.vector(builder, given[0])


@intrinsic
def store(_typing: Any, address: Any, value: Any) -> Any:
    """Puts them at an address."""

    def generate(context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        lanes.store(builder, given[1], given[0])
        return context.get_dummy_value()

    return types.void(address, value), generate


@intrinsic
def store_one(_typing: Any, address: Any, _value: Any) -> Any:
    """Puts one float32 at an address."""

    def generate(context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        builder.store(given[1], builder.inttoptr(given[0], _FLOAT.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(address, types.float32), generate


@intrinsic
def splat(_typing: Any, value: Any) -> Any:
    """One float32 sixteen times."""
    return floats(value), lambda _context, builder, _signature, given: lanes.splat(builder, given[0])


@intrinsic
def add(_typing: Any, one: Any, two: Any) -> Any:
    """The sum one + two."""
    return floats(one, two), lambda _context, builder, _signature, given: builder.fadd(*given)


@intrinsic
def sub(_typing: Any, one: Any, two: Any) -> Any:
    """The difference one - two."""
    return floats(one, two), lambda _context, builder, _signature, given: builder.fsub(*given)


@intrinsic
def mul(_typing: Any, one: Any, two: Any) -> Any:
    """The product one * two."""
    return floats(one, two), lambda _context, builder, _signature, given: builder.fmul(*given)


@intrinsic
def fma(_typing: Any, one: Any, two: Any, added: Any) -> Any:
    """The sum one * two + added, rounded once."""
    return floats(one, two, added), lambda _context, builder, _signature, given: lanes.fused(builder, *given)


@intrinsic
def total(_typing: Any, value: Any) -> Any:
    """Their sum."""
    return types.float32(value), lambda _context, builder, _signature, given: _total(builder, given[0])


@intrinsic
def gelu(_typing: Any, value: Any) -> Any:
    """Gives value * (1 + erf(value / sqrt(2))) / 2, to float32's own precision."""

    def generate(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        x = _bounded(builder, builder.fmul(given[0], _all(0.7071067811865476)), -ERF_END, ERF_END)
        square = builder.fmul(x, x)
        above, below = (_polynomial(builder, square, factors) for factors in (_ERF_ABOVE, _ERF_BELOW))
        # "fast" lets LLVM take the machine's reciprocal and refine it, which is a third of a division's time.
        erf = builder.fdiv(builder.fmul(x, above), below, flags=_FAST)
        half = builder.fmul(given[0], _all(0.5))
        return lanes.fused(builder, half, _bounded(builder, erf, -1.0, 1.0), half)

    return floats(value), generate


@intrinsic
def tile(  # noqa: PLR0917
    _typing: Any, a: Any, a_stride: Any, b: Any, b_stride: Any, depth: Any, factors: Any, out: Any, out_stride: Any
) -> Any:
    """out[ROWS, WIDTH] = factors[ROWS] * (a[ROWS, depth] @ b[depth, WIDTH]), by addresses; strides of rows in bytes."""

    def generate(context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        a, a_stride, b, b_stride, depth, factors, out, out_stride = given
        at_once = lanes.halves(ROWS)
        for half in range(0, 2, at_once):
            aside = WORD(half * LINE)
            sums = _products(builder, (a, a_stride), (builder.add(b, aside), b_stride), depth, at_once)
            _store_scaled(builder, sums, factors, (builder.add(out, aside), out_stride))
        return context.get_dummy_value()

    return types.void(a, a_stride, b, b_stride, depth, factors, out, out_stride), generate


def _products(builder: Any, left: tuple[Any, Any], right: tuple[Any, Any], depth: Any, at_once: int) -> list[list[Any]]:
    """For each row of the left, the sums of its products with `at_once` vectors of columns of the right. Both are told by
    address and stride.
    """
    sums = [[cgutils.alloca_once(builder, FLOATS) for _ in range(at_once)] for _ in range(ROWS)]
    for place in (one for of_row in sums for one in of_row):
        builder.store(_all(0.0), place)
    lines = [builder.add(left[0], builder.mul(left[1], WORD(row))) for row in range(ROWS)]
    with cgutils.for_range(builder, depth) as loop:
        line_of_right = builder.add(right[0], builder.mul(loop.index, right[1]))
        columns = [lanes.vector(builder, builder.add(line_of_right, WORD(n * LINE))) for n in range(at_once)]
        for line, of_row in zip(lines, sums, strict=True):
            spread = lanes.splat(builder, lanes.number(builder, builder.add(line, builder.mul(loop.index, WORD(4)))))
            for column, place in zip(columns, of_row, strict=True):
                builder.store(lanes.fused(builder, column, spread, builder.load(place)), place)
    return [[builder.load(one) for one in of_row] for of_row in sums]


def _store_scaled(builder: Any, sums: list[list[Any]], factors: Any, out: tuple[Any, Any]) -> None:
    for row, of_row in enumerate(sums):
        factor = lanes.splat(builder, lanes.number(builder, builder.add(factors, WORD(4 * row))))
        line = builder.add(out[0], builder.mul(out[1], WORD(row)))
        for n, one in enumerate(of_row):
            lanes.store(builder, builder.fmul(one, factor), builder.add(line, WORD(n * LINE)))


@intrinsic
def shares(_typing: Any, scores: Any, stride: Any, size: Any, factors: Any) -> Any:
    """Makes scores [ROWS, size] = 2 ** (scores - their row's largest); factors [ROWS] = 1 / the rows' sums; by addresses.

    What follows in a row's last vector is worth nothing.
    """

    def generate(context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        _write_shares(builder, *given)
        return context.get_dummy_value()

    return types.void(scores, stride, size, factors), generate


def _write_shares(builder: Any, scores: Any, stride: Any, size: Any, factors: Any) -> None:
    # All rows go side by side: one row alone is a chain of steps that wait for each other.
    lines = [builder.add(scores, builder.mul(stride, WORD(row))) for row in range(ROWS)]
    held = [cgutils.alloca_once(builder, FLOATS) for _ in range(ROWS)]
    for one in held:
        builder.store(_all(float("-inf")), one)
    vectors = builder.udiv(builder.add(size, WORD(LANES - 1)), WORD(LANES))
    last = builder.mul(builder.sub(vectors, WORD(1)), WORD(LINE))
    left = builder.sub(size, builder.mul(builder.sub(vectors, WORD(1)), WORD(LANES)))
    for line in lines:
        place = builder.add(line, last)
        lanes.store(builder, _first_of(builder, lanes.vector(builder, place), left), place)
    with cgutils.for_range(builder, vectors) as loop:
        for line, one in zip(lines, held, strict=True):
            value = lanes.vector(builder, builder.add(line, builder.mul(loop.index, WORD(LINE))))
            builder.store(_larger(builder, value, builder.load(one)), one)
    name = f"llvm.vector.reduce.fmax.v{LANES}f32"
    tops = [
        lanes.splat(builder, _call(builder, name, builder.load(one), result=_FLOAT, flags=("nnan",))) for one in held
    ]
    for one in held:
        builder.store(_all(0.0), one)
    with cgutils.for_range(builder, vectors) as loop:
        for line, one, top in zip(lines, held, tops, strict=True):
            place = builder.add(line, builder.mul(loop.index, WORD(LINE)))
            share = _exp2(builder, builder.fsub(lanes.vector(builder, place), top))
            lanes.store(builder, share, place)
            builder.store(builder.fadd(share, builder.load(one)), one)
    for row, one in enumerate(held):
        place = builder.inttoptr(builder.add(factors, WORD(4 * row)), _FLOAT.as_pointer())
        builder.store(builder.fdiv(_FLOAT(1.0), _total(builder, builder.load(one))), place, align=4)
