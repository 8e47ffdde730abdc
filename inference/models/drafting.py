"""The draft model of a language model, which guesses what comes next: a folder of the same version, or its own weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import msgspec

from inference.artifacts.causal import DRAFT, check_vocabulary
from inference.artifacts.manifest import Format
from inference.errors import Rejected
from inference.models import load

if TYPE_CHECKING:
    from inference.models.contract import LoadContext
    from inference.models.language import LanguageModel


def load_draft(context: LoadContext, model: LanguageModel) -> LanguageModel | None:
    """The draft model that the settings ask for, on the device of `model`; None where they ask for none.

    Raises Rejected where it is not there, or reads another vocabulary.
    """
    generation = context.settings.generation
    speculation = generation.speculation if generation is not None else None
    if generation is None or speculation is None or speculation.method != "draft":
        return None
    folder = context.folder / DRAFT if speculation.draft == "folder" else context.folder
    if not folder.is_dir():
        raise Rejected(
            f"the settings ask for a draft model, and there is no folder {DRAFT}/ with one",
            remedy=f"put its config.json and safetensors, or its .gguf, into {DRAFT}/ beside the model; or use "
            'speculation {"method": "ngram"}',
            check="load",
        )
    quantization = generation.quantization if speculation.quantization == "same" else speculation.quantization
    if quantization == "gguf" and not any(folder.glob("*.gguf")):
        quantization = "none"  # the model keeps its file's weights, and its draft model has no such file
    own = msgspec.structs.replace(
        generation,
        quantization=quantization,
        speculation=None,
        max_adapters=0,
    )
    settings = msgspec.structs.replace(context.settings, generation=own)
    found = cast("LanguageModel", load(Format.HF_DECODER, replace(context, folder=folder, settings=settings)))
    check_vocabulary(model.facts.vocabulary, found.facts.vocabulary, check="load")
    return found
