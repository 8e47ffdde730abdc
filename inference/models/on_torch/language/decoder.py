"""The decoder of the Llama family and its cousins: one flat batch of new tokens over blocks of keys and values.

Every linear layer is one matrix product over all sequences' new tokens; queries, keys and values are one product, gate
and up another. Only attention knows sequences. On the CPU in float32 the small operations between are compiled loops
(kernels.py); everywhere else the same steps are torch's (attention.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (the field's own name)

from inference.errors import InvalidInput, Rejected
from inference.models.language import Step
from inference.models.on_torch.language import attention, rope
from inference.models.on_torch.language.adapters import DOWN, GATE_UP, OUTPUT, PLACES, QKV, Adapters, Applied
from inference.models.on_torch.language.cache import BlockCache, block_bytes
from inference.models.on_torch.language.quantised import Quantised, quantise
from inference.models.on_torch.language.spec import DecoderSpec
from inference.models.on_torch.language.weights import WeightSource

Tensor = torch.Tensor
Weight = torch.Tensor | Quantised
NONE = torch.empty(0)


@dataclass(slots=True)
class Layer:
    """Weights of one layer; a norm or a bias that is not there is empty or None."""

    before_attention: Tensor
    qkv: Weight
    qkv_bias: Tensor | None
    query_norm: Tensor
    key_norm: Tensor
    output: Weight
    output_bias: Tensor | None
    after_attention: Tensor
    before_mlp: Tensor
    gate_up: Weight
    gate_up_bias: Tensor | None
    down: Weight
    down_bias: Tensor | None
    after_mlp: Tensor


class Decoder:
    """Raises Rejected for weights that do not fit the spec."""

    def __init__(
        self, spec: DecoderSpec, source: WeightSource, *, device: str, dtype: torch.dtype, context: int, bits: int = 0
    ) -> None:
        self.spec = spec
        self.device, self.dtype = device, dtype
        self._reader = _Reader(spec, source, device, dtype, bits)
        self.embedding: Weight = self._reader.embedding()
        self.layers = [self._reader.layer(index) for index in range(spec.layers)]
        self.norm = self._reader.norm("model.norm.weight")
        self.head = self.embedding if spec.tied else self._reader.head("lm_head.weight")
        tables = [rope.table(kind, spec.head_width, context) for kind in spec.rope_kinds]
        self._rotary = [(cosine.to(device), sine.to(device)) for cosine, sine in tables]
        self._unrotated = (torch.empty(0, 0, device=device), torch.empty(0, 0, device=device))
        if isinstance(self.head, Quantised):
            for weight in (self.layers[0].output, self.head):
                assert isinstance(weight, Quantised)
                weight.compile()
        self.adapters: Adapters | None = None
        self.cache: BlockCache | None = None

    def block_bytes(self, block_size: int) -> int:
        return block_bytes(self.spec, block_size, self.dtype)

    def allocate(self, blocks: int, block_size: int) -> None:
        self.cache = None
        self.cache = BlockCache(self.spec, blocks, block_size, self.dtype, self.device)

    @torch.inference_mode()
    def forward(self, step: Step) -> Tensor:
        """Logits, float32 [L, vocabulary]."""
        assert self.cache is not None, "allocate comes first"
        if self.device == "cpu":
            _share_threads()
        spec = self.spec
        batch = attention.batch_of(step, self.device, self.dtype)
        hidden = self._embedded(batch.tokens)
        if spec.embedding_scale != 1.0:
            hidden = hidden * torch.tensor(spec.embedding_scale, dtype=self.dtype)
        inside, above = self._adapted(step)
        added = NONE
        for index, layer in enumerate(self.layers):
            place = index * PLACES
            hidden, normed = self._norm(hidden, added, layer.before_attention)
            mixed = _linear(normed, layer.qkv, layer.qkv_bias, inside, place + QKV)
            found = self._attend(index, layer, mixed, batch)
            added = _linear(found, layer.output, layer.output_bias, inside, place + OUTPUT)
            if spec.post_norms:
                _, added = self._norm(added, NONE, layer.after_attention)
            hidden, normed = self._norm(hidden, added, layer.before_mlp)
            both = _linear(normed, layer.gate_up, layer.gate_up_bias, inside, place + GATE_UP)
            added = _linear(attention.gated(both, spec.activation), layer.down, layer.down_bias, inside, place + DOWN)
            if spec.post_norms:
                _, added = self._norm(added, NONE, layer.after_mlp)
        wanted = batch.wanted
        _, last = self._norm(hidden[wanted], added[wanted], self.norm)
        logits = _linear(last, self.head, None, above, spec.layers * PLACES).float()
        if spec.final_softcap:
            logits = torch.tanh(logits / spec.final_softcap) * spec.final_softcap
        return logits

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        assert self.cache is not None
        self.cache.copy(pairs)

    def save_blocks(self, blocks: Sequence[int]) -> Tensor:
        assert self.cache is not None
        return self.cache.save(blocks)

    def load_blocks(self, blocks: Sequence[int], saved: Tensor) -> None:
        assert self.cache is not None
        self.cache.load(blocks, saved)

    def close(self) -> None:
        self.cache = None

    def _embedded(self, tokens: Tensor) -> Tensor:
        if isinstance(self.embedding, Quantised):
            return self.embedding.rows(tokens).to(self.dtype)
        return F.embedding(tokens, self.embedding)

    def _adapted(self, step: Step) -> tuple[Applied, Applied] | tuple[None, None]:
        """What adapters add in the layers, and above them."""
        if step.adapters is None or not step.adapters.any():
            return None, None
        if self.adapters is None:
            raise InvalidInput("this model takes no adapters: set generation.max_adapters")
        return self.adapters.for_step(step, step.adapters)

    def _norm(self, hidden: Tensor, added: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden + added (where there is any), and its RMS norm."""
        return attention.add_and_norm(hidden, added, weight, self.spec.norm_eps)

    def _attend(self, index: int, layer: Layer, mixed: Tensor, batch: attention.Batch) -> Tensor:
        spec, cache = self.spec, self.cache
        assert cache is not None
        kind = spec.ropes[index]
        cosine, sine = self._rotary[kind] if kind >= 0 else self._unrotated
        keys, values = cache.keys[index], cache.values[index]
        queries = attention.rotate_and_store(
            mixed, cosine, sine, batch, keys, values, (layer.query_norm, layer.key_norm, spec.norm_eps), spec.heads
        )
        shape = attention.Shape(spec.attention_scale, spec.windows[index], spec.attention_softcap)
        return attention.attend(queries, keys, values, batch, shape).flatten(1)


