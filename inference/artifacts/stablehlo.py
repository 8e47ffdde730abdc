"""jax.export blobs: recognised and read as bounded flatbuffers, and the list of operations that a program may use.

The loader parses the StableHLO module with JAX's own bindings, walks it, and asks `check_ops` before anything is
compiled. Export-time safety checks are not repeated by JAX at load, so this list is the only one that holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from inference.artifacts import safetensors
from inference.artifacts.flatbuffer import Broken, Table
from inference.artifacts.paths import shown
from inference.artifacts.window import Data, opened
from inference.errors import Rejected

MAX_BLOB_BYTES = 2 << 30
MAX_TENSORS = 20_000
WEIGHTS = "weights.safetensors"
PLATFORMS = {"cpu": "cpu", "cuda": "cuda", "rocm": "rocm", "tpu": "tpu"}
# Numbers of the fields in JAX's schema (jax/_src/export/serialization.fbs); unchanged since its first version.
_NAME, _IN_TREE, _IN_AVALS, _OUT_AVALS, _PLATFORMS, _ORDERED, _UNORDERED = 1, 2, 3, 5, 9, 10, 11
_DISABLED, _MODULE, _UNIQUE_AVALS, _IN_INDEXES, _OUT_INDEXES = 12, 13, 19, 22, 23
_SHAPE, _DTYPE = 1, 2
_MLIR_MAGIC = b"ML\xefR"
_DIMENSION = re.compile(r"[A-Za-z0-9_ +\-*(),]{1,200}")
_DTYPES = {
    0: "BOOL", 1: "INT8", 2: "INT16", 3: "INT32", 4: "INT64", 5: "UINT8", 6: "UINT16", 7: "UINT32", 8: "UINT64",
    9: "FP16", 10: "FP32", 11: "FP64", 14: "BF16",
}  # fmt: skip
REMEDY = "Export it again with jax.export.export(jax.jit(f), platforms=[...])(...).serialize() and a recent JAX."


@dataclass(frozen=True, slots=True)
class Aval:
    """An argument or a result: datatype as the protocol names it ("" for another), shape with -1 for a symbol."""

    datatype: str
    shape: tuple[int, ...]
    symbols: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Blob:
    """What a blob says of itself, before JAX has seen it."""

    name: str
    platforms: list[str]
    inputs: list[Aval]
    outputs: list[Aval]
    notes: list[str] = field(default_factory=list)


def looks_like(path: Path) -> bool:
    """Whether the file's structure is that of a jax.export blob: an Exported table around an MLIR module."""
    size = path.stat().st_size
    if not 64 <= size <= MAX_BLOB_BYTES:
        return False
    with opened(path) as data:
        return _has_module(data)


def _has_module(data: Data) -> bool:
    try:
        start, count = Table.root(data).vector(_MODULE, 1, MAX_BLOB_BYTES)
        return count > 4 and _starts_mlir(data[start : start + 4])
    except Broken:
        return False


def _starts_mlir(data: Data) -> bool:
    return isinstance(data, memoryview) and data == _MLIR_MAGIC


def read(path: Path) -> Blob:
    """Raises Rejected for a blob that is broken, has side effects, or was exported with safety checks switched off."""
    if path.stat().st_size > MAX_BLOB_BYTES:
        _refuse("the program is larger than 2 GiB", f"Put the parameters into {WEIGHTS} beside the program.")
    try:
        with opened(path) as data:
            return _blob(Table.root(data))
    except Broken:
        _refuse("the jax.export program is damaged or cut short", REMEDY)


def _blob(root: Table) -> Blob:
    module = root.bytes(_MODULE, MAX_BLOB_BYTES)
    if not _starts_mlir(module[:4]):
        _refuse("the program inside is not a portable StableHLO artifact", REMEDY)
    if root.vector(_ORDERED, 4, 1000)[1] or root.vector(_UNORDERED, 4, 1000)[1]:
        _refuse(
            "the program has side effects (such as a callback into Python or a debug print)",
            "Remove jax.debug, io_callback and pure_callback from the function and export it again.",
        )
    if root.vector(_DISABLED, 4, 1000)[1]:
        _refuse("the program was exported with safety checks switched off", "Export without disabled_checks.")
    platforms = root.texts(_PLATFORMS, 16, 32)
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown or not platforms:
        _refuse(f"the program is for the unknown platform {shown((unknown or [''])[0])}", REMEDY)
    uniques = [_aval(table) for table in root.tables(_UNIQUE_AVALS, MAX_TENSORS)]
    return Blob(
        name=root.text(_NAME, 1000),
        platforms=[PLATFORMS[name] for name in platforms],
        inputs=_avals(root, uniques, _IN_INDEXES, _IN_AVALS),
        outputs=_avals(root, uniques, _OUT_INDEXES, _OUT_AVALS),
    )


