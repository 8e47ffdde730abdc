"""BERT and its kin as matrix products with kernels between them: packed rows on a CPU, in float32.

What lies between two products is one kernel, which looks at memory once. The products themselves are torch's, or with
AVX-512 our own: the weights of an encoder are small and used again at once, so they are packed only once. Two biases need no look at all: a key's adds the same to all scores of a query, which softmax takes away again, and a value's
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
from inference.models.on_torch import packing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Ids = np.ndarray[Any, Any]

log = logging.getLogger(__name__)
TOKENS_AT_ONCE = 512  # of a pass through all layers: what it writes stays in the cache of its core
LANES = 16
EMBEDDINGS = ("word_embeddings.weight", "position_embeddings.weight", "token_type_embeddings.weight", "LayerNorm.weight",
              "LayerNorm.bias")  # fmt: skip
LINEARS = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
           "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Norm:
    """LayerNorm's weight and bias [W], and the bias [W] of the product that it follows."""

    added: Any
    weight: Any
    bias: Any


@dataclass(frozen=True, slots=True)
class Product:
    """Rows times a weight [K, N]: torch's, or the kernel's where it is given panels of it [N / 32, K, 32]."""

    weight: torch.Tensor
    panels: Any
    multiply: Any

    def into(self, x: torch.Tensor, out: torch.Tensor, tokens: int) -> None:
        """Gives out [tokens, N and more] = x [tokens, K] times the weight; the kernel writes to the slack behind them too."""
        if self.multiply is None:
            torch.mm(x[:tokens], self.weight, out=out[:tokens, : self.weight.shape[1]])
        else:
            self.multiply(x.numpy(), self.panels, out.numpy(), tokens)


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

    def __init__(self, network: Any, first_position: int) -> None:
        from inference.models.on_torch import encoder_kernels

        config, weights = network.config, network.state_dict()
        self.first_position = first_position
        self._kernels, self._slack = encoder_kernels.compiled(), encoder_kernels.SLACK
        self._queries, self._width = encoder_kernels.QUERIES, int(config.hidden_size)
        self._depth = self._width // int(config.num_attention_heads)
        self._middle = int(config.intermediate_size)
        self._eps = np.float32(config.layer_norm_eps)
        words, positions, types, weight, bias = (weights[f"embeddings.{name}"].numpy() for name in EMBEDDINGS)
        self._embeddings = (words, positions, types[0].copy(), weight, bias)
        self._layers = [
            _layer(network.encoder.layer[index], self._kernels.multiply)
            for index in range(int(config.num_hidden_layers))
        ]
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
            work.scores.numpy(), work.queries.numpy(), work.attended.numpy(),
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

    def _made(self, tokens: int, longest: int) -> Work:
        width, room = self._width, tokens + self._slack
        # One line more than a power of two's multiple: else all rows' beginnings share a few places of the cache.
        columns = (room + LANES - 1) // LANES * LANES + LANES
        shapes = [(room, width), (room, width), (room, width), (room, 2 * width + LANES), (width, columns),
                  (room, self._middle), (self._queries, (longest + 2 * LANES) // LANES * LANES + LANES),
                  (self._queries, self._depth + 2)]  # fmt: skip
        return Work(tokens, longest, *(torch.zeros(shape) for shape in shapes))


def proven(network: Any, way: packing.Packed, pad_id: int, max_tokens: int) -> Fused | None:
    """The fused pass where the network is one of these and it gives the same answers as by itself."""
    if not _is_like_bert(network.config, network.state_dict()):
        return None
    try:
        fused = Fused(network, way.first_position)
    except ImportError as error:
        log.warning("encoders run without their kernels: %s", error)
        return None
    rows = packing.rows(int(network.config.vocab_size), pad_id, max_tokens)
    return fused if packing.agrees(fused, network, rows, [packing.alone(network, row) for row in rows]) else None


def _is_like_bert(config: Any, weights: Mapping[str, torch.Tensor]) -> bool:
    layers, width = getattr(config, "num_hidden_layers", 0), getattr(config, "hidden_size", 0)
    wanted = {f"embeddings.{name}" for name in EMBEDDINGS} | {
        f"encoder.layer.{index}.{name}.{kind}"
        for index in range(layers)
        for name in LINEARS
        for kind in ("weight", "bias")
    }
    given = {name for name in weights if not name.startswith("pooler.") and not name.endswith("_ids")}
    depth, rest = divmod(width, getattr(config, "num_attention_heads", 0) or 1)
    return (
        given == wanted
        and config.hidden_act == "gelu"
        and not getattr(config, "is_decoder", False)
        and not rest
        and depth % (2 * LANES) == 0
        and config.intermediate_size % (2 * LANES) == 0
        and all(
            one.dtype == torch.float32 and one.device.type == "cpu" for name, one in weights.items() if name in wanted
        )
    )


def _layer(layer: Any, multiply: Any) -> Layer:
    own, out, up, down = layer.attention.self, layer.attention.output, layer.intermediate.dense, layer.output
    mixing = torch.cat([own.query.weight.detach(), own.value.weight.detach()])
    # in float64, since the sum over a row would else be rounded at each step
    passed = out.dense.weight.detach().double() @ own.value.bias.detach().double() + out.dense.bias.detach().double()
    return Layer(
        _product(mixing, multiply), own.key.weight.detach(), _numbers(own.query.bias),
        _product(out.dense.weight, multiply), _norm(passed.float(), out.LayerNorm),
        _product(up.weight, multiply), _numbers(up.bias),
        _product(down.dense.weight, multiply), _norm(down.dense.bias, down.LayerNorm),
    )  # fmt: skip


def _product(weight: torch.Tensor, multiply: Any) -> Product:
    turned = weight.detach().t()
    if multiply is None:
        return Product(turned, None, None)
    panels = turned.reshape(turned.shape[0], -1, 2 * LANES).transpose(0, 1).contiguous()
    return Product(turned, panels.numpy(), multiply)


def _norm(added: torch.Tensor, norm: Any) -> Norm:
    return Norm(_numbers(added), _numbers(norm.weight), _numbers(norm.bias))


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
