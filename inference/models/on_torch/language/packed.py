"""Products of few rows with packed weights of 8 or 4 bits, as fast as memory gives the weights.

Weights lie in panels of 32 outputs: [panels, inputs, 32], so that a vector register holds 16 outputs' weights of one
input, and nothing is summed across a register. The inner loop is written as vectors in LLVM's own terms, since numba's
loops become half as wide here; LLVM makes of it what the machine has (AVX2, AVX-512, NEON). A row's result does not
depend on the rows beside it. Each form of weights is compiled for itself, when it is first met.
"""

# mypy: disable-error-code="misc, no-untyped-call, untyped-decorator, no-any-return, call-arg, import-untyped"
from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from inference.models.on_torch import addresses, lanes, products
from inference.models.on_torch.lanes import FLOATS, INTS, LANES, PANEL, at, fused, prefetch, splat, vector

Array = np.ndarray[Any, Any]
AT_ONCE = 8 if lanes.is_wide() else 4  # rows whose sums have room in the registers, beside what unpacking needs
# By bits of a weight: from so many rows on, a panel is unpacked once for all of them. With few rows at once that pays
# sooner, and for four bits sooner than for eight.
MANY_ROWS = {8: 24, 4: 24} if lanes.is_wide() else {8: 12, 4: 6}
AHEAD = 2048  # bytes: how far before their use weights are asked for
_FLAGS: Any = {"nogil": True, "error_model": "numpy"}
_SCALE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


class Form(NamedTuple):
    """bits: 8 or 4 of a weight; kinds: numbers that a group has, 1 for its scale, 2 with the offset that is added; scale:
    their dtype. 8 bits are signed; 4 bits are 0 to 15 with an offset, else -8 to 7, kept 8 higher.
    """

    bits: int
    kinds: int
    scale: str

    @property
    def line(self) -> int:
        """Bytes of one group's numbers, of a panel."""
        return _SCALE_BYTES[self.scale] * PANEL * self.kinds


def _unpacked(builder: Any, address: Any, form: Form) -> list[Any]:
    """Whole numbers of 16 outputs as floats, for one input (8 bits) or two (4 bits: the low half comes first)."""
    held = vector(builder, address, ir.IntType(8))
    if form.bits == 8:
        return [builder.sitofp(builder.sext(held, INTS), FLOATS)]
    both = builder.zext(held, INTS)
    low, high = (
        builder.and_(both, ir.Constant(INTS, [15] * LANES)),
        builder.lshr(both, ir.Constant(INTS, [4] * LANES)),
    )
    if form.kinds == 1:
        eights = ir.Constant(INTS, [8] * LANES)
        low, high = builder.sub(low, eights), builder.sub(high, eights)
    return [builder.sitofp(low, FLOATS), builder.sitofp(high, FLOATS)]


def _factors(builder: Any, address: Any, form: Form, half: int) -> tuple[Any, ...]:
    """Of that half of a panel: (scale,) or (scale, offset)."""
    size = _SCALE_BYTES[form.scale]
    places = [builder.add(address, ir.IntType(64)(size * (kind * PANEL + half * LANES))) for kind in range(form.kinds)]
    return tuple(_widened(builder, place, form.scale) for place in places)


def _widened(builder: Any, address: Any, scale: str) -> Any:
    """16 numbers of that dtype as floats."""
    if scale == "float32":
        return vector(builder, address, ir.FloatType())
    if scale == "float16":
        return builder.fpext(vector(builder, address, ir.HalfType()), FLOATS)
    whole = builder.zext(vector(builder, address, ir.IntType(16)), INTS)
    return builder.bitcast(builder.shl(whole, ir.Constant(INTS, [16] * LANES)), FLOATS)


def _weights(builder: Any, whole: Any, factors: tuple[Any, ...]) -> Any:
    return builder.fmul(whole, *factors) if len(factors) == 1 else fused(builder, whole, *factors)


