"""Language models in torch: our own decoder, driven by config.json, with weights from safetensors or GGUF."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from inference.artifacts.causal import DRAFT
from inference.errors import InvalidInput, Rejected
from inference.models.language import LanguageFacts
from inference.models.on_torch import tensors
from inference.models.on_torch.language.adapters import Adapters
from inference.models.on_torch.language.decoder import Decoder
from inference.models.on_torch.language.spec import DecoderSpec, spec_of
from inference.models.on_torch.language.weights import SafetensorsWeights, WeightSource
from inference.protocol.generation import language_signature
from inference.protocol.settings import GenerationSettings

if TYPE_CHECKING:
    from pathlib import Path

    from inference.artifacts.lora import Adapter
    from inference.models.contract import LoadContext

__all__ = ["TorchLanguageModel", "load", "source_of"]

BITS = {"none": 0, "int8": 8, "int4": 4}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load(context: LoadContext) -> TorchLanguageModel:
    """The language model in the folder: one GGUF file, or config.json with safetensors. Raises Rejected."""
    tensors.settle(context)
    settings = context.settings.generation or GenerationSettings()
    return TorchLanguageModel(source_of(context.folder), settings, context.device)


def source_of(folder: Path) -> WeightSource:
    """Those of a folder, but not of its draft model. Raises Rejected for several GGUF files, or none and no safetensors."""
    files = [path for path in sorted(folder.rglob("*.gguf")) if path.relative_to(folder).parts[0] != DRAFT]
    if not files:
        return SafetensorsWeights(folder)
    if len(files) > 1:
        raise Rejected(
            f"the folder holds {len(files)} GGUF files",
            remedy="upload one of them; join parts with llama-gguf-split --merge first",
            check="load",
        )
    from inference.models.on_torch.gguf_weights import GgufWeights

    return GgufWeights(files[0])


class TorchLanguageModel(Decoder):
    """A decoder with what the engine wants to know of it."""

    def __init__(self, source: WeightSource, settings: GenerationSettings, device: str) -> None:
        spec = spec_of(source.config)
        context = min(settings.max_model_len or spec.context, spec.context)
        super().__init__(
            spec,
            source,
            device=device,
            dtype=_dtype(settings, device),
            context=context,
            bits=BITS[settings.quantization],
        )
        self.signature = language_signature()
        self.facts = _facts(spec, source, context)
        if settings.max_adapters:
            self.adapters = Adapters(
                spec,
                most=settings.max_adapters,
                largest_rank=settings.max_adapter_rank,
                device=device,
                dtype=self.dtype,
            )

    def load_adapter(self, slot: int, folder: Path) -> Adapter:
        """Puts the PEFT adapter in `folder` into a slot, 1 to `max_adapters`, in the place of what was there. Steps name
        it in `Step.adapters` from then on; it may be called from another thread than theirs.

        Raises InvalidInput for a slot that is not there, Rejected for an adapter that does not fit this model.
        """
        if self.adapters is None:
            raise InvalidInput("this model takes no adapters: set generation.max_adapters")
        return self.adapters.load(slot, folder)

    def drop_adapter(self, slot: int) -> None:
        """Empties a slot and gives its memory back. No step may name it any more. Raises InvalidInput as `load_adapter`."""
        if self.adapters is None:
            raise InvalidInput("this model takes no adapters: set generation.max_adapters")
        self.adapters.drop(slot)


def _dtype(settings: GenerationSettings, device: str) -> torch.dtype:
    named = settings.dtype if settings.dtype != "auto" else ("float32" if device == "cpu" else "bfloat16")
    return DTYPES[named]


def _facts(spec: DecoderSpec, source: WeightSource, context: int) -> LanguageFacts:
    generation: Mapping[str, Any] = getattr(source, "generation", {})
    stops: set[int] = set()
    for told in (source.config.get("eos_token_id"), generation.get("eos_token_id")):
        stops |= {told} if type(told) is int else {one for one in told or () if type(one) is int}
    bos = source.config.get("bos_token_id")
    return LanguageFacts(spec.family, spec.vocabulary, context, frozenset(stops), bos if type(bos) is int else None)