def _avals(root: Table, uniques: list[Aval], indexes: int, full: int) -> list[Aval]:
    numbers = root.numbers(indexes, "<I", MAX_TENSORS)
    if not numbers:
        return [_aval(table) for table in root.tables(full, MAX_TENSORS)]
    if any(number >= len(uniques) for number in numbers):
        raise Broken
    return [uniques[number] for number in numbers]


def _aval(table: Table) -> Aval:
    texts = table.texts(_SHAPE, 64, 1000)
    for text in texts:
        if not _DIMENSION.fullmatch(text):
            _refuse(f"the program has the impossible dimension {shown(text)}", REMEDY)
    shape = tuple(int(text) if text.isdecimal() and len(text) < 19 else -1 for text in texts)
    symbols = tuple(text for text in texts if not text.isdecimal())
    return Aval(_DTYPES.get(table.number(_DTYPE, "<b"), ""), shape, symbols)


def check_weights(folder: Path) -> list[str]:
    """Notes. Checks the header of weights.safetensors when it lies beside the program. Raises Rejected."""
    path = folder / WEIGHTS
    if not path.is_file():
        return []
    count = len(safetensors.read(path))
    return [f"{count} parameters from {WEIGHTS} are the program's leading arguments."]


def check_ops(op_names: Iterable[str], custom_targets: Iterable[str]) -> None:
    """Whether a module may run: op_names as in "stablehlo.add", custom_targets as its custom calls name them.

    Raises Rejected naming the first operation or target that is not on the list.
    """
    for name in op_names:
        if name not in ALLOWED_OPS:
            _refuse(
                f"the program uses the operation {shown(name)}, which is not allowed",
                "Leave out callbacks, infeed, outfeed and communication between hosts, and export it again.",
            )
    for target in custom_targets:
        if target not in ALLOWED_TARGETS:
            _refuse(
                f"the program calls {shown(target)}, which is not on the list of calls that are safe",
                "Leave out Python callbacks, Pallas kernels and foreign functions, and export it again.",
            )


def _refuse(reason: str, remedy: str) -> NoReturn:
    raise Rejected(reason, remedy=remedy, check="program")


_STABLEHLO = """
abs add after_all and atan2 batch_norm_inference bitcast_convert broadcast broadcast_in_dim case cbrt ceil cholesky
clamp compare complex composite concatenate constant convert convolution cosine count_leading_zeros create_token
custom_call divide dot dot_general dynamic_broadcast_in_dim dynamic_conv dynamic_gather dynamic_iota dynamic_pad
dynamic_reshape dynamic_slice dynamic_update_slice einsum exponential exponential_minus_one fft floor gather
get_dimension_size get_tuple_element if imag iota is_finite log log_plus_one logistic map maximum minimum multiply
negate not optimization_barrier or pad popcnt power real real_dynamic_slice reduce reduce_precision reduce_window
remainder reshape return reverse rng_bit_generator round_nearest_afz round_nearest_even rsqrt scatter select
select_and_scatter set_dimension_size shift_left shift_right_arithmetic shift_right_logical sign sine slice sort sqrt
subtract tan tanh torch_index_select transpose triangular_solve tuple uniform_dequantize uniform_quantize while xor
"""
_CHLO = """
acos acosh asin asin_acos_kernel asinh atan atanh bessel_i1e broadcast_add broadcast_select conj constant cosh digamma
erf erf_inv erfc is_inf is_neg_inf is_pos_inf lgamma next_after polygamma ragged_dot sinh square tan top_k zeta
"""
ALLOWED_OPS = frozenset(
    [f"stablehlo.{name}" for name in _STABLEHLO.split()]
    + [f"chlo.{name}" for name in _CHLO.split()]
    + ["builtin.module", "func.func", "func.return", "func.call", "call", "sdy.mesh", "sdy.sharding_constraint"]
)
_LAPACK = "potrf geqrf getrf gesdd gehrd gees geev trsm gtsv"
ALLOWED_TARGETS = frozenset(
    [f"lapack_{kind}{name}_ffi" for name in _LAPACK.split() for kind in "sdcz"]
    + [
        f"lapack_{name}_ffi"
        for name in ("sorgqr", "dorgqr", "cungqr", "zungqr", "ssyevd", "dsyevd", "cheevd", "zheevd")
    ]
    + [f"lapack_{name}_ffi" for name in ("ssytrd", "dsytrd", "chetrd", "zhetrd")]
    + [f"cusolver_{name}_ffi" for name in ("getrf", "geqrf", "orgqr", "potrf", "syevd", "gesvd", "gesvdj", "sytrd")]
    + ["cu_lu_pivots_to_permutation", "cusparse_gtsv2_ffi", "cu_threefry2x32_ffi"]
    + ["Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape", "annotate_device_placement", "AllocateBuffer"]
    + ["Eigh", "Qr", "ProductOfElementaryHouseholderReflectors", "LuDecomposition", "ApproxTopK"]
    + ["stablehlo.dynamic_approx_top_k", "stablehlo.dynamic_reduce_window", "stablehlo.dynamic_rng_bit_generator"]
    + ["stablehlo.dynamic_top_k", "shape_assertion"]
)
