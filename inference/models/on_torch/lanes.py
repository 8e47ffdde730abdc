"""Vectors of 16 floats in LLVM's own terms, for loops that numba would make half as wide as these processors are, and that
keep sums in registers. LLVM makes of sixteen lanes what the machine has: one register of AVX-512, two of AVX, four of NEON.
Addresses are whole numbers of bytes.
"""

# mypy: disable-error-code="no-untyped-call, no-any-return, import-untyped"
from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils

LANES = 16
LINE = 4 * LANES  # bytes of one vector
PANEL = 2 * LANES  # outputs whose weights lie together; as in language.panels, which needs no compiler
FLOATS = ir.VectorType(ir.FloatType(), LANES)
INTS = ir.VectorType(ir.IntType(32), LANES)
WORD = ir.IntType(64)
ZEROS = ir.Constant(FLOATS, [0.0] * LANES)


@cache
def is_wide() -> bool:
    """Whether one register holds all 16, and there are 32 of them (AVX-512)."""
    return bool(binding.get_host_cpu_features().get("avx512f"))


def halves(rows: int) -> int:
    """How many of a panel's two vectors go at once through a loop that has sums for `rows` rows of each.

    The sums are to stay in registers: of AVX-512's 32 both vectors take one each, of AVX's 16 they take two each.
    """
    return 2 if is_wide() or rows <= 2 else 1


def vector(builder: Any, address: Any, element: Any = None) -> Any:
    """16 elements of memory, floats where nothing else is said."""
    kind = ir.VectorType(element, LANES) if element is not None else FLOATS
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


def store(builder: Any, value: Any, address: Any) -> None:
    """16 floats into memory."""
    builder.store(value, builder.inttoptr(address, FLOATS.as_pointer()), align=4)


def number(builder: Any, address: Any) -> Any:
    """One float of memory."""
    return builder.load(builder.inttoptr(address, ir.FloatType().as_pointer()))


def splat(builder: Any, value: Any) -> Any:
    """The same float 16 times."""
    one = builder.insert_element(ir.Constant(FLOATS, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, ir.Constant(FLOATS, ir.Undefined), ir.Constant(INTS, [0] * LANES))


def fused(builder: Any, one: Any, two: Any, added: Any) -> Any:
    """One * two + added, rounded once."""
    kind = ir.FunctionType(FLOATS, [FLOATS] * 3)
    return builder.call(
        cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32"), [one, two, added]
    )


def prefetch(builder: Any, address: Any) -> None:
    """Asks for a line that will be needed; beyond the array it is no error."""
    pointer, whole = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [pointer, whole, whole, whole])
    ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(ask, [builder.inttoptr(address, pointer), whole(0), whole(3), whole(1)])


def at(builder: Any, base: Any, index: Any, size: int) -> Any:
    """The address of element `index` of those of `size` bytes."""
    return builder.add(base, builder.mul(index, WORD(size)))
