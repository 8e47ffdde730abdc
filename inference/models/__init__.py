"""The model contract and the catalog (format -> loader). A framework is imported only inside its own sub-room."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import msgspec

from inference.artifacts.manifest import Format
from inference.errors import Rejected
from inference.models.contract import LoadContext, Model
from inference.models.lengths import bucketed

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LOADERS", "LoadContext", "Model", "load"]

LANGUAGE = frozenset({Format.HF_DECODER, Format.GGUF})
LOOKS_FOR_INPUTS = frozenset({Format.PYTHON, Format.TRITON_PYTHON})
LOADERS: dict[Format, str] = {
    Format.ECHO: "inference.models.echo",
    Format.TORCH_EXPORT: "inference.models.on_torch.export",
    Format.TORCHSCRIPT: "inference.models.on_torch.torchscript",
    Format.HF_ENCODER: "inference.models.on_torch.hf_encoder",
    Format.HF_DECODER: "inference.models.on_torch.language",
    Format.GGUF: "inference.models.on_torch.language",
    Format.JAX_EXPORT: "inference.models.on_jax.export",
    Format.ONNX: "inference.models.on_onnx.session",
    Format.PYTHON: "inference.models.python_package",
    Format.TRITON_PYTHON: "inference.models.triton_python.loader",
}


def load(format: str, context: LoadContext) -> Model:  # noqa: A002 (the field's own word)
    """The model in `context.folder`, on its device, ready for its warm-up.

    Raises Rejected for what cannot be served, with a reason and a remedy, before anything of it runs.
    """
    from inference.models.shaped import shaped

    try:
        room = LOADERS[Format(format)]
    except (ValueError, KeyError):
        raise Rejected(
            f"the format {format!r} cannot be served as it is",
            remedy="export it with torch.export, jax.export or ONNX, or convert its weights to safetensors",
            check="load",
        ) from None
    settings = context.settings
    if settings.generation is not None and format not in LANGUAGE:
        raise Rejected(
            f"the settings `generation` are for language models, and this is {format}",
            remedy="upload it without generation",
            check="load",
        )
    if settings.compile != "none" and format != Format.TORCH_EXPORT:
        raise Rejected(
            f"compile={settings.compile} is for torch.export programs, and this is {format}",
            remedy="upload it without compile; JAX programs are always compiled",
            check="load",
        )
    loader = cast("Callable[[LoadContext], Model]", importlib.import_module(room).load)
    if format in LANGUAGE:
        return loader(context)
    model = shaped(_as_clients_see_it(loader, context), context)
    optional = [spec.name for spec in model.signature.inputs if spec.optional]
    if optional and format not in LOOKS_FOR_INPUTS:
        raise Rejected(
            f"inputs {optional} are optional, and a model of the format {format} takes all of its inputs",
            remedy="declare them without optional, and send them in every request",
            check="signature",
        )
    if settings.bucket_lengths and format != Format.HF_ENCODER:
        return bucketed(model, settings.bucket_lengths)
    return model


def _as_clients_see_it(loader: Callable[[LoadContext], Model], context: LoadContext) -> Model:
    """The loaded model with the labels and shapes that the settings give it."""
    settings = context.settings
    if settings.reshapes:
        from inference.models.reshaped import Reshaped, inner_settings

        model: Model = Reshaped(loader(replace(context, settings=inner_settings(settings))), settings)
    else:
        model = loader(context)
    if settings.labels and not model.signature.labels:
        model.signature = msgspec.structs.replace(model.signature, labels=settings.labels)
    return model
