"""Causal language models as artifacts: Hugging Face folders (config.json, safetensors, tokenizer.json) and GGUF files.

Parsed by us, run by nobody: what is learnt here is what the report says and what placement reckons with.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from inference.artifacts import gguf, gguf_config, hf, jsons, safetensors
from inference.artifacts.paths import shown
from inference.errors import Rejected

if TYPE_CHECKING:
    from pathlib import Path

TASK = "text-generation"
DRAFT = "draft"  # the folder of a draft model, inside its model's
MAX_TOKENIZER_BYTES = 64 << 20
MAX_TOKENIZER_CONFIG_BYTES = 16 << 20
MAX_TEMPLATE_BYTES = 1 << 18
MAX_TOKENS = 1 << 20
HEADS = ("ForCausalLM", "LMHeadModel")
TEXT_OF = {"Gemma3ForConditionalGeneration": "Gemma3ForCausalLM"}  # models of several kinds whose text part is served
# What our own decoder runs; every other causal model goes through transformers.
DECODERS = frozenset({
    "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM",
    "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Phi3ForCausalLM",
})  # fmt: skip
FLOATS = frozenset({"F32", "F16", "BF16"})
SAVE = "Save the model again with save_pretrained of a current transformers, and upload the whole folder."
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1}
QUANTISED_BYTES = {"int8": 1.04, "int4": 0.69}  # a weight with its part of the scales


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model; 0 where its configuration does not say them. context: tokens of prompt and answer together."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class Language:
    """What a language model is. stored: how most of its weights are kept ("Q4_1", "BF16"); parameters: tied ones once;
    path: "decoder" for our own, else "transformers".
    """

    architecture: str
    shape: Shape
    parameters: int
    stored: str
    stored_bytes: int
    has_template: bool
    path: str = "decoder"
    weights: list[str] = field(default_factory=list)
    needs_conversion: bool = False
    notes: list[str] = field(default_factory=list)

    def weight_bytes(self, dtype: str, quantization: str = "none") -> int:
        """Bytes of all weights once loaded as `dtype` ("float32", "bfloat16"); quantised, all but the embedding are less;
        as "gguf" about what the file has.
        """
        if quantization == "gguf":
            return self.stored_bytes
        if quantization == "none":
            return self.parameters * ITEM_BYTES[dtype]
        embedding = min(self.parameters, self.shape.vocabulary * self.shape.width)
        return embedding * ITEM_BYTES[dtype] + int((self.parameters - embedding) * QUANTISED_BYTES[quantization])

    def cache_bytes(self, tokens: int, dtype: str) -> int:
        """Bytes of the keys and values of that many tokens."""
        shape = self.shape
        return 2 * shape.layers * shape.kv_heads * shape.head_dim * ITEM_BYTES[dtype] * tokens


def dtype_of(setting: str, device: str) -> str:
    """What weights are loaded as: `setting` ("auto", "float32", "bfloat16") on that kind of device."""
    if setting != "auto":
        return setting
    return "float32" if device == "cpu" else "bfloat16"


def is_causal(folder: Path) -> bool:
    """Whether config.json names a language model. Raises Rejected for a config.json that cannot be read."""
    architecture, model_type = _named(hf.checked_json(folder / "config.json", hf.MAX_CONFIG_BYTES))
    return (architecture.endswith(HEADS) or architecture in TEXT_OF) and model_type not in hf.MODEL_TYPES


def read_folder(folder: Path, *, is_draft: bool = False) -> Language:
    """The model of a Hugging Face folder; a draft model may lack the tokenizer. Raises Rejected for code, quantised or
    missing weights, a missing tokenizer.
    """
    config = hf.checked_json(folder / "config.json", hf.MAX_CONFIG_BYTES)
    architecture, _ = _named(config)
    if "quantization_config" in config:
        _refuse(
            "the weights are quantised in a way that is not served (quantization_config)",
            "Upload the weights in bfloat16 and let Serinus quantise them: generation.quantization int8 or int4; or a GGUF.",
        )
    notes = _check_files(folder, needs_tokenizer=not is_draft)
    weights, tensors = _weights(folder)
    if not tensors:
        notes.append(f"{hf.PICKLED} is converted to safetensors in the sandbox; the original is never served.")
    if architecture in TEXT_OF:
        notes.append("Only the text part of this model is served.")
    text = config.get("text_config") if architecture in TEXT_OF else config
    served = TEXT_OF.get(architecture, architecture)
    return Language(
        architecture=served,
        shape=_shape(text if isinstance(text, dict) else config),
        parameters=sum(_elements(tensor.shape) for tensor in tensors.values()),
        stored=_most(Counter({name: tensor.end - tensor.begin for name, tensor in tensors.items()}), tensors),
        stored_bytes=sum(tensor.end - tensor.begin for tensor in tensors.values()),
        has_template=_check_template(folder),
        path="decoder" if served in DECODERS else "transformers",
        weights=weights,
        needs_conversion=not tensors,
        notes=notes,
    )


def read_gguf(path: Path) -> Language:
    """The model of a GGUF file. Raises Rejected for a damaged one, and for an architecture that is not served."""
    header = gguf.read(path)
    config = gguf_config.config_of(header, path)
    size = len(header.items("tokenizer.ggml.tokens", "text"))
    if not 0 < size <= MAX_TOKENS:
        _refuse(
            "the GGUF file brings no tokenizer", "Convert it with its tokenizer, or upload its Hugging Face folder."
        )
    template = header.text("tokenizer.chat_template")
    if len(template.encode()) > MAX_TEMPLATE_BYTES:
        _long_template()
    kept: Counter[str] = Counter()
    for tensor in header.tensors.values():
        kept[tensor.type_name] += tensor.end - tensor.begin
    return Language(
        architecture=config["architectures"][0],
        shape=_shape(config),
        parameters=sum(one.elements for name, one in header.tensors.items() if not name.startswith("rope_f")),
        stored=kept.most_common(1)[0][0] if kept else "",
        stored_bytes=sum(kept.values()),
        has_template=bool(template),
        weights=[path.name],
        notes=[] if template else [NO_TEMPLATE],
    )


NO_TEMPLATE = "It brings no chat template: chats need one in generation.chat_template of the settings."


def read_draft(folder: Path, model: Language) -> Language:
    """The draft model in the folder of `model`: config.json with safetensors, or one GGUF file. It needs no tokenizer.

    Raises Rejected for what could not be served alone either, and for another vocabulary than the model's.
    """
    files = sorted((folder / DRAFT).glob("*.gguf"))
    if len(files) > 1:
        _refuse(f"{DRAFT}/ holds {len(files)} GGUF files", "Leave one of them there.")
    if not files and not is_causal(folder / DRAFT):
        _refuse(f"{DRAFT}/ holds no language model", "Put a smaller model of the same family there, or leave it out.")
    found = read_gguf(files[0]) if files else read_folder(folder / DRAFT, is_draft=True)
    if found.needs_conversion:
        _refuse(f"the weights in {DRAFT}/ are pickles", hf.SAFE)
    check_vocabulary(model.shape.vocabulary, found.shape.vocabulary, check="configuration")
    return found


def check_vocabulary(model: int, draft: int, *, check: str) -> None:
    """Raises Rejected unless both have so many tokens."""
    if model != draft:
        raise Rejected(
            f"the draft model has a vocabulary of {draft} tokens, the model one of {model}: it cannot guess for it",
            remedy="use a draft model with the same tokenizer, the smallest one of the model's family",
            check=check,
        )


def _named(config: dict[str, Any]) -> tuple[str, str]:
    listed = config.get("architectures")
    one = listed[0] if isinstance(listed, list) and len(listed) == 1 and isinstance(listed[0], str) else ""
    return one, str(config.get("model_type", ""))


def _shape(config: dict[str, Any]) -> Shape:
    heads, width = hf.size(config, "num_attention_heads", "n_head"), hf.size(config, "hidden_size", "n_embd", "d_model")
    return Shape(
        layers=hf.size(config, "num_hidden_layers", "n_layer"),
        width=width,
        heads=heads,
        kv_heads=hf.size(config, "num_key_value_heads") or heads,
        head_dim=hf.size(config, "head_dim") or (width // heads if heads else 0),
        context=hf.size(config, "max_position_embeddings", "n_positions", "n_ctx"),
        vocabulary=hf.size(config, "vocab_size"),
    )


def _elements(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _most(sizes: Counter[str], tensors: dict[str, safetensors.Tensor]) -> str:
    by_type: Counter[str] = Counter()
    for name, size in sizes.items():
        by_type[tensors[name].dtype] += size
    return by_type.most_common(1)[0][0] if by_type else ""


def _check_files(folder: Path, *, needs_tokenizer: bool) -> list[str]:
    """Every JSON file of the folder holds no code of its own, and is no larger than it may be."""
    tokenizer = folder / "tokenizer.json"
    if tokenizer.is_file():
        fast = jsons.read(tokenizer, MAX_TOKENIZER_BYTES, remedy=SAVE)
        if not isinstance(fast.get("model"), dict):
            _refuse("tokenizer.json holds no tokenizer", SAVE)
    elif needs_tokenizer:
        _refuse(
            "tokenizer.json is missing",
            "Save the tokenizer beside the model: AutoTokenizer.from_pretrained(..., use_fast=True).save_pretrained(folder).",
        )
    notes: list[str] = []
    limits = {"tokenizer_config.json": MAX_TOKENIZER_CONFIG_BYTES}
    for path in sorted(folder.glob("*.json")):
        known = path.name in {"vocab.json", "model.safetensors.index.json", "added_tokens.json", "tokenizer.json"}
        limit = limits.get(path.name, hf.MAX_CONFIG_BYTES)
        if not known and path.stat().st_size and ("config" in path.name or path.stat().st_size <= limit):
            hf.checked_extra(path, limit)
    notes += [
        f"{shown(path.name)} is ignored: no code is run from this folder." for path in sorted(folder.glob("*.py"))
    ]
    return notes[:8]


def _check_template(folder: Path) -> bool:
    """Whether the folder brings a chat template, of a bearable size."""
    alone = folder / "chat_template.jinja"
    if alone.is_file() and alone.stat().st_size > MAX_TEMPLATE_BYTES:
        _long_template()
    if alone.is_file():
        return True
    for name, limit in (("chat_template.json", 1 << 20), ("tokenizer_config.json", MAX_TOKENIZER_CONFIG_BYTES)):
        path = folder / name
        held = jsons.read(path, limit, remedy=SAVE).get("chat_template") if path.is_file() else None
        several = held if isinstance(held, list) else [{"template": held}]
        texts = [one.get("template") for one in several if isinstance(one, dict)]
        if any(isinstance(text, str) and len(text.encode("utf-8", "replace")) > MAX_TEMPLATE_BYTES for text in texts):
            _long_template()
        if any(isinstance(text, str) and text for text in texts):
            return True
    return False


def _weights(folder: Path) -> tuple[list[str], dict[str, safetensors.Tensor]]:
    names, needs_conversion = hf.weights(folder)
    tables = {} if needs_conversion else safetensors.read_folder(folder)
    tensors = {name: tensor for table in tables.values() for name, tensor in table.items()}
    for name, tensor in tensors.items():
        if name.endswith(".weight") and tensor.dtype not in FLOATS:
            _refuse(
                f"the tensor {shown(name)} is stored as {tensor.dtype}, a quantisation that is not served",
                "Upload the weights in bfloat16 and set generation.quantization to int8 or int4.",
            )
    return names, tensors


def _long_template() -> NoReturn:
    _refuse(f"the chat template is longer than {MAX_TEMPLATE_BYTES} bytes", "Shorten it, and upload the model again.")


def _refuse(reason: str, remedy: str) -> NoReturn:
    raise Rejected(reason, remedy=remedy, check="configuration")
