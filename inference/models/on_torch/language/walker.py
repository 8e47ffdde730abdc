"""A decoder's steps on the CPU in float32 as compiled programs (`program`): the table, the buffers, and one call a step."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from inference.models.on_torch import products
from inference.models.on_torch.language import attention, kernels, program, team
from inference.models.on_torch.language.packed import Form
from inference.models.on_torch.language.panels import Panelled
from inference.models.on_torch.language.program import MOST_FORMS, Op
from inference.models.on_torch.language.quantised import Quantised

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inference.models.language import Step
    from inference.models.on_torch.language.attention import Batch, Shape
    from inference.models.on_torch.language.cache import BlockCache
    from inference.models.on_torch.language.decoder import Decoder, Weight

Tensor = torch.Tensor
LEAST_ROWS = 64
FIELDS = 10


class Buffers(NamedTuple):
    """What a step works on, [rows, width] each: `hidden` and `summed` take turns."""

    hidden: Tensor
    summed: Tensor
    normed: Tensor
    mixed: Tensor
    queries: Tensor
    found: Tensor
    added: Tensor
    both: Tensor
    gated: Tensor


class Walker:
    """The programs of one decoder, over one cache. Its steps come one at a time."""

    def __init__(self, decoder: Decoder, cache: BlockCache) -> None:
        self._decoder, self._cache = decoder, cache
        self._walk = program.walk_of(_forms(decoder))
        spec = decoder.spec
        self._shape = np.array([spec.heads, spec.kv_heads, cache.block_size, spec.head_width])
        self._rows = 0
        self._scratch: list[Tensor] = []
        self.reserve(LEAST_ROWS)

    @staticmethod
    def takes(decoder: Decoder) -> bool:
        """Whether all that the decoder has can be said in a program."""
        plain = decoder.device == "cpu" and decoder.dtype is decoder.kept is torch.float32
        are_known = all(isinstance(one, Panelled | Quantised) for one in _weights(decoder))
        return plain and are_known and decoder.spec.activation != "gelu" and len(_forms(decoder)) <= MOST_FORMS

    def can(self, step: Step) -> bool:
        """Whether this step is a program: not with adapters, whose products come between."""
        return step.adapters is None or not bool(step.adapters.any())

    def reserve(self, rows: int) -> None:
        """Room for steps of so many rows: new buffers, and the table with their addresses."""
        spec = self._decoder.spec
        self._rows = rows
        inside, kv = spec.heads * spec.head_width, spec.kv_heads * spec.head_width
        widths = (spec.width,) * 3 + (inside + 2 * kv, inside, inside, spec.width, 2 * spec.inner, spec.inner)
        self._held = Buffers(*(torch.empty(rows, width) for width in widths))
        self._ops, self._numbers = _table(self._decoder, self._cache, self._held)
        self._counters = np.zeros(len(self._ops), np.int64)

    def forward(self, step: Step, embedded: Tensor) -> Tensor:
        """Logits, float32 [L, vocabulary], without the decoder's final softcap. embedded: float32 [T, width]."""
        count = len(step.tokens)
        if count > self._rows:
            self.reserve(1 << (count - 1).bit_length())
        self._held.hidden[:count] = embedded
        crew = team.shared()
        starts, lengths, order, many = _tasks(step.starts, step.lengths)
        logits = torch.empty(len(step.wanted), self._decoder.spec.vocabulary)
        self._counters[:] = 0
        crew.run(
            self._walk, self._ops, self._numbers, self._shape, _words(step.wanted), _words(step.positions),
            _words(step.slots), starts, lengths, np.ascontiguousarray(step.tables.numpy()), order, many,
            self._counters, logits.data_ptr(), self._room(crew.members, int(lengths.max())),
        )  # fmt: skip
        return logits

    def _room(self, members: int, longest: int) -> NDArray[np.int64]:
        """Addresses of each member's scratch."""
        spec = self._decoder.spec
        needed = kernels.scratch_floats(spec.heads // spec.kv_heads, spec.head_width, longest)
        needed = max(needed, spec.inner)
        if len(self._scratch) < members or self._scratch[0].numel() < needed:
            self._scratch = [torch.empty(2 * needed) for _ in range(members)]
        return np.array([one.data_ptr() for one in self._scratch])


def compile_operations() -> None:
    """What steps need that go operation by operation, so that none of them waits for it."""
    products.product()
    program.attention()


def attend(queries: Tensor, keys: Tensor, values: Tensor, batch: Batch, shape: Shape) -> Tensor:
    """[T, H, D]: causal attention of queries [T, H, D] over keys and values [blocks, K, B, D]; all float32."""
    crew, queries = team.shared(), queries.contiguous()
    out = torch.empty_like(queries)
    (_, heads, width), (_, kv_heads, block, _) = queries.shape, keys.shape
    op = np.array([Op.ATTEND, *(one.data_ptr() for one in (queries, keys, values, out)), shape.window], np.int64)
    starts, lengths, order, many = _tasks(batch.starts, batch.lengths)
    needed = kernels.scratch_floats(heads // kv_heads, width, int(lengths.max()))
    scratch = [torch.empty(needed) for _ in range(crew.members)]
    crew.run(
        program.attention(), op, shape.scale, shape.softcap, np.array([heads, kv_heads, block, width]), starts, lengths,
        np.ascontiguousarray(batch.tables.numpy()), order, many, np.zeros(1, np.int64),
        np.array([one.data_ptr() for one in scratch]),
    )  # fmt: skip
    return out


def _tasks(starts: Tensor, lengths: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], int]:
    """Starts, lengths, the sequences with many new tokens before the others, and how many those are."""
    begins = starts.numpy().astype(np.int64)
    is_many = np.diff(begins) > attention.FEW_QUERIES
    return begins, lengths.numpy().astype(np.int64), np.argsort(~is_many, kind="stable"), int(is_many.sum())


def _words(indices: Tensor) -> NDArray[np.int64]:
    return np.ascontiguousarray(indices.numpy())


def _weights(decoder: Decoder) -> list[Weight]:
    """Those of a step's products: not the embedding, of which rows are taken."""
    inside = [(one.qkv, one.output, one.gate_up, one.down) for one in decoder.layers]
    return [decoder.head, *(weight for layer in inside for weight in layer)]


def _forms(decoder: Decoder) -> tuple[Form, ...]:
    """In the order of the kinds PACKED, PACKED + 1, ..."""
    return tuple(dict.fromkeys(Form(*one.form) for one in _weights(decoder) if isinstance(one, Quantised)))


class _Writer:
    """Rows of a program, one after another."""

    def __init__(self, decoder: Decoder) -> None:
        self.ops: list[list[int]] = []
        self.numbers: list[tuple[float, float]] = []
        self._forms = _forms(decoder)
        self._eps = decoder.spec.norm_eps

    def add(self, op: int, *fields: Tensor | int, numbers: tuple[float, float] = (0.0, 0.0)) -> None:
        row = [op, *(one if isinstance(one, int) else _address(one) for one in fields)]
        self.ops.append(row + [0] * (FIELDS - len(row)))
        self.numbers.append(numbers)

    def norm(
        self, hidden: Tensor, added: Tensor | int, weight: Tensor, summed: Tensor, normed: Tensor, *, wanted: int = 0
    ) -> None:
        width = weight.shape[0]
        self.add(Op.NORM, hidden, added, weight, summed, normed, width, wanted, numbers=(self._eps, 0.0))

    def product(
        self, weight: Weight, x: Tensor, out: Tensor | int, bias: Tensor | None = None, *, wanted: int = 0
    ) -> None:
        fields = (x, out, 0 if bias is None else bias)
        if isinstance(weight, Panelled):
            self.add(Op.PRODUCT, weight.weights, *fields, weight.inputs, weight.outputs, wanted)
            return
        assert isinstance(weight, Quantised), "Walker.takes asks for this"
        kind = Op.PACKED + self._forms.index(Form(*weight.form))
        groups = weight.scales.shape[1]
        self.add(kind, weight.weights, *fields, weight.inputs, weight.outputs, wanted, weight.scales, groups)


def _table(decoder: Decoder, cache: BlockCache, held: Buffers) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    spec, writer = decoder.spec, _Writer(decoder)
    here, there = held.hidden, held.summed
    added: Tensor | int = 0
    for index, layer in enumerate(decoder.layers):
        writer.norm(here, added, layer.before_attention, there, held.normed)
        writer.product(layer.qkv, held.normed, held.mixed, layer.qkv_bias)
        cosine, sine = decoder.rotary(index)
        writer.add(
            Op.ROTATE, held.mixed, cosine, sine, cosine.shape[1], cache.keys[index], cache.values[index],
            layer.query_norm, layer.key_norm, held.queries, numbers=(spec.norm_eps, 0.0),
        )  # fmt: skip
        writer.add(
            Op.ATTEND, held.queries, cache.keys[index], cache.values[index], held.found, spec.windows[index],
            numbers=(spec.attention_scale, spec.attention_softcap),
        )  # fmt: skip
        writer.product(layer.output, held.found, held.added, layer.output_bias)
        if spec.post_norms:
            writer.norm(held.added, 0, layer.after_attention, held.normed, held.added)
        writer.norm(there, held.added, layer.before_mlp, here, held.normed)
        writer.product(layer.gate_up, held.normed, held.both, layer.gate_up_bias)
        writer.add(Op.GATE, held.both, held.gated, spec.inner, int(spec.activation == "gelu_tanh"))
        writer.product(layer.down, held.gated, held.added, layer.down_bias)
        if spec.post_norms:
            writer.norm(held.added, 0, layer.after_mlp, held.normed, held.added)
        added = held.added
    writer.norm(here, added, decoder.norm, there, held.normed, wanted=1)
    writer.product(decoder.head, held.normed, 0, wanted=1)
    return np.array(writer.ops, np.int64), np.array(writer.numbers)


def _address(tensor: Tensor) -> int:
    """0 of an empty one, which stands for none."""
    return tensor.data_ptr() if tensor.numel() else 0
