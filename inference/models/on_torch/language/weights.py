"""Where weights come from: safetensors files, mapped and read tensor by tensor. Another format is another source."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import torch
from safetensors import safe_open

from inference.errors import Rejected


class Kept(NamedTuple):
    """whole: int8 [outputs, inputs]; scales: float16 or float32 [outputs, groups, 1 or 2]; see `quantised.kept`."""

    bits: int
    whole: torch.Tensor
    scales: torch.Tensor


class WeightSource(Protocol):
    """config: in the form of transformers' config.json. Names are transformers' own."""

    config: dict[str, Any]

    def names(self) -> list[str]: ...

    def get(self, name: str) -> torch.Tensor:
        """The tensor, in the file's dtype (or dequantised). Raises KeyError."""
        ...

    def type_of(self, name: str) -> str:
        """How the file keeps it: "F32", "Q4_1", ... Raises KeyError."""
        ...

    def kept(self, name: str) -> Kept | None:
        """A tensor [outputs, inputs] as the file has quantised it, None for one that cannot be kept so. Raises KeyError."""
        ...


class SafetensorsWeights:
    """All `*.safetensors` of a folder, sharded or not, beside its config.json."""

    def __init__(self, folder: Path) -> None:
        self.config = msgspec.json.decode((folder / "config.json").read_bytes(), type=dict[str, Any])
        generation = folder / "generation_config.json"
        self.generation: dict[str, Any] = (
            msgspec.json.decode(generation.read_bytes(), type=dict[str, Any]) if generation.is_file() else {}
        )
        self._files: dict[str, tuple[Any, str]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            opened: Any = safe_open(path, framework="pt")
            for name in opened.keys():  # noqa: SIM118 (not a mapping)
                self._files[plain_name(name)] = (opened, name)
        if not self._files:
            raise Rejected("the folder holds no weights", remedy="upload the *.safetensors too", check="load")

    def names(self) -> list[str]:
        return list(self._files)

    def get(self, name: str) -> torch.Tensor:
        opened, own = self._files[name]
        found: torch.Tensor = opened.get_tensor(own)
        return found

    def type_of(self, name: str) -> str:
        opened, own = self._files[name]
        return str(opened.get_slice(own).get_dtype())

    def kept(self, name: str) -> Kept | None:
        """Safetensors are never quantised here."""
        return None


def plain_name(name: str) -> str:
    """The name without the wrapping of multimodal models, whose text part alone is served."""
    for prefix in ("language_model.model.", "model.language_model."):
        if name.startswith(prefix):
            return "model." + name.removeprefix(prefix)
    return name.removeprefix("language_model.") if name.startswith("language_model.lm_head") else name
