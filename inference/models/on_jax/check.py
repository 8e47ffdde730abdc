"""What a jax.export blob may contain, checked before any of it is compiled.

jax repeats none of its export-time safety checks when it loads: a module edited to call the Python-callback target
ends in a segmentation fault. So the module is walked operation by operation against an allow-list.
"""

from __future__ import annotations

from typing import Any

from jax.extend.mlir import deserialize_portable_artifact
from jaxlib.mlir import ir

from inference.errors import Rejected

DIALECTS = frozenset({"builtin", "func", "stablehlo", "chlo", "sdy"})
# Operations of those dialects that reach outside the computation, or wait for somebody who is not there.
REFUSED_OPERATIONS = frozenset(
    f"stablehlo.{name}"
    for name in (
        "infeed", "outfeed", "send", "recv", "create_token", "after_all", "all_gather", "all_reduce", "all_to_all",
        "collective_broadcast", "collective_permute", "cross-replica-sum", "reduce_scatter", "partition_id", "replica_id",
        "async_start", "async_done",
    )
)  # fmt: skip
# Targets that jax guarantees to keep (jax.export's compatibility list), without those whose payload is itself a
# program (tpu_custom_call, mosaic_gpu_v2, tf.call_tf_function).
_ANY_KIND = ("getrf", "potrf", "geqrf", "gesdd", "geev", "gees", "gehrd", "trsm", "gtsv")
_REAL, _COMPLEX = ("orgqr", "syevd", "sytrd"), ("ungqr", "heevd", "hetrd")
_LAPACK = [
    *(f"{kind}{name}" for kind in "sdcz" for name in _ANY_KIND),
    *(f"{kind}{name}" for kind in "sd" for name in _REAL),
    *(f"{kind}{name}" for kind in "cz" for name in _COMPLEX),
]
_SOLVERS = ("getrf", "geqrf", "orgqr", "syevd", "gesvd", "gesvdj", "potrf", "sytrd")
CUSTOM_CALL_TARGETS = frozenset(
    {f"lapack_{name}_ffi" for name in _LAPACK}
    | {f"{library}_{name}_ffi" for library in ("cusolver", "hipsolver") for name in _SOLVERS}
    | {
        "ApproxTopK", "Eigh", "LuDecomposition", "ProductOfElementaryHouseholderReflectors", "Qr", "Sharding",
        "SPMDFullToShardShape", "SPMDShardToFullShape", "AllocateBuffer", "annotate_device_placement",
        "cu_lu_pivots_to_permutation", "hip_lu_pivots_to_permutation", "cu_threefry2x32_ffi", "hip_threefry2x32_ffi",
        "cusparse_gtsv2_ffi", "hipsolver_gesdd_ffi", "shape_assertion", "stablehlo.dynamic_approx_top_k", "stablehlo.dynamic_reduce_window",
        "stablehlo.dynamic_rng_bit_generator", "stablehlo.dynamic_top_k",
    }
)  # fmt: skip
REMEDY = "export a function without callbacks, FFI calls or custom kernels, and with jax's safety checks left on"


def check(exported: Any) -> None:
    """Raises Rejected when the exported program holds anything beyond the allow-list. Runs nothing of it."""
    if exported.nr_devices != 1:
        raise _rejected(f"the program is for {exported.nr_devices} devices; a replica has one")
    if exported.ordered_effects or exported.unordered_effects:
        raise _rejected("the program has side effects")
    check_module(exported.mlir_module_serialized)


def check_module(serialized: bytes) -> None:
    """The same for a portable StableHLO module by itself."""
    refusals: list[str] = []

    def look(operation: Any) -> Any:
        refusal = _refusal(operation)
        if refusal:
            refusals.append(refusal)
        return ir.WalkResult.INTERRUPT if refusal else ir.WalkResult.ADVANCE

    with ir.Context():
        try:
            module = deserialize_portable_artifact(serialized)
        except Exception as error:
            raise _rejected("the StableHLO module cannot be read") from error
        module.operation.walk(look)
    if refusals:
        raise _rejected(refusals[0])


def _refusal(operation: Any) -> str:
    name = str(operation.name)
    if name.split(".", 1)[0] not in DIALECTS or name in REFUSED_OPERATIONS:
        return f"the operation {name} is not allowed"
    if name != "stablehlo.custom_call":
        return ""
    target = ir.StringAttr(operation.attributes["call_target_name"]).value
    return "" if target in CUSTOM_CALL_TARGETS else f"the call of {str(target)[:80]!r} is not allowed"


def _rejected(reason: str) -> Rejected:
    return Rejected(reason, remedy=REMEDY, check="allow-list")
