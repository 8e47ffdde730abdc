"""A step of the decoder as a program: a table of operations, through which the members of a team walk together.

On the CPU in float32 a step has some two hundred small and large operations. Called one by one, and each with threads of
its own to wake, they would cost more than a small model's arithmetic; so the table is written once, with the addresses of
weights and buffers in it, and a step is one call. Of every operation each member does a part, and all meet at its end.
"""

# mypy: disable-error-code="misc, no-untyped-call, untyped-decorator, assignment, call-arg, var-annotated, unreachable"
from __future__ import annotations

from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from inference.models.on_torch import addresses, products
from inference.models.on_torch.language import between, kernels, packed, vectors
from inference.models.on_torch.language.team import meet

if TYPE_CHECKING:
    from inference.models.on_torch.language.packed import Form

Array = np.ndarray[Any, Any]
_FLAGS: Any = {"nogil": True, "error_model": "numpy"}
MOST_FORMS = 3  # ways in which one model's weights may be kept


class Op(IntEnum):
    """What the fields of a row are, in the order of `walk`'s reading. Addresses, but for widths and flags."""

    NORM = 0  # hidden, added or 0, weight, summed, normed, width, whether of the wanted rows only; number: eps
    PRODUCT = 1  # weights, x, out or 0 for the logits, bias or 0, inputs, outputs, whether of the wanted rows only
    PACKED = 2  # as PRODUCT, then scales, groups; up to MOST_FORMS kinds from here on
    ROTATE = 5  # mixed, cosine, sine, half, keys, values, query norm or 0, key norm or 0, queries; number: eps
    ATTEND = 6  # queries, keys, values, out, window; numbers: scale, softcap
    GATE = 7  # both, out, inner, whether GELU


