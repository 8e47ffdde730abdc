"""BERT and its kin, DistilBERT and MPNet as matrix products with kernels between them: packed rows on a CPU, in float32.

What lies between two products is one kernel, which looks at memory once. The products are our own (`products`): the
weights of an encoder are small and used again at once, so they are packed only once. Two biases need no look at all: a key's adds the same to all scores of a query, which softmax takes away again, and a value's
passes through the shares, which sum to one, so it is part of the next product's bias. Keys are computed a column a token,
as attention reads them. Whether an architecture takes part is decided by the names of its weights, then by `proven`.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from inference.errors import InvalidInput
from inference.models.on_torch import encoder_families, packing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from inference.models.on_torch.encoder_families import Family

    Ids = np.ndarray[Any, Any]

log = logging.getLogger(__name__)
TOKENS_AT_ONCE = 512  # of a pass through all layers: what it writes stays in the cache of its core
LANES, PANEL = 16, 32
LOG2E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class Norm:
    """LayerNorm's weight and bias [W], and the bias [W] of the product that it follows."""

    added: Any
    weight: Any
    bias: Any


@dataclass(frozen=True, slots=True)
class Product:
    """Rows times a weight [K, N], which is held in panels [N / 32, K, 32]."""

    panels: torch.Tensor
    multiply: Any

    def into(self, x: torch.Tensor, out: torch.Tensor, tokens: int) -> None:
        """Gives out [tokens, N and more] = x [tokens, K] times the weight."""
        panels, inputs, width = self.panels.shape
        held = self.panels.data_ptr(), x.data_ptr(), out.data_ptr(), out.stride(0)
        self.multiply(0, 1, 0, *held, 0, tokens, inputs, panels * width)


@dataclass(frozen=True, slots=True)
class Layer:
    """mixing: queries and values [W, 2 W]; keys [W, W]; back [W, W]; up [W, F]; down [F, W]; biases as numpy."""

    mixing: Product
    keys: torch.Tensor
    query_bias: Any
    back: Product
    attended: Norm
    up: Product
    up_bias: Any
    down: Product
    done: Norm


@dataclass(slots=True)
class Work:
    """One thread's memory for passes of up to `tokens` tokens, none of them in a row longer than `longest`."""

    tokens: int
    longest: int
    hidden: torch.Tensor
    attended: torch.Tensor
    product: torch.Tensor
    mixed: torch.Tensor
    keys: torch.Tensor
    middle: torch.Tensor
    scores: torch.Tensor
    queries: torch.Tensor


