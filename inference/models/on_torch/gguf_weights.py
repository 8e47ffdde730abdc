"""Weights out of a GGUF file, under transformers' names: mapped into memory, dequantised tensor by tensor
or kept as they are.

llama.cpp turns the rows of Llama's query and key projections so that its rotation takes neighbouring values, and stores
Gemma's norms with 1 added; both are undone here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from inference.artifacts import gguf, gguf_config
from inference.errors import Rejected
from inference.models.on_torch import gguf_blocks
from inference.models.on_torch.language.weights import Kept

if TYPE_CHECKING:
    from pathlib import Path

PERMUTED = frozenset({"llama", "smollm3"})
ATTENTION = re.compile(r"blk\.\d+\.attn_([qk])\.(weight|bias)")
_LAYER = re.compile(r"blk\.(\d+)\.([a-z0-9_]+)\.(weight|bias)")
_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_qkv": "self_attn.qkv_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_GEMMA = {
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
_PLAIN = {"F32": (np.float32, torch.float32), "F16": (np.float16, torch.float16), "BF16": (np.int16, torch.bfloat16)}


class GgufWeights:
    """A source of weights for a decoder. config: as config.json would say it; generation: as generation_config.json."""

    def __init__(self, path: Path) -> None:
        """Raises Rejected for a damaged file, an architecture that is not served, or a tensor of unknown use."""
        self.header = gguf.read(path)
        self.config: dict[str, Any] = gguf_config.config_of(self.header, path)
        self.generation: dict[str, Any] = {
            key: value for key, value in self.config.items() if key in {"bos_token_id", "eos_token_id", "pad_token_id"}
        }
        self._architecture = self.header.text("general.architecture")
        self._own = {self._renamed(name): name for name in self.header.tensors if not name.startswith("rope_f")}
        self._bytes = np.memmap(path, dtype=np.uint8, mode="r")

    def names(self) -> list[str]:
        """The names, as transformers has them, of all tensors, in the file's order."""
        return list(self._own)

    def get(self, name: str) -> torch.Tensor:
        """The tensor on the host: in its own dtype when that is F32, F16 or BF16, else dequantised to float32.

        Raises KeyError for a name that is not there.
        """
        own = self._own[name]
        tensor = self._read(self.header.tensors[own])
        if self._architecture.startswith("gemma") and own.endswith("norm.weight"):
            return tensor.float() - 1
        return self._turned(own, tensor)

    def type_of(self, name: str) -> str:
        """Ggml's name of its type. Raises KeyError."""
        return self.header.tensors[self._own[name]].type_name

    def kept(self, name: str) -> Kept | None:
        """The tensor as the file has quantised it, None for a type without a kernel. Raises KeyError."""
        own = self._own[name]
        tensor = self.header.tensors[own]
        if len(tensor.shape) != 2 or not gguf_blocks.has_kernel(tensor.type_name):
            return None
        rows = np.array(self._bytes[tensor.begin : tensor.end]).reshape(tensor.shape[0], -1)
        found = gguf_blocks.taken_apart(rows, tensor.type_name)
        assert found is not None
        return Kept(found.bits, *(self._turned(own, torch.from_numpy(one)) for one in (found.whole, found.scales)))

    def _turned(self, own: str, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, or its scales, with rows as transformers has them."""
        if self._architecture in PERMUTED and (found := ATTENTION.fullmatch(own)):
            return _unturned(tensor, self.config["num_attention_heads" if found[1] == "q" else "num_key_value_heads"])
        return tensor

    def _read(self, tensor: gguf.Tensor) -> torch.Tensor:
        raw = self._bytes[tensor.begin : tensor.end]
        if tensor.type_name in _PLAIN:
            stored, dtype = _PLAIN[tensor.type_name]
            return torch.from_numpy(np.array(raw.view(stored))).view(dtype).reshape(tensor.shape)
        rows = raw.reshape(*tensor.shape[:-1], -1)
        return torch.from_numpy(dequantize(rows, GGMLQuantizationType(tensor.kind))).reshape(tensor.shape)

    def _renamed(self, own: str) -> str:
        if own in _TOP:
            return _TOP[own]
        found = _LAYER.fullmatch(own)
        table = _IN_LAYER | (_GEMMA if self._architecture.startswith("gemma") else {})
        if self._architecture == "phi3":
            table = table | {"ffn_up": "mlp.gate_up_proj"}
        if found is None or found[2] not in table:
            raise Rejected(
                f"the GGUF file holds the tensor {own!r}, which a {self._architecture} model has no use for here",
                remedy="Convert the model again with a current llama.cpp, or upload its Hugging Face folder.",
                check="load",
            )
        return f"model.layers.{found[1]}.{table[found[2]]}.{found[3]}"


def _unturned(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """[heads * width, ...]: from neighbouring pairs to first and second half, within each head."""
    rest = tensor.shape[1:]
    pairs = tensor.reshape(heads, tensor.shape[0] // heads // 2, 2, *rest)
    return pairs.transpose(1, 2).reshape(tensor.shape).contiguous()
