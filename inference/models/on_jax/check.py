"""Walks the StableHLO module of a jax.export program before any of it is compiled, against the list of artifacts.

jax repeats none of its export-time safety checks when it loads: a module edited to call the Python-callback target
ends in a segmentation fault. Parsing is MLIR's own, in this sandboxed process; no operation is ever run.
"""

from __future__ import annotations

from typing import Any

from jax.extend.mlir import deserialize_portable_artifact
from jaxlib.mlir import ir

from inference.artifacts.stablehlo import REMEDY, check_ops
from inference.errors import Rejected

CUSTOM_CALL = "stablehlo.custom_call"
SHAPE_ASSERTION = "shape_assertion"
MAX_ASSERTIONS = 256


def check(exported: Any) -> list[str]:
    """Raises Rejected when the exported program holds anything beyond the allow-list. Runs nothing of it.

    Answers the messages of its shape assertions: the only place where bounds of symbolic dimensions are kept.
    """
    if exported.nr_devices != 1:
        raise _rejected(f"the program is for {exported.nr_devices} devices; a replica has one")
    if exported.ordered_effects or exported.unordered_effects:
        raise _rejected("the program has side effects")
    return check_module(exported.mlir_module_serialized)


def check_module(serialized: bytes) -> list[str]:
    """The same for a portable StableHLO module by itself; operations in the bodies of others included."""
    names: set[str] = set()
    targets: set[str] = set()
    assertions: list[str] = []

    def look(operation: Any) -> Any:
        names.add(str(operation.name))
        if operation.name == CUSTOM_CALL:
            target = ir.StringAttr(operation.attributes["call_target_name"]).value
            targets.add(target)
            if (
                target == SHAPE_ASSERTION
                and "error_message" in operation.attributes
                and len(assertions) < MAX_ASSERTIONS
            ):
                assertions.append(ir.StringAttr(operation.attributes["error_message"]).value)
        return ir.WalkResult.ADVANCE

    with ir.Context():
        try:
            module = deserialize_portable_artifact(serialized)
        except Exception as error:
            raise _rejected("the StableHLO module cannot be read") from error
        module.operation.walk(look)
    check_ops(sorted(names), sorted(targets))
    return assertions


def _rejected(reason: str) -> Rejected:
    return Rejected(reason, remedy=REMEDY, check="program")
