"""Which operators a .pt2 graph may call: the ATen list, Python's operators on sizes, and a few that hold graphs."""

from __future__ import annotations

import re

from inference.artifacts.aten import OPERATORS

_ATEN = re.compile(r"torch\.ops\.aten\.([A-Za-z_][A-Za-z0-9_]*)\.([A-Za-z_][A-Za-z0-9_]*)")
_OPERATOR = {
    f"_operator.{name}"
    for name in (
        "add", "and_", "eq", "floordiv", "ge", "getitem", "gt", "le", "lt", "mod", "mul", "ne", "neg", "not_", "or_",
        "pos", "pow", "sub", "truediv",
    )
}  # fmt: skip
_MATH = {"math.ceil", "math.floor", "math.sqrt", "math.trunc"}
_SYM = {
    f"torch.{name}"
    for name in ("sym_float", "sym_int", "sym_ite", "sym_max", "sym_min", "sym_not", "sym_sqrt", "sym_sum", "_sym_sqrt")
}
_HIGHER = {
    f"torch.ops.higher_order.{name}"
    for name in ("cond", "map_impl", "while_loop", "wrap_with_autocast", "wrap_with_set_grad_enabled")
}
_PRIMS = {
    f"torch.ops.prims.{name}.default"
    for name in ("broadcast_in_dim", "collapse_view", "convert_element_type", "iota", "split_dim", "squeeze", "var")
}


def is_allowed(target: str) -> bool:
    """Whether a node may call `target`, as torch writes it: "torch.ops.aten.add.Tensor", "_operator.mul", ..."""
    found = _ATEN.fullmatch(target)
    if not found:
        return target in _OPERATOR or target in _MATH or target in _SYM or target in _HIGHER or target in _PRIMS
    name, overload = found.groups()
    return name in OPERATORS and "__" not in overload and overload != "out" and not overload.endswith("_out")
