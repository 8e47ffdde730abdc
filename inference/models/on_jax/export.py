"""jax.export programs. Checked against the allow-list first; every batch size is compiled before it is served.

Parameters are constants of the program, or `weights.safetensors` beside it, given as its leading arguments in the
order of `jax.json`, which also names inputs and outputs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import msgspec
import numpy as np
from jax import export
from safetensors import safe_open

from inference.artifacts import stablehlo
from inference.errors import Rejected
from inference.models import batch
from inference.models.entry import entry_file
from inference.models.on_jax import bounds
from inference.models.on_jax.check import check
from inference.protocol.oip import DATATYPES, Signature, TensorSpec

if TYPE_CHECKING:
    from inference.artifacts.manifest import RuntimeSettings
    from inference.models.contract import Arrays, LoadContext

PLAN_FILE = "jax.json"
WEIGHTS_FILE = "weights.safetensors"
MAX_EXECUTABLES = 256  # a free dimension that is no batch would fill the memory with programs
PLATFORMS = {"cpu": "cpu", "cuda": "cuda", "gpu": "cuda", "tpu": "tpu"}
REMEDY = "write it with jax.export.export(jax.jit(f), platforms=['cpu', 'cuda', 'tpu'])(...).serialize()"


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`jax.json`: the program's file, the weights given before the inputs, and the names of inputs and outputs."""

    program: str = ""
    weights: list[str] = msgspec.field(default_factory=list)
    inputs: list[str] = msgspec.field(default_factory=list)
    outputs: list[str] = msgspec.field(default_factory=list)


def load(context: LoadContext) -> JaxModel:
    """Deserialise, check, put the weights on the device. Raises Rejected before anything is compiled."""
    plan = _plan(context.folder)
    exported = _deserialised(context.folder, plan)
    assertions = check(exported)
    platforms = [PLATFORMS[name] for name in exported.platforms if name in PLATFORMS]
    kind = context.device.split(":")[0]
    if kind not in platforms:
        raise Rejected(
            f"the program was exported for {', '.join(platforms) or 'no platform that is served here'}, not {kind}",
            remedy=f"export it with platforms=[..., '{kind}'], or deploy it on another device",
            check="load",
        )
    if any(np.dtype(aval.dtype).itemsize == 8 for aval in exported.in_avals):
        jax.config.update("jax_enable_x64", True)  # type: ignore[no-untyped-call]
    device = _device(context.device)
    weights = _weights(context.folder / WEIGHTS_FILE, plan.weights, device)
    signature = _signature(exported, plan, platforms)
    return JaxModel(exported, signature, weights, device, settings=context.settings, assertions=assertions)


class JaxModel:
    """One executable per shape of inputs. `compiles` counts them; it stands still once every bucket is warm."""

    is_shareable = True
    forgets_inputs = True

    def __init__(
        self,
        exported: Any,
        signature: Signature,
        weights: list[Any],
        device: Any,
        *,
        settings: RuntimeSettings,
        assertions: list[str],
    ) -> None:
        self.compiles = 0
        self._device = device
        self._weights = weights
        self._in_tree = exported.in_tree
        self._call = jax.jit(exported.call)
        self._executables: dict[tuple[tuple[int, ...], ...], Any] = {}
        self._dtypes = [aval.dtype for aval in exported.in_avals[len(weights) :]]
        self.signature = signature
        if _is_symbolic_batch(exported, len(weights)):
            symbol = str(exported.in_avals[len(weights)].shape[0])
            buckets = bounds.read(assertions, symbol).buckets(settings)
            self.signature = msgspec.structs.replace(signature, max_batch_size=buckets[-1], buckets=buckets)
        else:
            self.signature = batch.with_fixed_batch(signature, self.run)

    def run(self, inputs: Arrays) -> Arrays:
        arrays = [
            inputs[spec.name].view(dtype) if spec.datatype == "BF16" else inputs[spec.name]
            for spec, dtype in zip(self.signature.inputs, self._dtypes, strict=True)
        ]
        leaves = [*self._weights, *(jax.device_put(array, self._device) for array in arrays)]
        args, kwargs = jax.tree.unflatten(self._in_tree, leaves)
        result = self._executable(arrays, args, kwargs)(*args, **kwargs)
        outputs = jax.device_get(jax.tree.leaves(result))
        return {spec.name: _host(array) for spec, array in zip(self.signature.outputs, outputs, strict=True)}

    @property
    def device_memory_bytes(self) -> int:
        """What JAX holds of its device; 0 where it does not count (the CPU)."""
        return int((self._device.memory_stats() or {}).get("bytes_in_use", 0))

    def close(self) -> None:
        self._executables.clear()
        self._weights.clear()

    def _executable(self, arrays: list[Any], args: Any, kwargs: Any) -> Any:
        key = tuple(array.shape for array in arrays)
        found = self._executables.pop(key, None)
        if found is None:
            self.compiles += 1
            found = self._call.lower(*args, **kwargs).compile()
        self._executables[key] = found  # at the end: the least recently used stands first
        if len(self._executables) > MAX_EXECUTABLES:
            del self._executables[next(iter(self._executables))]
        return found


