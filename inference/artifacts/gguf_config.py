"""The configuration of a GGUF language model, in the form of transformers' config.json. Pure: metadata in, mapping out.

What llama.cpp keeps in its code instead of the file (Gemma's pattern of windows and its attention scale, SmolLM3's
layers without positions) is filled in here.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NoReturn

from inference.artifacts import gguf
from inference.artifacts.gguf import Header
from inference.artifacts.paths import shown
from inference.errors import Rejected

if TYPE_CHECKING:
    from pathlib import Path

# llama.cpp's architecture -> transformers' model_type. Mistral's files say "llama".
MODEL_TYPES = {
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2", "gemma3": "gemma3_text", "phi3": "phi3",
    "smollm3": "smollm3",
}  # fmt: skip
CLASSES = {
    "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM", "gemma3": "Gemma3ForCausalLM", "phi3": "Phi3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}  # fmt: skip
TURN_ENDS = frozenset({"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>"})
CONTROL = 3  # llama.cpp's type of a token that stands for no text
ROPE_FREQS, ROPE_LONG, ROPE_SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}  # layers of the 27B ones, which scale attention by width / heads


def config_of(header: Header, path: Path) -> dict[str, Any]:
    """config.json's content for the model in `path`. Raises Rejected for other architectures and missing numbers."""
    architecture = header.text("general.architecture")
    if architecture not in MODEL_TYPES:
        _refuse(
            f"is of the architecture {shown(architecture)}, which is not served",
            "Served are GGUF files of " + ", ".join(sorted(MODEL_TYPES)) + "; others as a Hugging Face folder.",
        )
    if header.integer("split.count", 1) > 1:
        _refuse("is one part of several", "Merge the parts: llama-gguf-split --merge FIRST-PART.gguf MERGED.gguf")
    if header.integer(f"{architecture}.expert_count"):
        _refuse("is a mixture of experts, which is not served", "Serve a dense model.")
    sizes = _sizes(header, architecture)
    return {
        "model_type": MODEL_TYPES[architecture],
        "architectures": [CLASSES[architecture]],
        **sizes,
        "hidden_act": "gelu_pytorch_tanh" if architecture.startswith("gemma") else "silu",
        "rms_norm_eps": header.number(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-6),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "attention_bias": "blk.0.attn_q.bias" in header.tensors and architecture != "qwen2",
        **_ids(header),
        **_attention(header, architecture, sizes),
        "rope_parameters": _rope(header, architecture, path, sizes),
    }


