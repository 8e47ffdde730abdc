"""Products of rows with float32 weights that lie in panels, for few rows and many, of encoders and language models.

A panel has the weights of 32 outputs: [inputs, 32], so that a vector holds 16 outputs' weights of one input and nothing
is summed across a register. As many rows as there are registers for their sums go through a panel at once; while they do,
the next panel is asked for, a share of it by each block of rows, so that memory is read at its own pace behind the
arithmetic. A row's result does not depend on the rows beside it.
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

from inference.models.on_torch import addresses, lanes
from inference.models.on_torch.lanes import FLOATS, LANES, PANEL, WORD, ZEROS, at

Array = np.ndarray[Any, Any]
CHUNK_BYTES = 1 << 20  # of rows that stay in a core's own cache while all panels pass
MOST = 14 if lanes.is_wide() else 6  # rows at once, as many as there are registers for their sums
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
    """The panel's two vectors in one loop, or one after the other (see `lanes.halves`)."""
    weights, asked, step, x, x_stride, out, out_stride, inputs = given
    at_once = lanes.halves(rows)
    lines = [at(builder, x, builder.mul(x_stride, WORD(row)), 4) for row in range(rows)]
    if at_once == 1:
        step = builder.lshr(step, WORD(1))
    for half in range(0, 2, at_once):
        aside = WORD(half * lanes.LINE)
        ahead = builder.add(asked, builder.mul(builder.mul(step, inputs), WORD(half)))
        added = _write_loop(builder, lines, builder.add(weights, aside), at_once, (ahead, step), inputs)
        for row, sums in enumerate(added):
            for n, one in enumerate(sums):
                place = at(builder, out, builder.add(builder.mul(out_stride, WORD(row)), WORD((half + n) * LANES)), 4)
                lanes.store(builder, one, place)


def _write_loop(  # noqa: PLR0917
    builder: Any, lines: list[Any], weights: Any, at_once: int, asked: tuple[Any, Any], inputs: Any
) -> list[list[Any]]:
    """For each row, its products with `at_once` vectors of columns, summed over all inputs."""
    before, body, done = (builder.block, builder.append_basic_block("inputs"), builder.append_basic_block("summed"))
    builder.branch(body)
    builder.position_at_end(body)
    k = builder.phi(WORD)
    k.add_incoming(WORD(0), before)
    sums = [[builder.phi(FLOATS) for _ in range(at_once)] for _ in lines]
    line = at(builder, weights, k, 4 * PANEL)
    ahead = builder.add(asked[0], builder.mul(k, asked[1]))
    lanes.prefetch(builder, ahead)
    if at_once == 2:
        lanes.prefetch(builder, builder.add(ahead, WORD(64)))
    held = [lanes.vector(builder, builder.add(line, WORD(lanes.LINE * n)), ir.FloatType()) for n in range(at_once)]
    following = builder.add(k, WORD(1))
    k.add_incoming(following, body)
    added: list[list[Any]] = []
    for row, own in zip(lines, sums, strict=True):
        value = lanes.splat(builder, lanes.number(builder, at(builder, row, k, 4)))
        added.append([lanes.fused(builder, one, value, summed) for one, summed in zip(held, own, strict=True)])
        for summed, following_sum in zip(own, added[-1], strict=True):
            summed.add_incoming(ZEROS, before)
            summed.add_incoming(following_sum, body)
    builder.cbranch(builder.icmp_signed("<", following, inputs), body, done)
    builder.position_at_end(done)
    return added


@intrinsic
def _block(  # noqa: PLR0917
    _typing: Any, count: Any, weights: Any, asked: Any, step: Any, x: Any, x_stride: Any, out: Any, out_stride: Any,
    inputs: Any,
) -> Any:  # fmt: skip
    return types.void(count, weights, asked, step, x, x_stride, out, out_stride, inputs), _generate


@addresses.apart("i" * 9)
def block(  # noqa: PLR0917
    count: int, weights: int, asked: int, step: int, x: int, x_stride: int, out: int, out_stride: int, inputs: int
) -> None:
    """`count` rows, up to MOST, times one panel. Strides in floats; asked, step: what to ask for meanwhile, bytes an input."""
    _block(count, weights, asked, step, x, x_stride, out, out_stride, inputs)


@numba.njit(**_FLAGS)
def through_panel(  # noqa: PLR0917
    held: int, following: int, x: int, out: int, stride: int, rows: int, inputs: int, width: int
) -> None:
    """`rows` rows times one panel, the weights at `held`. following: as many bytes, which will be needed next. x: address
    of [rows, inputs]; out: where the panel's columns begin, `width` of them, in rows that are `stride` floats apart.
    """
    size = inputs * PANEL * 4
    rest = np.empty((MOST if width < PANEL else 0, PANEL), np.float32)
    near = np.intp(rest.ctypes.data)
    blocks, done = (rows + MOST - 1) // MOST, 0
    step = max(1, PANEL * 4 // blocks)
    for number in range(blocks):
        count = (rows - done + blocks - number - 1) // (blocks - number)
        here, asked = x + done * inputs * 4, following + number * (size // blocks)
        if width == PANEL:
            block(count, held, asked, step, here, inputs, out + done * stride * 4, stride, inputs)
        else:
            block(count, held, asked, step, here, inputs, near, PANEL, inputs)
            whole = addresses.floats(out, rows, stride)
            for row in range(count):
                for lane in range(width):
                    whole[done + row, lane] = rest[row, lane]
        done += count


@addresses.apart("i" * 10)
def share(  # noqa: PLR0917
    member: int, members: int, weights: int, x: int, out: int, stride: int, bias: int, rows: int, inputs: int,
    outputs: int,
) -> None:  # fmt: skip
    """One member's part, some of the panels, of x [rows, inputs] times weights, plus the bias, into out [rows, outputs],
    whose rows are `stride` floats apart. All are addresses; bias may be 0.
    """
    panels = (outputs + PANEL - 1) // PANEL
    first, last = panels * member // members, panels * (member + 1) // members
    chunk = max(8, CHUNK_BYTES // (4 * inputs * MOST)) * MOST
    for row in range(0, rows, chunk):
        here, there, count = x + row * inputs * 4, out + row * stride * 4, min(chunk, rows - row)
        for panel in range(first, last):
            held, column = weights + panel * inputs * PANEL * 4, panel * PANEL
            width = min(PANEL, outputs - column)
            through_panel(held, held + inputs * PANEL * 4, here, there + column * 4, stride, count, inputs, width)
    addresses.add_bias(out, stride, bias, rows, first * PANEL, min(outputs, last * PANEL))


@cache
def product() -> Any:
    """The compiled function of `share`, for a team; or for one alone, with 0, 1, 0 before its arguments."""

    @addresses.called(*(numba.intp,) * 11)
    def together(  # noqa: PLR0917
        member: int, members: int, _place: int, weights: int, x: int, out: int, stride: int, bias: int, rows: int,
        inputs: int, outputs: int,
    ) -> None:  # fmt: skip
        share(member, members, weights, x, out, stride, bias, rows, inputs, outputs)

    return together