def _panel_code(form: Form, rows: int) -> Any:
    """A compiled function: `rows` rows times one panel.

    weights, scales, x, out: addresses; strides in floats. Scales lie as [inputs / group, kinds, 32].
    """

    def generate(context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        _write_panel(builder, form, rows, given)
        return context.get_dummy_value()

    @intrinsic
    def panel(  # noqa: PLR0917
        _typing: Any,
        weights: Any,
        scales: Any,
        x: Any,
        x_stride: Any,
        out: Any,
        out_stride: Any,
        inputs: Any,
        group: Any,
    ) -> Any:
        return types.void(weights, scales, x, x_stride, out, out_stride, inputs, group), generate

    @numba.njit(inline="never", **_FLAGS)
    def run(  # noqa: PLR0917
        weights: int, scales: int, x: int, x_stride: int, out: int, out_stride: int, inputs: int, group: int
    ) -> None:
        panel(weights, scales, x, x_stride, out, out_stride, inputs, group)

    return run


def _write_panel(builder: Any, form: Form, rows: int, given: Any) -> None:
    """The panel's two vectors in one loop, or one after the other (see `lanes.halves`)."""
    at_once = lanes.halves(rows)
    for half in range(0, 2, at_once):
        _write_halves(builder, form, rows, given, range(half, half + at_once))


def _write_halves(builder: Any, form: Form, rows: int, given: Any, halves: range) -> None:
    weights, scales, x, x_stride, out, out_stride, inputs, group = given
    word, at_once = ir.IntType(64), 8 // form.bits
    zero = ir.Constant(FLOATS, [0.0] * LANES)
    sums = [[cgutils.alloca_once_value(builder, zero) for _ in halves] for _ in range(rows)]
    lines = [at(builder, x, builder.mul(x_stride, word(row)), 4) for row in range(rows)]
    with cgutils.for_range(builder, builder.sdiv(inputs, group)) as of_group:
        line_of_scales = at(builder, scales, of_group.index, form.line)
        factors = [_factors(builder, line_of_scales, form, half) for half in halves]
        first = builder.mul(of_group.index, builder.sdiv(group, word(at_once)))
        with cgutils.for_range(builder, builder.sdiv(group, word(at_once))) as of_input:
            k = builder.add(first, of_input.index)
            line = at(builder, weights, k, PANEL)
            prefetch(builder, builder.add(line, word(AHEAD)))
            unpacked = [_unpacked(builder, builder.add(line, word(half * LANES)), form) for half in halves]
            for part in range(at_once):
                scaled = [_weights(builder, one[part], factor) for one, factor in zip(unpacked, factors, strict=True)]
                for row in range(rows):
                    place = builder.add(at(builder, lines[row], k, 4 * at_once), word(4 * part))
                    value = builder.load(builder.inttoptr(place, ir.FloatType().as_pointer()))
                    _accumulate(builder, scaled, value, sums[row])
    for row in range(rows):
        for half, one in zip(halves, sums[row], strict=True):
            place = at(builder, out, builder.add(builder.mul(out_stride, word(row)), word(half * LANES)), 4)
            builder.store(builder.load(one), builder.inttoptr(place, FLOATS.as_pointer()), align=4)


def _accumulate(builder: Any, scaled: list[Any], value: Any, sums: list[Any]) -> None:
    spread = splat(builder, value)
    for weights, place in zip(scaled, sums, strict=True):
        builder.store(fused(builder, weights, spread, builder.load(place)), place)


def _few_of(form: Form) -> Any:
    """A compiled function: as many of `left` rows as its loops take at once (AT_ONCE, 4, 2 or 1) times one panel; gives how
    many.
    """
    codes = {rows: _panel_code(form, rows) for rows in {AT_ONCE, 4, 2, 1}}
    most, four, two, one = (codes[rows] for rows in (AT_ONCE, 4, 2, 1))

    @numba.njit(**_FLAGS)
    def few(  # noqa: PLR0917
        left: int, weights: int, scales: int, x: int, out: int, out_stride: int, inputs: int, group: int
    ) -> int:
        if left >= AT_ONCE:
            most(weights, scales, x, inputs, out, out_stride, inputs, group)
            return AT_ONCE
        if left >= 4:
            four(weights, scales, x, inputs, out, out_stride, inputs, group)
            return 4
        if left >= 2:
            two(weights, scales, x, inputs, out, out_stride, inputs, group)
            return 2
        one(weights, scales, x, inputs, out, out_stride, inputs, group)
        return 1

    return few


def _through_of(form: Form) -> Any:
    """A compiled function: `rows` rows times one panel. weights, scales: the panel's own; x, out: of all."""
    few = _few_of(form)

    @numba.njit(**_FLAGS)
    def through(  # noqa: PLR0917
        weights: int, scales: int, x: int, out: int, rows: int, inputs: int, outputs: int, panel: int, group: int
    ) -> None:
        width, row = min(PANEL, outputs - panel * PANEL), 0
        if width == PANEL:
            while row < rows:
                there = out + (row * outputs + panel * PANEL) * 4
                row += few(rows - row, weights, scales, x + row * inputs * 4, there, outputs, inputs, group)
            return
        whole, rest = addresses.floats(out, rows, outputs), np.empty((AT_ONCE, PANEL), np.float32)
        while row < rows:
            here = x + row * inputs * 4
            count = few(rows - row, weights, scales, here, np.intp(rest.ctypes.data), PANEL, inputs, group)
            for r in range(count):
                for lane in range(width):
                    whole[row + r, panel * PANEL + lane] = rest[r, lane]
            row += count

    return through


def _unpack_code(form: Form) -> Any:
    """A compiled function: one panel as floats, out [inputs, 32 of out_stride]."""

    def generate(context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        _write_unpack(builder, form, given)
        return context.get_dummy_value()

    @intrinsic
    def unpack(_typing: Any, weights: Any, scales: Any, out: Any, out_stride: Any, inputs: Any, group: Any) -> Any:  # noqa: PLR0917
        return types.void(weights, scales, out, out_stride, inputs, group), generate

    @numba.njit(inline="never", **_FLAGS)
    def run(weights: int, scales: int, out: int, out_stride: int, inputs: int, group: int) -> None:  # noqa: PLR0917
        unpack(weights, scales, out, out_stride, inputs, group)

    return run


def _write_unpack(builder: Any, form: Form, given: Any) -> None:
    weights, scales, out, out_stride, inputs, group = given
    word, at_once = ir.IntType(64), 8 // form.bits
    steps = builder.sdiv(group, word(at_once))
    with cgutils.for_range(builder, builder.sdiv(inputs, group)) as of_group:
        line_of_scales = at(builder, scales, of_group.index, form.line)
        factors = [_factors(builder, line_of_scales, form, half) for half in range(2)]
        with cgutils.for_range(builder, steps) as of_input:
            k = builder.add(builder.mul(of_group.index, steps), of_input.index)
            line = at(builder, weights, k, PANEL)
            for n, factor in enumerate(factors):
                unpacked = _unpacked(builder, builder.add(line, word(n * LANES)), form)
                for part in range(at_once):
                    row = builder.add(builder.mul(k, word(at_once)), word(part))
                    place = at(builder, out, builder.add(builder.mul(row, out_stride), word(n * LANES)), 4)
                    kind = builder.inttoptr(place, FLOATS.as_pointer())
                    builder.store(_weights(builder, unpacked[part], factor), kind, align=4)


@cache
def share_of(form: Form) -> Any:
    """A compiled function: one member's part, some of the panels, of x [rows, inputs] times packed weights, plus the
    bias, into out [rows, outputs]. All are addresses; bias may be 0.
    """
    through, unpack, at_once, line = _through_of(form), _unpack_code(form), 8 // form.bits, form.line
    many_rows = MANY_ROWS[form.bits]

    @addresses.apart("i" * 11, form)
    def share(  # noqa: PLR0917
        member: int, members: int, weights: int, scales: int, x: int, out: int, bias: int, rows: int, inputs: int,
        outputs: int, groups: int,
    ) -> None:  # fmt: skip
        panels = (outputs + PANEL - 1) // PANEL
        first, last = panels * member // members, panels * (member + 1) // members
        is_many = rows >= many_rows
        plain = np.empty((inputs if is_many else 0, PANEL), np.float32)
        for panel in range(first, last):
            held, factors = weights + panel * (inputs // at_once) * PANEL, scales + panel * groups * line
            near = np.intp(plain.ctypes.data)  # taken here, since an array is gone after its last mention
            if is_many:
                unpack(held, factors, near, PANEL, inputs, inputs // groups)
                column = panel * PANEL
                width = min(PANEL, outputs - column)
                products.through_panel(near, near, x, out + column * 4, outputs, rows, inputs, width)
                continue
            through(held, factors, x, out, rows, inputs, outputs, panel, inputs // groups)
        addresses.add_bias(out, outputs, bias, rows, first * PANEL, min(outputs, last * PANEL))

    return share


@cache
def together_of(form: Form) -> Any:
    """`share_of`, without a bias, for a team."""
    share = share_of(form)

    @addresses.called(*(numba.intp,) * 11, form=form)
    def together(  # noqa: PLR0917
        member: int, members: int, _place: int, weights: int, scales: int, x: int, out: int, rows: int, inputs: int,
        outputs: int, groups: int,
    ) -> None:  # fmt: skip
        share(member, members, weights, scales, x, out, 0, rows, inputs, outputs, groups)

    return together


@cache
def dense_of(form: Form) -> Any:
    """A compiled function: one member's part of packed weights as float32 [inputs, outputs], into out. All addresses."""
    unpack = _unpack_code(form)
    at_once, line = 8 // form.bits, form.line

    @addresses.called(*(numba.intp,) * 9, form=form)
    def dense(  # noqa: PLR0917
        member: int,
        members: int,
        _place: int,
        weights: int,
        scales: int,
        out: int,
        inputs: int,
        outputs: int,
        groups: int,
    ) -> None:
        panels, whole = (outputs + PANEL - 1) // PANEL, addresses.floats(out, inputs, outputs)
        for panel in range(panels * member // members, panels * (member + 1) // members):
            held = weights + panel * (inputs // at_once) * PANEL
            factors = scales + panel * groups * line
            width = min(PANEL, outputs - panel * PANEL)
            if width == PANEL:
                unpack(held, factors, out + panel * PANEL * 4, outputs, inputs, inputs // groups)
            else:
                rest = np.empty((inputs, PANEL), np.float32)
                unpack(held, factors, np.intp(rest.ctypes.data), PANEL, inputs, inputs // groups)
                for row in range(inputs):
                    for lane in range(width):
                        whole[row, panel * PANEL + lane] = rest[row, lane]

    return dense
