"""torch pickle -> safetensors. Runs in the sandboxed validation child only; the pickle itself is never served.

`weights_only=True` refuses foreign globals, yet lets sparse tensors with unchecked indices through: so only dense
strided tensors are taken over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inference.errors import Rejected

if TYPE_CHECKING:
    from pathlib import Path

REMEDY = (
    "save a plain state dict of dense tensors: safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
)
WRAPPERS = ("state_dict", "model_state_dict", "model")
MAX_TENSORS = 20_000
GROWTH_LIMIT = 4  # tied weights are written once each; an expanded scalar would be written without end


def to_safetensors(source: Path, target: Path) -> None:
    """Writes the tensors of the torch pickle `source` to `target`. Tensors that share storage are written each.

    Raises Rejected for anything but a (possibly wrapped) mapping of names to dense strided tensors.
    """
    from safetensors.torch import save_file

    state = {name: _dense(name, tensor) for name, tensor in _state(source).items()}
    if sum(tensor.nbytes for tensor in state.values()) > GROWTH_LIMIT * max(source.stat().st_size, 1 << 20):
        raise _rejected("its tensors are far larger than the file")
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, target, metadata={"format": "pt"})


def _state(source: Path) -> dict[str, Any]:
    import torch

    try:
        found = torch.load(source, map_location="cpu", weights_only=True, mmap=_is_zip(source))
    except Exception as error:
        raise _rejected("torch's weights-only reader refuses this file") from error
    for key in WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found or not all(isinstance(key, str) for key in found):
        raise _rejected("the file holds no mapping of names to tensors")
    if len(found) > MAX_TENSORS:
        raise _rejected(f"the file holds {len(found)} tensors; {MAX_TENSORS} are the limit")
    return found


def _is_zip(source: Path) -> bool:
    with source.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"  # only the zip form can be mapped into memory


def _dense(name: str, tensor: Any) -> Any:
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise _rejected(f"{name} is a {type(tensor).__name__}, not a tensor")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise _rejected(f"{name} is not a dense tensor")
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    held = tensor.untyped_storage().nbytes() // max(1, tensor.element_size())
    if tensor.numel() and (reach < 0 or tensor.storage_offset() + reach >= held):
        raise _rejected(f"{name} reaches beyond its storage")
    return tensor.detach()


def _rejected(reason: str) -> Rejected:
    return Rejected(reason, remedy=REMEDY, check="convert")