def _plan(folder: Path) -> Plan:
    path = folder / PLAN_FILE
    if not path.is_file():
        return Plan()
    try:
        return msgspec.json.decode(path.read_bytes(), type=Plan)
    except msgspec.MsgspecError as error:
        remedy = 'write it like {"program": "model.jaxexport", "weights": [], "inputs": ["x"], "outputs": ["y"]}'
        raise Rejected(f"{PLAN_FILE}: {error}", remedy=remedy, check="load") from error


def _deserialised(folder: Path, plan: Plan) -> Any:
    if plan.program.startswith("/") or ".." in Path(plan.program).parts:
        raise Rejected(f"{PLAN_FILE} names a program outside the artifact", check="load")
    path = folder / plan.program if plan.program else entry_file(folder, ".jaxexport", ".jax", ".stablehlo")
    stablehlo.read(path)
    try:
        return export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:
        raise Rejected("jax cannot read this program", remedy=REMEDY, check="load") from error


def _device(name: str) -> Any:
    kind, _, index = name.partition(":")
    return jax.devices(kind)[int(index or 0)]


def _weights(path: Path, names: list[str], device: Any) -> list[Any]:
    if not names:
        return []
    try:
        with safe_open(path, framework="numpy") as held:
            return [jax.device_put(held.get_tensor(name), device) for name in names]
    except Exception as error:
        remedy = f"put every tensor that {PLAN_FILE} names into {WEIGHTS_FILE}"
        raise Rejected(f"{WEIGHTS_FILE} does not hold the weights: {error}", remedy=remedy, check="load") from error


def _signature(exported: Any, plan: Plan, platforms: list[str]) -> Signature:
    given = exported.in_avals[len(plan.weights) :]
    inputs = plan.inputs or _leaf_names(exported.in_tree, len(exported.in_avals), "input")[len(plan.weights) :]
    outputs = plan.outputs or _leaf_names(exported.out_tree, len(exported.out_avals), "output")
    return Signature(
        inputs=_specs(inputs, given, "input"),
        outputs=_specs(outputs, exported.out_avals, "output"),
        platforms=platforms,
        platform="jax_export",
    )


def _specs(names: list[str], avals: Any, what: str) -> list[TensorSpec]:
    if len(names) != len(avals) or len(set(names)) != len(names) or not names:
        raise Rejected(
            f"the program has {len(avals)} {what}s, {PLAN_FILE} names {len(names)}",
            remedy=f"name every {what} once in {PLAN_FILE}",
            check="signature",
        )
    return [_spec(name, aval) for name, aval in zip(names, avals, strict=True)]


def _spec(name: str, aval: Any) -> TensorSpec:
    datatypes = {kind: datatype for datatype, (_, kind) in DATATYPES.items() if kind} | {"bfloat16": "BF16"}
    datatype = datatypes.get(str(aval.dtype))
    if datatype is None:
        raise Rejected(
            f"{name} is {aval.dtype}, which the inference protocol cannot carry",
            remedy="cast it inside the function and export again",
            check="signature",
        )
    return TensorSpec(name, datatype, [size if isinstance(size, int) else -1 for size in aval.shape])


def _leaf_names(tree: Any, count: int, what: str) -> list[str]:
    """Names by keys where the leaf has one that is unique ({"image": x} -> image), else input_0, input_1, ..."""
    paths, _ = jax.tree_util.tree_flatten_with_path(jax.tree.unflatten(tree, list(range(count))))
    found = [
        str(getattr(path[-1], "key", f"{what}_{index}")) if path else f"{what}_0"
        for index, (path, _) in enumerate(paths)
    ]
    plain = [f"{what}_{index}" for index in range(count)]
    return found if len(set(found)) == count and not any(name.isdigit() for name in found) else plain


def _is_symbolic_batch(exported: Any, skip: int) -> bool:
    """Whether one bare symbol is the first dimension of every input and output."""
    leading = {str(aval.shape[0]) if aval.shape else "" for aval in (*exported.in_avals[skip:], *exported.out_avals)}
    return len(leading) == 1 and leading.pop().isidentifier()


def _host(array: Any) -> np.ndarray[Any, Any]:
    host = np.asarray(array)
    return host.view("<u2") if host.dtype.name == "bfloat16" else host
