"""The decoder of the Llama family and its cousins: one flat batch of new tokens over blocks of keys and values.

Every linear layer is one matrix product over all sequences' new tokens; queries, keys and values are one product, gate
and up another. Only attention knows sequences. On the CPU in float32 the small operations between are compiled loops
(kernels.py); everywhere else the same steps are torch's (attention.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 (the field's own name)

from inference.errors import InvalidInput, Rejected
from inference.models.language import Step
from inference.models.on_torch.language import attention, rope
from inference.models.on_torch.language.adapters import DOWN, GATE_UP, OUTPUT, PLACES, QKV, Adapters, Applied
from inference.models.on_torch.language.cache import BlockCache, block_bytes
from inference.models.on_torch.language.panels import Panelled, panelled
from inference.models.on_torch.language.quantised import Beside, Quantised, kept, quantise
from inference.models.on_torch.language.spec import DecoderSpec
from inference.models.on_torch.language.weights import Kept, WeightSource

if TYPE_CHECKING:
    from inference.models.on_torch.language.decode_graphs import DecodeGraphs, Record
    from inference.models.on_torch.language.walker import Walker

Tensor = torch.Tensor
Weight = torch.Tensor | Panelled | Quantised | Beside
NONE = torch.empty(0)
FLOATS = frozenset({"F32", "F16", "BF16"})
KEEP = -1  # instead of a number of bits: as the file has them


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
        self,
        spec: DecoderSpec,
        source: WeightSource,
        *,
        device: str,
        dtype: torch.dtype,
        context: int,
        bits: int = 0,
        kept: torch.dtype | None = None,
        graphs: int = 0,
    ) -> None:
        """kept: the dtype of keys and values, `dtype` where it is None. graphs: record steps of up to so many decodes."""
        self.spec = spec
        self.device, self.dtype, self.kept = device, dtype, kept or dtype
        self._context, self._graphs_up_to = context, graphs
        self.is_tiled = device.startswith("cuda")
        self.graphs: DecodeGraphs | None = None
        self._walker: Walker | None = None
        self._reader = _Reader(spec, source, device, dtype, bits)
        self.embedding: Weight = self._reader.embedding()
        self.layers = [self._reader.layer(index) for index in range(spec.layers)]
        self.norm = self._reader.norm("model.norm.weight")
        self.head = self.embedding if spec.tied else self._reader.head("lm_head.weight")
        tables = [rope.table(kind, spec.head_width, context) for kind in spec.rope_kinds]
        self._rotary = [(cosine.to(device), sine.to(device)) for cosine, sine in tables]
        self._unrotated = (torch.empty(0, 0, device=device), torch.empty(0, 0, device=device))
        for weight in {weight.form: weight for weight in self.packed()}.values():
            weight.compile()
        self.notes = self._reader.notes()
        del self._reader
        self.adapters: Adapters | None = None
        self.cache: BlockCache | None = None

    @property
    def _is_compiled(self) -> bool:
        return self.device == "cpu" and self.dtype is self.kept is torch.float32

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights as they are held."""
        every = [self.embedding, self.norm] if self.spec.tied else [self.embedding, self.norm, self.head]
        return sum(one.nbytes for one in every + self._in_layers())

    def _in_layers(self) -> list[Weight]:
        every = [getattr(layer, field.name) for layer in self.layers for field in fields(Layer)]
        return [one for one in every if one is not None]

    def packed(self) -> list[Quantised]:
        """Every weight that is kept in few bits."""
        every: list[Weight] = [self.embedding, self.head, *self._in_layers()]
        parts = [part for one in every for part in (one.parts if isinstance(one, Beside) else [one])]
        return [part for part in parts if isinstance(part, Quantised)]

    def block_bytes(self, block_size: int) -> int:
        return block_bytes(self.spec, block_size, self.kept)

    def allocate(self, blocks: int, block_size: int) -> None:
        """With graphs, which are recorded here, one block more, for rows that are nobody's."""
        self.cache, self.graphs, self._walker = None, None, None
        more = 1 if self._graphs_up_to else 0
        self.cache = BlockCache(self.spec, blocks + more, block_size, self.kept, self.device)
        if self._graphs_up_to:
            self.record()
        if self._is_compiled:
            from inference.models.on_torch.language import walker

            self._walker = walker.Walker(self, self.cache) if walker.Walker.takes(self) else None
            if self._walker is None or self.adapters is not None:
                walker.compile_operations()

    @torch.inference_mode()
    def record(self, how: Record | None = None) -> None:
        """Records steps of decodes. how: instead of CUDA's own way."""
        from inference.models.on_torch.language.decode_graphs import DecodeGraphs

        assert self.cache is not None
        block_size = self.cache.block_size
        self.graphs = DecodeGraphs(
            lambda batch: self._logits(batch, None, None),
            largest=self._graphs_up_to,
            width=-(-self._context // block_size),
            spare=self.cache.blocks - 1,
            block_size=block_size,
            group=self.spec.heads // self.spec.kv_heads,
            device=self.device,
            record=how,
        )

    @torch.inference_mode()
    def forward(self, step: Step) -> Tensor:
        """Logits, float32 [L, vocabulary]."""
        assert self.cache is not None, "allocate comes first"
        if self._walker is not None and self._walker.can(step):
            return self._capped(self._walker.forward(step, self._embedded(step.tokens)))
        if self.graphs is not None and (found := self.graphs.forward(step)) is not None:
            return found
        if self.is_tiled:
            batch = attention.tiled_batch_of(step, self.device, self.spec.heads // self.spec.kv_heads)
        else:
            batch = attention.batch_of(step, self.device, is_compiled=self._is_compiled)
        return self._logits(batch, *self._adapted(step))

    def _logits(self, batch: attention.Batch, inside: Applied | None, above: Applied | None) -> Tensor:
        spec = self.spec
        hidden = self._embedded(batch.tokens)
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
        return self._capped(_linear(last, self.head, None, above, spec.layers * PLACES).float())

    def _capped(self, logits: Tensor) -> Tensor:
        cap = self.spec.final_softcap
        return torch.tanh(logits / cap) * cap if cap else logits

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
        self.cache, self.graphs, self._walker = None, None, None

    def _embedded(self, tokens: Tensor) -> Tensor:
        assert not isinstance(self.embedding, Beside), "a table of rows is in one piece"
        if isinstance(self.embedding, torch.Tensor):
            hidden = F.embedding(tokens, self.embedding)
        else:
            hidden = self.embedding.rows(tokens).to(self.dtype)
        scale = self.spec.embedding_scale
        return hidden if scale == 1.0 else hidden * torch.tensor(scale, dtype=self.dtype)

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

    def rotary(self, index: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of that layer, float32 [context, half of what is rotated], or empty for no rotation."""
        kind = self.spec.ropes[index]
        return self._rotary[kind] if kind >= 0 else self._unrotated

    def _attend(self, index: int, layer: Layer, mixed: Tensor, batch: attention.Batch) -> Tensor:
        spec, cache = self.spec, self.cache
        assert cache is not None
        cosine, sine = self.rotary(index)
        keys, values = cache.keys[index], cache.values[index]
        queries = attention.rotate_and_store(
            mixed, cosine, sine, batch, keys, values, (layer.query_norm, layer.key_norm, spec.norm_eps), spec.heads
        )
        shape = attention.Shape(spec.attention_scale, spec.windows[index], spec.attention_softcap)
        return attention.attend(queries, keys, values, batch, shape).flatten(1)


def _linear(x: Tensor, weight: Weight, bias: Tensor | None, applied: Applied | None, place: int) -> Tensor:
    """[rows, outputs]: x @ weight.T + bias, and what the adapters add at that place."""
    out = F.linear(x, weight, bias) if isinstance(weight, torch.Tensor) else weight.product(x, bias)
    if applied is not None:
        applied.add(place, x, out)
    return out


class _Reader:
    """Takes weights out of a source by transformers' names, fuses them, checks their shapes, and quantises (bits: 8, 4,
    or 0 for none) those of linear layers; the head, and queries, keys and values (whose errors cost most for their size),
    to 8 bits even then. bits KEEP: those that the file has quantised stay as they are, where there is a kernel for it.
    kept, opened: how many tensors of which of the file's types were kept, and dequantised.
    """

    def __init__(self, spec: DecoderSpec, source: WeightSource, device: str, dtype: torch.dtype, bits: int) -> None:
        self._spec, self._source, self._device, self._dtype, self._bits = spec, source, device, dtype, bits
        self._names = set(source.names())
        self._is_plain = device == "cpu" and dtype is torch.float32
        self.kept: Counter[str] = Counter()
        self.opened: Counter[str] = Counter()

    def notes(self) -> list[str]:
        """What became of the file's quantised weights, for the report."""
        if self._bits != KEEP:
            return []
        found = [f"kept as the file has them: {_listed(self.kept)}"] if self.kept else []
        opened = f"dequantised to {str(self._dtype).removeprefix('torch.')}, for want of a kernel"
        return found + ([f"{opened}: {_listed(self.opened)}"] if self.opened else [])

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
            self._fused(attention_, "qkv_proj", queries, 8 if bits > 0 else bits),
            self._bias(attention_, "qkv_proj", queries, wanted=spec.attention_bias),
            self._head_norm(attention_ + "q_norm.weight"),
            self._head_norm(attention_ + "k_norm.weight"),
            self._linear([(attention_ + "o_proj.weight", spec.width)], out, bits),
            self.get(attention_ + "o_proj.bias", spec.width) if spec.output_bias else None,
            self.norm(prefix + "post_attention_layernorm.weight") if spec.post_norms else NONE,
            self.norm(prefix + second + ".weight"),
            self._fused(mlp, "gate_up_proj", gates, bits),
            self._bias(mlp, "gate_up_proj", gates, wanted=spec.mlp_bias),
            self._linear([(mlp + "down_proj.weight", spec.width)], inner, bits),
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
        if self._spec.tied or self._bits == KEEP:
            return self.head(name)
        return self.get(name, self._spec.vocabulary, self._spec.width)

    def head(self, name: str) -> Weight:
        bits = 8 if self._bits > 0 else self._bits
        return self._linear([(name, self._spec.vocabulary)], self._spec.width, bits)

    def _fused(self, prefix: str, fused: str, parts: list[tuple[str, int]], bits: int) -> Weight:
        """[sum of the parts' rows, width]; Phi-3 has them fused already."""
        name = f"{prefix}{fused}.weight"
        if name in self._names:
            return self._linear([(name, sum(rows for _, rows in parts))], self._spec.width, bits)
        return self._linear([(f"{prefix}{part}.weight", rows) for part, rows in parts], self._spec.width, bits)

    def _linear(self, parts: list[tuple[str, int]], width: int, bits: int) -> Weight:
        """The weights of those names, one below the other. parts: (name, rows)."""
        if bits == KEEP:
            return self._as_in_the_file(parts, width)
        every = [self.get(name, rows, width) for name, rows in parts]
        whole = torch.cat(every).contiguous() if len(every) > 1 else every[0]
        if bits:
            return quantise(whole, bits)
        return panelled(whole) if self._is_plain else whole

    def _as_in_the_file(self, parts: list[tuple[str, int]], width: int) -> Weight:
        """In one piece where all parts are kept alike, else side by side."""
        runs: list[list[Kept | Tensor]] = []
        for name, rows in parts:
            found = self._taken(name, rows, width)
            if runs and _are_alike(runs[-1][-1], found):
                runs[-1].append(found)
            else:
                runs.append([found])
        whole = [self._joined(run) for run in runs]
        return whole[0] if len(whole) == 1 else Beside(whole)

    def _taken(self, name: str, rows: int, width: int) -> Kept | Tensor:
        found = self._source.kept(name) if name in self._names else None
        if found is None:
            tensor = self.get(name, rows, width)
            if (own := self._source.type_of(name)) not in FLOATS:
                self.opened[own] += 1
            return tensor
        if tuple(found.whole.shape) != (rows, width):
            raise _unfit(f"{name} has shape {list(found.whole.shape)}, config.json says {[rows, width]}")
        self.kept[self._source.type_of(name)] += 1
        return found

    def _joined(self, run: list[Kept | Tensor]) -> Tensor | Panelled | Quantised:
        if isinstance(run[0], torch.Tensor):
            whole = torch.cat([one for one in run if isinstance(one, torch.Tensor)]).contiguous()
            return panelled(whole) if self._is_plain else whole
        held = [one for one in run if not isinstance(one, torch.Tensor)]
        whole_, scales = torch.cat([one.whole for one in held]), torch.cat([one.scales for one in held])
        return kept(whole_.to(self._device), scales.to(self._device), run[0].bits)

    def _bias(self, prefix: str, fused: str, parts: list[tuple[str, int]], *, wanted: bool) -> Tensor | None:
        if not wanted:
            return None
        name = f"{prefix}{fused}.bias"
        if name in self._names:
            return self.get(name, sum(rows for _, rows in parts))
        return torch.cat([self.get(f"{prefix}{part}.bias", rows) for part, rows in parts])


def _listed(types: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in types.most_common())


def _are_alike(one: Kept | Tensor, two: Kept | Tensor) -> bool:
    if isinstance(one, torch.Tensor) or isinstance(two, torch.Tensor):
        return isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor)
    return (one.bits, one.scales.dtype, one.scales.shape[1:]) == (two.bits, two.scales.dtype, two.scales.shape[1:])


def _unfit(reason: str) -> Rejected:
    return Rejected(
        reason, remedy="save the model again with save_pretrained and upload the whole folder", check="load"
    )
