"""Products of rows with float32 weights that lie in panels, for few rows and many.

A panel has the weights of 32 outputs: [inputs, 32], so that a vector holds 16 outputs' weights of one input and nothing
is summed across a register. Up to 12 rows go through a panel at once, their sums in registers; while they do, the next
panel is asked for, a share of it by each block of rows, so that memory is read at its own pace behind the arithmetic.
A row's result does not depend on the rows beside it.
"""

# mypy: disable-error-code="misc, no-untyped-call, untyped-decorator, no-any-return, call-arg, import-untyped, assignment"
from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from inference.models.on_torch import lanes
from inference.models.on_torch.lanes import FLOATS, LANES, WORD, ZEROS, at
from inference.models.on_torch.language import vectors
from inference.models.on_torch.language.panels import PANEL

Array = np.ndarray[Any, Any]
CHUNK_BYTES = 1 << 20  # of rows that stay in a core's own cache while all panels pass
MOST = 12 if lanes.is_wide() else 6  # rows at once, as many as there are registers for their sums
HALVES = 2 if lanes.is_wide() else 1  # vectors of a panel at once
PARTS = PANEL // (LANES * HALVES)
_FLAGS: Any = {"nogil": True, "error_model": "numpy"}


def _generate(context: Any, builder: Any, _signature: Any, given: Any) -> Any:
    """One loop for each number of rows."""
    count, *rest = given
    end = builder.append_basic_block("end")
    chosen = builder.switch(count, end)
    for rows in range(1, MOST + 1):
        begin = builder.append_basic_block(f"rows{rows}")
        chosen.add_case(count.type(rows), begin)
        builder.position_at_end(begin)
        _write_block(builder, rows, rest)
        builder.branch(end)
    builder.position_at_end(end)
    return context.get_dummy_value()


def _write_block(builder: Any, rows: int, given: Any) -> None:
    weights, asked, step, x, x_stride, out, out_stride, inputs = given
    before = builder.block
    lines = [at(builder, x, builder.mul(x_stride, WORD(row)), 4) for row in range(rows)]
    body, done = builder.append_basic_block("inputs"), builder.append_basic_block("summed")
    builder.branch(body)
    builder.position_at_end(body)
    k = builder.phi(WORD)
    k.add_incoming(WORD(0), before)
    sums = [[builder.phi(FLOATS) for _ in range(HALVES)] for _ in range(rows)]
    line = at(builder, weights, k, 4 * PANEL)
    ahead = builder.add(asked, builder.mul(k, step))
    lanes.prefetch(builder, ahead)
    lanes.prefetch(builder, builder.add(ahead, WORD(64)))
    held = [lanes.vector(builder, builder.add(line, WORD(4 * LANES * n)), ir.FloatType()) for n in range(HALVES)]
    following = builder.add(k, WORD(1))
    k.add_incoming(following, body)
    added = []
    for row in range(rows):
        value = lanes.splat(builder, lanes.number(builder, at(builder, lines[row], k, 4)))
        for n in range(HALVES):
            own = sums[row][n]
            own.add_incoming(ZEROS, before)
            added.append(lanes.fused(builder, held[n], value, own))
            own.add_incoming(added[-1], body)
    builder.cbranch(builder.icmp_signed("<", following, inputs), body, done)
    builder.position_at_end(done)
    for row in range(rows):
        for n in range(HALVES):
            place = at(builder, out, builder.add(builder.mul(out_stride, WORD(row)), WORD(n * LANES)), 4)
            lanes.store(builder, added[row * HALVES + n], place)


@intrinsic
def _block(  # noqa: PLR0917
    _typing: Any, count: Any, weights: Any, asked: Any, step: Any, x: Any, x_stride: Any, out: Any, out_stride: Any,
    inputs: Any,
) -> Any:  # fmt: skip
    return types.void(count, weights, asked, step, x, x_stride, out, out_stride, inputs), _generate


@vectors.apart("i" * 9)
def block(  # noqa: PLR0917
    count: int, weights: int, asked: int, step: int, x: int, x_stride: int, out: int, out_stride: int, inputs: int
) -> None:
    """`count` rows times one panel (or a part of its lanes). Strides in floats; asked, step: what to ask for meanwhile."""
    _block(count, weights, asked, step, x, x_stride, out, out_stride, inputs)


@numba.njit(**_FLAGS)
def through_panel(  # noqa: PLR0917
    held: int, following: int, x: int, out: int, rows: int, inputs: int, outputs: int, panel: int
) -> None:
    """`rows` rows times one panel, the weights at `held`. following: as many bytes, which will be needed next. x, out:
    addresses of the arrays, [rows, inputs] and [rows, outputs].
    """
    size, width = inputs * PANEL * 4, min(PANEL, outputs - panel * PANEL)
    rest = np.empty((MOST if width < PANEL else 0, PANEL), np.float32)
    blocks, done = (rows + MOST - 1) // MOST, 0
    step = max(1, PANEL * 4 // (blocks * PARTS))
    for number in range(blocks):
        count = (rows - done + blocks - number - 1) // (blocks - number)
        there, stride = out + (done * outputs + panel * PANEL) * 4, outputs
        if width < PANEL:
            there, stride = np.intp(rest.ctypes.data), PANEL
        for part in range(PARTS):
            asked = following + (number * PARTS + part) * (size // (blocks * PARTS))
            aside = part * HALVES * LANES * 4
            block(count, held + aside, asked, step, x + done * inputs * 4, inputs, there + aside, stride, inputs)
        if width < PANEL:
            whole = vectors.floats(out, rows, outputs)
            for row in range(count):
                for lane in range(width):
                    whole[done + row, panel * PANEL + lane] = rest[row, lane]
        done += count


@vectors.apart("i" * 9)
def share(  # noqa: PLR0917
    member: int, members: int, weights: int, x: int, out: int, bias: int, rows: int, inputs: int, outputs: int
) -> None:
    """One member's part, some of the panels, of x [rows, inputs] times weights, plus the bias, into out [rows, outputs].
    All are addresses; bias may be 0.
    """
    panels = (outputs + PANEL - 1) // PANEL
    first, last = panels * member // members, panels * (member + 1) // members
    chunk = max(8, CHUNK_BYTES // (4 * inputs * MOST)) * MOST
    for row in range(0, rows, chunk):
        here, there, count = x + row * inputs * 4, out + row * outputs * 4, min(chunk, rows - row)
        for panel in range(first, last):
            held = weights + panel * inputs * PANEL * 4
            through_panel(held, held + inputs * PANEL * 4, here, there, count, inputs, outputs, panel)
    vectors.add_bias(out, bias, rows, outputs, first * PANEL, min(outputs, last * PANEL))


@cache
def product() -> Any:
    """The compiled function of `share`, for a team."""

    @numba.njit(numba.void(*(numba.intp,) * 10), **_FLAGS)
    def together(  # noqa: PLR0917
        member: int, members: int, _place: int, weights: int, x: int, out: int, bias: int, rows: int, inputs: int,
        outputs: int,
    ) -> None:  # fmt: skip
        share(member, members, weights, x, out, bias, rows, inputs, outputs)

    return together
