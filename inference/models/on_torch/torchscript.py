"""TorchScript (code tier: it can do what locally executed code can). Its inputs are declared in `signature.json`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import torch

from inference.errors import Rejected
from inference.models import batch
from inference.models.entry import entry_file, written_signature
from inference.models.on_torch import tensors

if TYPE_CHECKING:
    from inference.models.contract import Arrays, LoadContext
    from inference.protocol.oip import Signature


def load(context: LoadContext) -> TorchScriptModel:
    """Raises Rejected when the file or its `signature.json` cannot be read."""
    tensors.settle(context)
    signature = written_signature(context.folder, "a TorchScript program")
    path = entry_file(context.folder, ".pt", ".jit", ".pth", ".torchscript")
    try:
        module = torch.jit.load(  # type: ignore[no-untyped-call]
            str(path), map_location=context.device
        ).eval()
    except Exception as error:
        remedy = "save it with torch.jit.script(model).save(path), or better export it with torch.export"
        raise Rejected("torch cannot load this TorchScript file", remedy=remedy, check="load") from error
    signature = batch.limited(msgspec.structs.replace(signature, platform="pytorch_libtorch"), context.settings)
    return TorchScriptModel(module, signature, context.device)


class TorchScriptModel:
    """Inputs go in by position, in the signature's order; outputs come back by key or by position."""

    def __init__(self, module: Any, signature: Signature, device: str) -> None:
        self._module = module
        self._device = device
        self.signature = signature

    def run(self, inputs: Arrays) -> Arrays:
        given = [tensors.to_torch(inputs[spec.name], spec.datatype, self._device) for spec in self.signature.inputs]
        with torch.inference_mode():
            result = self._module(*given)
        found = list(tensors.named(result))
        if isinstance(result, dict):
            return {name: tensors.to_numpy(tensor) for name, tensor in found}
        names = [spec.name for spec in self.signature.outputs]
        return {name: tensors.to_numpy(tensor) for name, (_, tensor) in zip(names, found, strict=True)}

    def close(self) -> None:
        self._module = None
