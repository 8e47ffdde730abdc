"""Language models in torch: our own decoder, driven by config.json, with weights from safetensors or GGUF; and for
families that it does not know, transformers' classes over our blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from inference.artifacts.causal import DRAFT
from inference.errors import InvalidInput, Rejected
from inference.models.language import LanguageFacts
from inference.models.on_torch import tensors
from inference.models.on_torch.language import attention
from inference.models.on_torch.language.adapters import Adapters
from inference.models.on_torch.language.decoder import KEEP, Decoder
from inference.models.on_torch.language.spec import DecoderSpec, knows, spec_of
from inference.models.on_torch.language.weights import SafetensorsWeights, WeightSource
from inference.protocol.generation import language_signature
from inference.protocol.settings import GenerationSettings

if TYPE_CHECKING:
    from pathlib import Path

    from inference.artifacts.lora import Adapter
    from inference.models.contract import LoadContext
    from inference.models.language import LanguageModel

__all__ = ["TorchLanguageModel", "load", "source_of", "through_transformers"]

BITS = {"none": 0, "int8": 8, "int4": 4, "gguf": KEEP}
FP8_CAPABILITY = (8, 9)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load(context: LoadContext) -> LanguageModel:
    """The language model in the folder: one GGUF file, or config.json with safetensors, by our own decoder where that
    knows its family, else through transformers. Raises Rejected.
    """
    tensors.settle(context)
    settings = context.settings.generation or GenerationSettings()
    source = source_of(context.folder)
    if knows(source.config):
        return TorchLanguageModel(source, settings, context.device)
    return through_transformers(context.folder, settings, context.device)


def through_transformers(folder: Path, settings: GenerationSettings, device: str) -> LanguageModel:
    """The model in `folder` by its class of transformers. Raises Rejected for it, and for settings it cannot keep."""
    own = {
        "quantization": settings.quantization != "none",
        "max_adapters": settings.max_adapters,
        "kv_cache_dtype": settings.kv_cache_dtype not in {"auto", settings.dtype},
        "cuda_graphs": settings.cuda_graphs,
    }
    for name, is_set in own.items():
        if is_set:
            raise Rejected(
                f"generation.{name} is for families that our own decoder runs; this one goes through transformers",
                remedy=f"upload it without generation.{name}",
                check="load",
            )
    from inference.models.on_torch.language.transformers_model import TransformersModel

    return TransformersModel(folder, device=device, dtype=_dtype(settings, device), context=settings.max_model_len)


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
        if settings.quantization == "gguf" and isinstance(source, SafetensorsWeights):
            raise Rejected(
                "generation.quantization gguf keeps the quantised weights of a GGUF file, and this is a folder",
                remedy="set it to int8, int4 or none, or upload a GGUF file",
                check="load",
            )
        context = min(settings.max_model_len or spec.context, spec.context)
        super().__init__(
            spec,
            source,
            device=device,
            dtype=_dtype(settings, device),
            context=context,
            bits=BITS[settings.quantization],
            kept=_kept_dtype(settings, device),
            graphs=_graphs(settings, device),
        )
        self.signature = language_signature()
        self.facts = _facts(spec, source, context, self.notes)
        if settings.max_adapters:
            self.adapters = Adapters(
                spec,
                most=settings.max_adapters,
                largest_rank=settings.max_adapter_rank,
                device=device,
                dtype=self.dtype,
            )

    @property
    def adapters_bytes(self) -> int:
        """What the adapters that this version has room for may take in all."""
        return self.adapters.most_bytes if self.adapters is not None else 0

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


def _kept_dtype(settings: GenerationSettings, device: str) -> torch.dtype:
    """Of keys and values. Raises Rejected for fp8 on a device that has it not."""
    if settings.kv_cache_dtype != "fp8":
        return DTYPES[settings.kv_cache_dtype] if settings.kv_cache_dtype != "auto" else _dtype(settings, device)
    if not device.startswith("cuda") or torch.cuda.get_device_capability() < FP8_CAPABILITY:
        raise Rejected(
            f"generation.kv_cache_dtype fp8 needs a GPU that has float8 (compute capability 8.9 or more), and this is {device}",
            remedy="set kv_cache_dtype to auto or bfloat16, or deploy on an Ada, Hopper or newer GPU",
            check="load",
        )
    return attention.FP8


def _graphs(settings: GenerationSettings, device: str) -> int:
    """The largest step of decodes that is recorded, 0 for none. Raises Rejected for graphs without CUDA."""
    if settings.cuda_graphs and not device.startswith("cuda"):
        raise Rejected(
            f"generation.cuda_graphs needs a CUDA GPU, and this is {device}",
            remedy="leave cuda_graphs out, or deploy on a GPU",
            check="load",
        )
    return settings.max_num_seqs if settings.cuda_graphs else 0


def _facts(spec: DecoderSpec, source: WeightSource, context: int, notes: list[str]) -> LanguageFacts:
    generation: Mapping[str, Any] = getattr(source, "generation", {})
    stops: set[int] = set()
    for told in (source.config.get("eos_token_id"), generation.get("eos_token_id")):
        stops |= {told} if type(told) is int else {one for one in told or () if type(one) is int}
    bos = source.config.get("bos_token_id")
    bos = bos if type(bos) is int else None
    return LanguageFacts(spec.family, spec.vocabulary, context, frozenset(stops), bos, notes=notes)