def _share_threads() -> None:
    """The compiled loops run on as many threads as torch's products: numba, left alone, gives each thread that calls it
    all cores, whatever part of them this replica was given.
    """
    import numba

    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]


def _linear(x: Tensor, weight: Weight, bias: Tensor | None, applied: Applied | None, place: int) -> Tensor:
    """[rows, outputs]: x @ weight.T + bias, and what the adapters add at that place."""
    out = weight.product(x, bias) if isinstance(weight, Quantised) else F.linear(x, weight, bias)
    if applied is not None:
        applied.add(place, x, out)
    return out


class _Reader:
    """Takes weights out of a source by transformers' names, fuses them, checks their shapes, and quantises (bits: 8, 4,
    or 0 for none) those of linear layers; the head, and queries, keys and values (whose errors cost most for their size),
    to 8 bits even then.
    """

    def __init__(self, spec: DecoderSpec, source: WeightSource, device: str, dtype: torch.dtype, bits: int) -> None:
        self._spec, self._source, self._device, self._dtype, self._bits = spec, source, device, dtype, bits
        self._names = set(source.names())

    def get(self, name: str, *shape: int) -> Tensor:
        if name not in self._names:
            raise _unfit(f"the weights have no {name}")
        found = self._source.get(name)
        if shape and tuple(found.shape) != shape:
            raise _unfit(f"{name} has shape {list(found.shape)}, config.json says {list(shape)}")
        return found.to(device=self._device, dtype=self._dtype).contiguous()

    def norm(self, name: str, width: int = 0) -> Tensor:
        found = self.get(name, width or self._spec.width)
        return found + 1 if self._spec.norm_plus_one else found

    def layer(self, index: int) -> Layer:
        spec, prefix, bits = self._spec, f"model.layers.{index}.", self._bits
        attention_, mlp = prefix + "self_attn.", prefix + "mlp."
        second = "pre_feedforward_layernorm" if spec.post_norms else "post_attention_layernorm"
        inner, out = spec.inner, spec.heads * spec.head_width
        kv = spec.kv_heads * spec.head_width
        queries = [("q_proj", out), ("k_proj", kv), ("v_proj", kv)]
        gates = [("gate_proj", inner), ("up_proj", inner)]
        return Layer(
            self.norm(prefix + "input_layernorm.weight"),
            self._fitted(self._fused(attention_, "qkv_proj", queries, spec.width), 8 if bits else 0),
            self._bias(attention_, "qkv_proj", queries, wanted=spec.attention_bias),
            self._head_norm(attention_ + "q_norm.weight"),
            self._head_norm(attention_ + "k_norm.weight"),
            self._fitted(self.get(attention_ + "o_proj.weight", spec.width, out), bits),
            self.get(attention_ + "o_proj.bias", spec.width) if spec.output_bias else None,
            self.norm(prefix + "post_attention_layernorm.weight") if spec.post_norms else NONE,
            self.norm(prefix + second + ".weight"),
            self._fitted(self._fused(mlp, "gate_up_proj", gates, spec.width), bits),
            self._bias(mlp, "gate_up_proj", gates, wanted=spec.mlp_bias),
            self._fitted(self.get(mlp + "down_proj.weight", spec.width, inner), bits),
            self.get(mlp + "down_proj.bias", spec.width) if spec.mlp_bias else None,
            self.norm(prefix + "post_feedforward_layernorm.weight") if spec.post_norms else NONE,
        )

    def _head_norm(self, name: str) -> Tensor:
        if not self._spec.qk_norm:
            return torch.empty(0, dtype=self._dtype, device=self._device)
        return self.norm(name, self._spec.head_width)

    def embedding(self) -> Weight:
        """A tied one is the head too, and quantised with it."""
        name = "model.embed_tokens.weight"
        return self.head(name) if self._spec.tied else self.get(name, self._spec.vocabulary, self._spec.width)

    def head(self, name: str) -> Weight:
        found = self.get(name, self._spec.vocabulary, self._spec.width)
        return quantise(found, 8) if self._bits else found

    def _fitted(self, weight: Tensor, bits: int) -> Weight:
        return quantise(weight, bits) if bits else weight

    def _fused(self, prefix: str, fused: str, parts: list[tuple[str, int]], width: int) -> Tensor:
        """[sum of the parts' rows, width]; Phi-3 has them fused already."""
        name = f"{prefix}{fused}.weight"
        if name in self._names:
            return self.get(name, sum(rows for _, rows in parts), width)
        return torch.cat([self.get(f"{prefix}{part}.weight", rows, width) for part, rows in parts]).contiguous()

    def _bias(self, prefix: str, fused: str, parts: list[tuple[str, int]], *, wanted: bool) -> Tensor | None:
        if not wanted:
            return None
        name = f"{prefix}{fused}.bias"
        if name in self._names:
            return self.get(name, sum(rows for _, rows in parts))
        return torch.cat([self.get(f"{prefix}{part}.bias", rows) for part, rows in parts])


def _unfit(reason: str) -> Rejected:
    return Rejected(
        reason, remedy="save the model again with save_pretrained and upload the whole folder", check="load"
    )
