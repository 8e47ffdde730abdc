"""torch.export programs (.pt2). Plain `torch.export.load` runs what the file says in four ways, so it is never given
an uploaded file: the file is linted first and a sanitised copy is loaded.
"""

from __future__ import annotations

import operator
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch._ops import OpOverload
from torch.export.passes import move_to_device_pass
from torch.fx.graph import CodeGen

from inference.artifacts import pt2
from inference.errors import Rejected
from inference.models import batch
from inference.models.entry import entry_file
from inference.models.on_torch import compiling, tensors
from inference.protocol.oip import Signature, TensorSpec

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from inference.artifacts.manifest import RuntimeSettings
    from inference.models.contract import Arrays, LoadContext

REMEDY = "export it again with this torch version: torch.export.save(torch.export.export(model.eval(), args), path)"


def load(context: LoadContext) -> ExportedModel:
    """Lint, sanitise, load, move to the device. Raises Rejected."""
    tensors.settle(context)
    program = _program(entry_file(context.folder, ".pt2"))
    if context.device != "cpu":
        program = move_to_device_pass(program, context.device)
    return ExportedModel(program, context.settings, context.device)


def _program(path: Path) -> ExportedProgram:
    with tempfile.TemporaryDirectory(prefix="pt2-") as folder:
        clean = Path(folder) / "clean.pt2"
        pt2.lint(path)
        pt2.sanitised(path, clean)
        try:
            return torch.export.load(clean)
        except Exception as error:
            raise Rejected(f"torch cannot load this program: {_short(error)}", remedy=REMEDY, check="load") from error


class ExportedModel:
    """An exported graph. Positional inputs bear the names that the exported function's parameters had."""

    def __init__(self, program: ExportedProgram, settings: RuntimeSettings, device: str) -> None:
        self._device = device
        self._call = compiling.ready(_flat_forward(program), settings, device)
        self._outputs: list[tuple[str, int]] = []
        self.is_straight = self.forgets_inputs = True
        self.is_own_work = device == "cpu"
        self._only_reads = _only_reads(program)
        # Buffers that a pass changes belong to one pass at a time.
        self.is_shareable = not program.graph_signature.buffers_to_mutate
        self._least_rows = 1
        signature = self._read(program)
        bound = _shared_symbol(program)
        if bound is None:
            self.signature = batch.with_fixed_batch(signature, self._as(signature))
        else:
            self._least_rows, largest = bound
            rows = batch.max_batch(settings, largest)
            buckets = batch.buckets_up_to(settings, rows) if settings.compile != "none" else []
            self.signature = msgspec.structs.replace(signature, max_batch_size=rows, buckets=buckets)

    def run(self, inputs: Arrays) -> Arrays:
        if self._device == "cpu":
            return self._run(inputs)
        with tensors.lane(self._device):
            return self._run(inputs)

    def _run(self, inputs: Arrays) -> Arrays:
        leaves = [self._leaf(inputs[spec.name], spec.datatype) for spec in self.signature.inputs]
        rows = leaves[0].shape[0] if self.signature.max_batch_size else 0
        grown = 0 < rows < self._least_rows
        if grown:
            leaves = [torch.cat([leaf, leaf[-1:].expand(self._least_rows - rows, *leaf.shape[1:])]) for leaf in leaves]
        outputs = self._forward(leaves)
        return {name: array[:rows] for name, array in outputs.items()} if grown else outputs

    def close(self) -> None:
        del self._call

    def _forward(self, leaves: list[torch.Tensor]) -> Arrays:
        with torch.inference_mode():
            results = self._call(*leaves)
            return {name: tensors.to_numpy(results[index]) for name, index in self._outputs}

    def _leaf(self, array: Any, datatype: str) -> torch.Tensor:
        return tensors.to_torch(array, datatype, self._device, only_reads=self._only_reads)

    def _as(self, signature: Signature) -> Any:
        def run(inputs: Arrays) -> Arrays:
            return self._forward([self._leaf(inputs[spec.name], spec.datatype) for spec in signature.inputs])

        return run

    def _read(self, program: ExportedProgram) -> Signature:
        values = _values(program)
        inputs = [_spec(name, values[name], name) for name in program.graph_signature.user_inputs]
        results = [values.get(name) for name in program.graph_signature.user_outputs]
        try:
            shaped = program.call_spec.out_spec.unflatten(results)
            named = list(tensors.named(shaped))
        except TypeError as error:
            raise Rejected(
                str(error), remedy="return a tensor, a tuple or a dict of tensors", check="signature"
            ) from None
        places = {id(value): index for index, value in enumerate(results)}
        self._outputs = [(name, places[id(value)]) for name, value in named]
        outputs = [_spec(name, value, name) for name, value in named]
        return Signature(inputs=inputs, outputs=outputs, platform="torch_export")


def _flat_forward(program: ExportedProgram) -> Any:
    """The program as a function from its flat inputs to the tuple of its flat outputs.

    The usual module sorts nested arguments, checks its guards and runs hooks at every call, which takes longer than a
    small model itself; what may come in is known here from the signature.
    """
    module = program.module(check_guards=False)
    module.graph.set_codegen(CodeGen())
    module.recompile()
    return module.forward


def _only_reads(program: ExportedProgram) -> bool:
    """Whether nothing in the program writes to a tensor that it was given, so that its inputs may be read-only memory."""
    if program.graph_signature.user_inputs_to_mutate:  # written back where the module is made, not in this graph
        return False
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    known = [target for target in called if target is not operator.getitem]
    return all(_is_functional(target) for target in known)


def _is_functional(target: Any) -> bool:
    return isinstance(target, OpOverload) and not target._schema.is_mutable  # noqa: SLF001 (torch has no other word)


def _values(program: ExportedProgram) -> dict[str, Any]:
    return {node.name: node.meta.get("val") for node in program.graph.nodes}


def _spec(name: str, value: Any, told: str) -> TensorSpec:
    if not isinstance(value, torch.Tensor):
        raise Rejected(
            f"the program's input or output {told} is no tensor",
            remedy="let the exported function take and return tensors only",
            check="signature",
        )
    shape = [size if isinstance(size, int) else -1 for size in value.shape]
    return TensorSpec(name, tensors.datatype_of(value.dtype, name), shape)


def _shared_symbol(program: ExportedProgram) -> tuple[int, int | None] | None:
    """(least, largest or None) of the symbol that is the first dimension of every input and output, if there is one."""
    values = _values(program)
    names = [*program.graph_signature.user_inputs, *program.graph_signature.user_outputs]
    symbols = set()
    for name in names:
        shape = values[name].shape
        if not shape or not isinstance(shape[0], torch.SymInt):
            return None
        symbols.add(shape[0].node.expr)
    if len(symbols) != 1:
        return None
    symbol = symbols.pop()
    bounds = program.range_constraints.get(symbol)
    if not symbol.is_symbol or bounds is None:
        return None
    return max(1, _finite(bounds.lower) or 1), _finite(bounds.upper)


def _finite(value: Any) -> int | None:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError, AttributeError):
        return None
    return number if abs(number) < 1 << 31 else None


def _short(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
