"""TorchScript (code tier: it can do what locally executed code can).

Its inputs and outputs are declared in the version's settings or in `signature.json`. A declared name says where a
tensor goes, as Triton's users know it: an argument of `forward`, or NAME__INDEX, or else its place in the declaration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from inference.errors import Rejected
from inference.models import batch
from inference.models.entry import declared_signature, entry_file, written_signature
from inference.models.on_torch import tensors

if TYPE_CHECKING:
    from inference.models.contract import Arrays, LoadContext
    from inference.protocol.oip import Signature


def load(context: LoadContext) -> TorchScriptModel:
    """Raises Rejected when the file or its `signature.json` cannot be read."""
    tensors.settle(context)
    declared = declared_signature(context.settings)
    signature = declared or written_signature(context.folder, "a TorchScript program")
    path = entry_file(context.folder, ".pt", ".jit", ".pth", ".torchscript")
    try:
        module = torch.jit.load(  # type: ignore[no-untyped-call]
            str(path), map_location=context.device
        ).eval()
    except Exception as error:
        remedy = "save it with torch.jit.script(model).save(path), or better export it with torch.export"
        raise Rejected("torch cannot load this TorchScript file", remedy=remedy, check="load") from error
    signature = batch.limited(msgspec.structs.replace(signature, platform="pytorch_libtorch"), context.settings)
    places = Places([], []) if declared is None else _places(module, signature)
    return TorchScriptModel(module, signature, context.device, places)


@dataclass(frozen=True, slots=True)
class Places:
    """Names in the order of the program's own inputs and outputs; empty lists for the signature's order."""

    inputs: list[str]
    outputs: list[str]


def _places(module: Any, signature: Signature) -> Places:
    try:
        arguments = [argument.name for argument in module.forward.schema.arguments[1:]]
    except (AttributeError, RuntimeError):
        arguments = []
    inputs = [spec.name for spec in signature.inputs]
    return Places(input_order(inputs, arguments), indexed_order([spec.name for spec in signature.outputs]))


def input_order(names: list[str], arguments: list[str]) -> list[str]:
    """The declared inputs in the order in which forward takes them. Raises Rejected when forward takes fewer."""
    if arguments and len(names) > len(arguments):
        raise Rejected(
            f"{len(names)} inputs are declared, and forward takes {len(arguments)}: {', '.join(arguments)}",
            remedy="declare exactly the arguments of forward",
            check="signature",
        )
    if set(names) <= set(arguments):
        return sorted(names, key=arguments.index)
    return indexed_order(names)


def indexed_order(names: list[str]) -> list[str]:
    """NAME__INDEX by its index where all are so named, each index once from 0 on; else as they are declared."""
    parts = [name.rpartition("__") for name in names]
    if all(mark and digits.isascii() and digits.isdigit() for _, mark, digits in parts):
        found = {int(digits): name for (_, _, digits), name in zip(parts, names, strict=True)}
        if sorted(found) != list(range(len(names))):
            raise Rejected(
                f"the indexes of {', '.join(names)} must be 0 to {len(names) - 1}, each once",
                remedy="name them INPUT__0, INPUT__1, ... in the order of forward's arguments",
                check="signature",
            )
        return [found[index] for index in sorted(found)]
    return list(names)


class TorchScriptModel:
    """Inputs go in by position; outputs come back by key or by position."""

    forgets_inputs = True  # what is read-only is copied for it

    def __init__(self, module: Any, signature: Signature, device: str, places: Places) -> None:
        self._module = module
        self._device = device
        self.signature = signature
        self._datatypes = {spec.name: spec.datatype for spec in signature.inputs}
        self._inputs = places.inputs or [spec.name for spec in signature.inputs]
        self._outputs = places.outputs or [spec.name for spec in signature.outputs]

    def run(self, inputs: Arrays) -> Arrays:
        given = [tensors.to_torch(inputs[name], self._datatypes[name], self._device) for name in self._inputs]
        with torch.inference_mode():
            result = self._module(*given)
        found = list(tensors.named(result))
        if isinstance(result, dict):
            return {name: tensors.to_numpy(tensor) for name, tensor in found}
        return {name: tensors.to_numpy(tensor) for name, (_, tensor) in zip(self._outputs, found, strict=True)}

    def close(self) -> None:
        self._module = None