def _sizes(header: Header, architecture: str) -> dict[str, int]:
    def size(name: str, default: int = 0) -> int:
        value = header.integer(f"{architecture}.{name}", default)
        if not 0 < value < 1 << 31:
            _refuse(f"does not say {architecture}.{name}", gguf.REMEDY)
        return value

    heads, width = size("attention.head_count"), size("embedding_length")
    head = size("attention.key_length", width // heads)
    if header.integer(f"{architecture}.attention.value_length", head) != head:
        _refuse("has keys and values of different widths, which is not served", "Serve another model.")
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        _refuse("holds no token_embd.weight", gguf.REMEDY)
    return {
        "vocab_size": embedding.shape[0],
        "hidden_size": width,
        "intermediate_size": size("feed_forward_length"),
        "num_hidden_layers": size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": size("attention.head_count_kv", heads),
        "head_dim": head,
        "max_position_embeddings": size("context_length"),
    }


def _ids(header: Header) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, key in (("bos", "bos_token_id"), ("pad", "padding_token_id")):
        if f"tokenizer.ggml.{key}" in header.metadata:
            found[f"{name}_token_id"] = header.integer(f"tokenizer.ggml.{key}")
    ends = stops(header)
    if ends:
        found["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    return found


def stops(header: Header) -> list[int]:
    """Ids that end an answer: what the file names as end of text, turn or message, then known control tokens."""
    named = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")]
    found = [header.integer(key) for key in named if key in header.metadata]
    kinds = header.items("tokenizer.ggml.token_type", "int")
    texts = header.items("tokenizer.ggml.tokens", "text")
    found += [id_ for id_, (text, kind) in enumerate(zip(texts, kinds, strict=False)) if _ends(text, kind)]
    return list(dict.fromkeys(found))


def _ends(text: str, kind: int) -> bool:
    return kind == CONTROL and text in TURN_ENDS


def _attention(header: Header, architecture: str, sizes: dict[str, int]) -> dict[str, Any]:
    layers = sizes["num_hidden_layers"]
    window = header.integer(f"{architecture}.attention.sliding_window")
    if architecture == "smollm3":
        return {"no_rope_layers": [int((layer + 1) % 4 != 0) for layer in range(layers)], "use_sliding_window": False}
    if architecture in {"qwen2", "qwen3"}:
        return {"use_sliding_window": False}
    if architecture not in LARGEST_GEMMA:
        return {"sliding_window": window} if window and architecture == "phi3" else {}
    every = 2 if architecture == "gemma2" else 6
    caps = {
        name: header.number(f"{architecture}.{key}") or None
        for name, key in (
            ("attn_logit_softcapping", "attn_logit_softcapping"),
            ("final_logit_softcapping", "final_logit_softcapping"),
        )
    }
    is_largest = layers == LARGEST_GEMMA[architecture]
    kinds = ["full_attention" if (layer + 1) % every == 0 else "sliding_attention" for layer in range(layers)]
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": window or (4096 if architecture == "gemma2" else 1024),
        "layer_types": kinds,
        "query_pre_attn_scalar": sizes["hidden_size"] // sizes["num_attention_heads"]
        if is_largest
        else sizes["head_dim"],
        **caps,
    }


def _rope(header: Header, architecture: str, path: Path, sizes: dict[str, int]) -> dict[str, Any]:
    default = 1e6 if architecture == "gemma3" else 1e4
    found: dict[str, Any] = {"rope_theta": header.number(f"{architecture}.rope.freq_base", default)}
    found |= _scaling(header, architecture, path, sizes)
    rotated = header.integer(f"{architecture}.rope.dimension_count", sizes["head_dim"])
    if architecture == "phi3":
        found["partial_rotary_factor"] = rotated / sizes["head_dim"]
    elif rotated != sizes["head_dim"]:
        _refuse("turns only a part of each head's width, which is not served", "Serve another model.")
    if architecture == "gemma3":
        local = {"rope_type": "default", "rope_theta": header.number("gemma3.rope.freq_base_swa", 1e4)}
        return {"full_attention": found, "sliding_attention": local}
    return found


def _scaling(header: Header, architecture: str, path: Path, sizes: dict[str, int]) -> dict[str, Any]:
    base = f"{architecture}.rope.scaling"
    context = sizes["max_position_embeddings"]
    original = header.integer(f"{base}.original_context_length", context)
    if ROPE_LONG in header.tensors and ROPE_SHORT in header.tensors:
        return {
            "rope_type": "longrope",
            "long_factor": _floats(header, path, ROPE_LONG),
            "short_factor": _floats(header, path, ROPE_SHORT),
            "factor": context / original,
            "original_max_position_embeddings": original,
            "attention_factor": header.number(f"{base}.attn_factor", 1.0),
        }
    if ROPE_FREQS in header.tensors:
        # Llama 3's smooth cut, which llama.cpp stores as its result: a divisor for each frequency.
        factors = _floats(header, path, ROPE_FREQS)
        return {
            "rope_type": "longrope", "long_factor": factors, "short_factor": factors, "factor": 1.0,
            "original_max_position_embeddings": context, "attention_factor": 1.0,
        }  # fmt: skip
    kind = header.text(f"{base}.type", "none")
    factor = header.number(f"{base}.factor", header.number(f"{architecture}.rope.scale_linear", 1.0))
    if kind == "none" or factor in {0.0, 1.0}:
        return {"rope_type": "default"}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        _refuse(
            f"stretches its positions by {shown(kind)}, which is not served", "Served are linear, yarn and longrope."
        )
    return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}


def _floats(header: Header, path: Path, name: str) -> list[float]:
    tensor = header.tensors[name]
    if tensor.type_name != "F32" or tensor.end - tensor.begin > 1 << 16:
        _refuse(f"stores {name} in an unknown way", gguf.REMEDY)
    with path.open("rb") as source:
        source.seek(tensor.begin)
        values = struct.unpack(f"<{tensor.elements}f", source.read(tensor.end - tensor.begin))
    if any(not 1e-6 < value < 1e6 for value in values):
        _refuse(f"has impossible numbers in {name}", gguf.REMEDY)
    return list(values)


def _refuse(why: str, remedy: str) -> NoReturn:
    raise Rejected(f"the GGUF file {why}", remedy=remedy, check="configuration")