@numba.njit(**_FLAGS)
def _attend(  # noqa: PLR0917
    op: Array, scale: float, softcap: float, shape: Array, starts: Array, lengths: Array, tables: Array, order: Array,
    many: int, counter: int, scratch: int,
) -> None:  # fmt: skip
    """Tasks are taken as they come: first a task for each query head of a sequence with many new tokens."""
    heads, kv_heads, block, width = shape[0], shape[1], shape[2], shape[3]
    scale, softcap = np.float32(scale), np.float32(softcap)
    tasks = many * heads + (len(order) - many) * kv_heads
    task = vectors.add_up(counter, 1)
    while task < tasks:
        if task < many * heads:
            s, h = order[task // heads], task % heads
            kernels.attend_many(
                op[1], op[2], op[3], op[4], heads, kv_heads, block, width, starts[s], starts[s + 1], lengths[s],
                np.intp(tables.ctypes.data) + s * tables.shape[1] * 4, h, scale, op[5], softcap, scratch,
            )  # fmt: skip
        else:
            rest = task - many * heads
            s, h = order[many + rest // kv_heads], rest % kv_heads
            kernels.attend_few(
                op[1], op[2], op[3], op[4], heads, kv_heads, block, width, starts[s], starts[s + 1], lengths[s],
                np.intp(tables.ctypes.data) + s * tables.shape[1] * 4, h, scale, op[5], softcap, scratch,
            )  # fmt: skip
        task = vectors.add_up(counter, 1)


@cache
def attention() -> Any:
    """The compiled function of attention alone, for a team; see `walk_of`."""
    row = numba.intp[::1]

    @addresses.called(
        numba.intp, numba.intp, numba.intp, row, numba.float64, numba.float64, row, row, row, numba.int32[:, ::1], row,
        numba.intp, row, row,
    )  # fmt: skip
    def attend_together(  # noqa: PLR0917
        member: int, _members: int, _place: int, op: Array, scale: float, softcap: float, shape: Array, starts: Array,
        lengths: Array, tables: Array, order: Array, many: int, counters: Array, scratch: Array,
    ) -> None:  # fmt: skip
        counter = np.intp(counters.ctypes.data)
        _attend(op, scale, softcap, shape, starts, lengths, tables, order, many, counter, scratch[member])

    return attend_together


@numba.njit(**_FLAGS)
def _never(  # noqa: PLR0917
    member: int, members: int, weights: int, scales: int, x: int, out: int, bias: int, rows: int, inputs: int,
    outputs: int, groups: int,
) -> None:  # fmt: skip
    """Instead of a form that the model has not."""


def _multiply_of(forms: tuple[Form, ...]) -> Any:
    """The compiled function for a row of PRODUCT or PACKED."""
    known = [packed.share_of(form) for form in forms]
    one, two, three = known + [_never] * (MOST_FORMS - len(known))

    @numba.njit(**_FLAGS)
    def multiply(member: int, members: int, op: Array, out: int, rows: int) -> None:
        if op[0] == Op.PRODUCT:
            products.share(member, members, op[1], op[2], out, op[6], op[4], rows, op[5], op[6])
        elif op[0] == Op.PACKED:
            one(member, members, op[1], op[8], op[2], out, op[4], rows, op[5], op[6], op[9])
        elif op[0] == Op.PACKED + 1:
            two(member, members, op[1], op[8], op[2], out, op[4], rows, op[5], op[6], op[9])
        else:
            three(member, members, op[1], op[8], op[2], out, op[4], rows, op[5], op[6], op[9])

    return multiply


@cache
def walk_of(forms: tuple[Form, ...]) -> Any:
    """The compiled function for programs whose weights are float32 or of these forms, up to MOST_FORMS."""
    multiply, row_ = _multiply_of(forms), numba.intp[::1]

    @addresses.called(
        numba.intp, numba.intp, numba.intp, numba.intp[:, ::1], numba.float64[:, ::1], row_, row_, row_, row_,
        row_, row_, numba.int32[:, ::1], row_, numba.intp, row_, numba.intp, row_, form=forms,
    )  # fmt: skip
    def walk(  # noqa: PLR0917
        member: int, members: int, place: int, ops: Array, numbers: Array, shape: Array, wanted: Array, positions: Array,
        slots: Array, starts: Array, lengths: Array, tables: Array, order: Array, many: int, counters: Array,
        logits: int, scratch: Array,
    ) -> None:  # fmt: skip
        """shape: heads, heads of keys, tokens of a block, head_width. order: sequences, the `many` with many new tokens
        first. scratch: an address for each member. counters: a 0 for each operation.
        """
        for index in range(len(ops)):
            op, kind = ops[index], ops[index, 0]
            of_wanted = kind < Op.ROTATE and op[7] != 0
            rows = len(wanted) if of_wanted else len(positions)
            first, last = rows * member // members, rows * (member + 1) // members
            if kind == Op.NORM:
                chosen, eps = np.intp(wanted.ctypes.data) if of_wanted else 0, np.float32(numbers[index, 0])
                between.add_and_norm(op[1], op[2], op[3], op[4], op[5], op[6], chosen, first, last, eps)
            elif kind < Op.ROTATE:
                multiply(member, members, op, op[3] or logits, rows)
            elif kind == Op.ROTATE:
                between.rotate_and_store(
                    op[1], op[2], op[3], op[4], op[5], op[6], op[7], op[8], op[9], np.intp(positions.ctypes.data),
                    np.intp(slots.ctypes.data), first, last, shape[0], shape[1], shape[2], shape[3],
                    np.float32(numbers[index, 0]),
                )  # fmt: skip
            elif kind == Op.ATTEND:
                counter = np.intp(counters.ctypes.data) + index * 8
                _attend(
                    op, numbers[index, 0], numbers[index, 1], shape, starts, lengths, tables, order, many, counter,
                    scratch[member],
                )  # fmt: skip
            else:
                between.gated(op[1], op[2], op[3], op[4], first, last, scratch[member])
            meet(members, place)

    return walk
