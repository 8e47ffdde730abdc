"""SmolLM2-135M-Instruct as every engine here reads it: a Hugging Face folder in fp32, dequantised from the demo's GGUF."""

from __future__ import annotations

import json
from pathlib import Path

from inference.models.language_tokenizer import load_tokenizer
from serinus.demo import smollm2


def export(folder: Path) -> Path:
    """Writes config.json, generation_config.json, model.safetensors and the tokenizer into `folder`; returns it.

    Raises SystemExit when the package of the model is not installed.
    """
    from safetensors.torch import save_file

    from inference.models.on_torch.gguf_weights import GgufWeights

    source = GgufWeights(smollm2.source())
    tensors = {name: source.get(name).float().contiguous() for name in source.names()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write(folder / "config.json", {**source.config, "torch_dtype": "float32"})
    _write(folder / "generation_config.json", source.generation)
    tokenizer = load_tokenizer(smollm2.source().parent)
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    own = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": tokenizer.chat_template}
    _write(folder / "tokenizer_config.json", own | tokenizer.special_tokens)
    return folder


def _write(path: Path, told: dict[str, object]) -> None:
    path.write_text(json.dumps(told, indent=1))