class Fused:
    """Passes may run side by side, each on its thread's own memory. from_tokens: rows of any length do best so."""

    from_tokens = 0

    def __init__(self, network: Any, family: Family, first_position: int) -> None:
        from inference.models.on_torch import encoder_kernels

        config, weights = network.config, network.state_dict()
        self.first_position = first_position
        self._kernels, self._slack = encoder_kernels.compiled(), encoder_kernels.SLACK
        self._queries, self._width = encoder_kernels.QUERIES, int(config.hidden_size)
        self._depth = self._width // int(config.num_attention_heads)
        self._eps = np.float32(network.embeddings.LayerNorm.eps)
        words, positions, *types, weight, bias = (weights[name].numpy() for name in family.embeddings())
        kind = types[0][0].copy() if types else np.zeros(self._width, np.float32)
        self._embeddings = (words, positions, kind, weight, bias)
        prefix = family.layers
        self._layers = [
            _layer(family, weights, f"{prefix}.{index}.", self._kernels.multiply)
            for index in range(int(config.num_hidden_layers))
        ]
        self._middle = len(self._layers[0].up_bias)
        self._distances = self._padded_distances(network, len(positions)) if family.relative else _nothing(config)
        self._local = threading.local()

    def hidden(self, _network: Any, ids: Sequence[Ids]) -> list[torch.Tensor]:
        """The last hidden states of each row, [its tokens, width]. Raises InvalidInput for ids that have no embedding."""
        return list(itertools.chain.from_iterable(self._pass(part) for part in _parts(ids)))

    def _pass(self, ids: list[Ids]) -> tuple[torch.Tensor, ...]:
        sizes = [one.size for one in ids]
        starts = np.zeros(len(ids) + 1, np.int64)
        np.cumsum(sizes, out=starts[1:])
        tokens = int(starts[-1])
        together = np.ascontiguousarray(np.concatenate(ids), np.int64)
        places = np.arange(self.first_position, self.first_position + tokens) - np.repeat(starts[:-1], sizes)
        self._check(together, places)
        work = self._work(tokens, max(sizes))
        self._kernels.embed(together, places, *self._embeddings, self._eps, work.hidden.numpy())
        for layer in self._layers:
            self._attend(layer, work, tokens, starts)
            self._transform(layer, work, tokens)
        return torch.split(work.hidden[:tokens].clone(), sizes)

    def _check(self, ids: Ids, places: Ids) -> None:
        # The kernels believe what they are told.
        words, positions = (len(table) for table in self._embeddings[:2])
        if int(ids.min()) < 0 or int(ids.max()) >= words or int(places.max()) >= positions:
            raise InvalidInput(
                f"the model cannot take this text: it has {words} tokens and takes {positions - self.first_position} at once"
            )

    def _attend(self, layer: Layer, work: Work, tokens: int, starts: Ids) -> None:
        layer.mixing.into(work.hidden, work.mixed, tokens)
        torch.mm(layer.keys, work.hidden[:tokens].t(), out=work.keys[:, :tokens])
        self._kernels.attend(
            work.mixed.numpy(), work.keys.numpy(), layer.query_bias, starts, np.float32(1 / math.sqrt(self._depth)),
            self._distances, work.scores.numpy(), work.queries.numpy(), work.attended.numpy(),
        )  # fmt: skip
        layer.back.into(work.attended, work.product, tokens)
        self._normalise(layer.attended, work, tokens)

    def _transform(self, layer: Layer, work: Work, tokens: int) -> None:
        layer.up.into(work.hidden, work.middle, tokens)
        self._kernels.add_gelu(work.middle.numpy(), layer.up_bias, tokens)
        layer.down.into(work.middle, work.product, tokens)
        self._normalise(layer.done, work, tokens)

    def _normalise(self, norm: Norm, work: Work, tokens: int) -> None:
        x, hidden = work.product.numpy(), work.hidden.numpy()
        self._kernels.add_norm(x, norm.added, norm.weight, norm.bias, self._eps, tokens, hidden)

    def _work(self, tokens: int, longest: int) -> Work:
        held: Work | None = getattr(self._local, "work", None)
        if held is None or held.tokens < tokens or held.longest < longest:
            held = self._local.work = self._made(max(tokens, TOKENS_AT_ONCE), max(longest, 128))
        return held

    def _padded_distances(self, network: Any, longest: int) -> Any:
        found = encoder_families.distances(network, longest) * LOG2E
        room = self._slack
        return torch.nn.functional.pad(found, (room + 1, room)).contiguous().numpy()

    def _made(self, tokens: int, longest: int) -> Work:
        width, room = self._width, tokens + self._slack
        # One line more than a power of two's multiple: else all rows' beginnings share a few places of the cache.
        columns = (room + LANES - 1) // LANES * LANES + LANES
        shapes = [(room, width), (room, width), (room, width), (room, 2 * width + LANES), (width, columns),
                  (room, self._middle), (self._queries, (longest + 2 * LANES) // LANES * LANES + LANES),
                  (self._queries, self._depth + 2)]  # fmt: skip
        return Work(tokens, longest, *(torch.zeros(shape) for shape in shapes))


def proven(network: Any, way: packing.Packed | None, pad_id: int, max_tokens: int) -> Fused | None:
    """The fused pass where the network is one of these and it gives the same answers as by itself. way: how it is packed
    otherwise, which says where positions begin; without it both beginnings are tried.
    """
    family = encoder_families.family_of(network.config, network.state_dict())
    if family is None:
        return None
    try:
        fused = Fused(network, family, 0)
    except ImportError as error:
        log.warning("encoders run without their kernels: %s", error)
        return None
    rows = packing.rows(int(network.config.vocab_size), pad_id, max_tokens)
    wanted = [packing.alone(network, row) for row in rows]
    for first in (way.first_position,) if way else packing.first_positions(pad_id):
        fused.first_position = first
        if packing.agrees(fused, network, rows, wanted):
            return fused
    return None


def _layer(family: Family, weights: Mapping[str, torch.Tensor], prefix: str, multiply: Any) -> Layer:
    def of(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return weights[f"{prefix}{name}.weight"], weights[f"{prefix}{name}.bias"]

    (query, query_bias), (key, _), (value, value_bias) = of(family.query), of(family.key), of(family.value)
    (back, back_bias), (up, up_bias), (down, down_bias) = of(family.back), of(family.up), of(family.down)
    # in float64, since the sum over a row would else be rounded at each step
    passed = (back.double() @ value_bias.double() + back_bias.double()).float()
    return Layer(
        Product(panels_of(torch.cat([query, value])), multiply), key, _numbers(query_bias),
        Product(panels_of(back), multiply), _norm(passed, *of(family.attended)),
        Product(panels_of(up), multiply), _numbers(up_bias),
        Product(panels_of(down), multiply), _norm(down_bias, *of(family.done)),
    )  # fmt: skip


def panels_of(weight: torch.Tensor) -> torch.Tensor:
    """[N / 32, K, 32]: a linear layer's weight [N, K], as the product reads it."""
    outputs, inputs = weight.shape
    return weight.detach().reshape(outputs // PANEL, PANEL, inputs).transpose(1, 2).contiguous()


def _norm(added: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Norm:
    return Norm(_numbers(added), _numbers(weight), _numbers(bias))


def _nothing(config: Any) -> Any:
    return np.zeros((int(config.num_attention_heads), 0), np.float32)


def _numbers(tensor: torch.Tensor) -> Any:
    # Copied out of the mapped file, where nothing is aligned.
    return tensor.detach().clone().numpy()


def _parts(ids: Sequence[Ids]) -> Iterator[list[Ids]]:
    """The rows in parts of about the same size, of TOKENS_AT_ONCE at most if no row is longer."""
    total = sum(one.size for one in ids)
    wanted = total / math.ceil(total / TOKENS_AT_ONCE)
    part: list[Ids] = []
    held = 0
    for one in ids:
        if part and (held + one.size > TOKENS_AT_ONCE or held >= wanted):
            yield part
            part, held = [], 0
        part.append(one)
        held += one.size
    yield part
