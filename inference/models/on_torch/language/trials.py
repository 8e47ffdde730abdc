"""Which way of running a model of transformers gives its own answers: found by trying, on two texts of a few tokens."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from inference.errors import OutOfMemory, Rejected
from inference.models.language import Step

if TYPE_CHECKING:
    from inference.models.on_torch.language.transformers_model import TransformersModel

log = logging.getLogger(__name__)
BLOCK = 8
TEXTS = (21, 9)  # tokens
PIECES = ((9, 4), (11, 4), (1, 1))  # of both texts, in each of three passes
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}  # of the largest logit's size
UNLIKE = "Serve a model of another architecture, or export its forward pass with torch.export."


def choose(model: TransformersModel, ways: dict[str, Callable[[], bool]]) -> str:
    """The first way that is open to this model and gives its own logits. Raises Rejected with what went wrong."""
    texts = _texts(model)
    wanted = [model.own_logits(text) for text in texts]
    if not all(bool(one.isfinite().all()) for one in wanted):
        raise Rejected(
            "the model's logits hold NaN or infinity", remedy="upload weights that are numbers", check="load"
        )
    why = "transformers' attention interface and cache are closed to it"
    for way, is_open in ways.items():
        if not is_open():
            continue
        try:
            model.try_way(way)
            error = _error(model, texts, wanted)
        except OutOfMemory:
            raise
        except Exception as raised:  # noqa: BLE001 (whatever a class raises, this is not its way)
            why = f"{type(raised).__name__}: {str(raised)[:200]}"
            log.info("the way %r is closed: %s", way, why)
            continue
        if error <= TOLERANCE[model.dtype]:
            model.cache = None
            return way
        log.info("the way %r gives other answers, by %.2g of their size", way, error)
        why = f"its answers over blocks differ from its own by {error:.2g} of their size"
    name = type(model.network).__name__
    raise Rejected(f"{name} cannot be served through transformers: {why}", remedy=UNLIKE, check="load")


def _texts(model: TransformersModel) -> list[list[int]]:
    mind = torch.Generator().manual_seed(11)
    rows = int(model.network.get_input_embeddings().weight.shape[0])
    return [torch.randint(0, rows, (min(size, model.context),), generator=mind).tolist() for size in TEXTS]


def _error(model: TransformersModel, texts: list[list[int]], wanted: list[torch.Tensor]) -> float:
    """The largest difference to `wanted`, in parts of the largest logit, of passes over pieces of both texts at once."""
    blocks = -(-max(TEXTS) // BLOCK)
    model.allocate(2 * blocks, BLOCK)
    done, worst = [0, 0], 0.0
    for counts in PIECES:
        pieces = [text[begin : begin + count] for text, begin, count in zip(texts, done, counts, strict=True)]
        logits = model.forward(_step(pieces, done, blocks))
        own = torch.cat([one[begin:][: len(piece)] for one, begin, piece in zip(wanted, done, pieces, strict=True)])
        done = [begin + len(piece) for begin, piece in zip(done, pieces, strict=True)]
        if len(own):
            error = float((logits - own).abs().max() / wanted[0].abs().max())
            worst = error if math.isnan(error) else max(worst, error)
        if math.isnan(worst):
            break
    return worst


def _step(pieces: list[list[int]], done: list[int], blocks: int) -> Step:
    """One pass over a piece of each text; text i has the blocks i * n, ..., i * n + n - 1, the last one first."""
    tables = [list(range((n + 1) * blocks - 1, n * blocks - 1, -1)) for n in range(len(pieces))]
    places = [range(begin, begin + len(piece)) for begin, piece in zip(done, pieces, strict=True)]
    slots = [
        table[place // BLOCK] * BLOCK + place % BLOCK
        for table, own in zip(tables, places, strict=True)
        for place in own
    ]
    sizes = torch.tensor([0, *(len(piece) for piece in pieces)])
    return Step(
        tokens=torch.tensor([token for piece in pieces for token in piece], dtype=torch.int64),
        positions=torch.tensor([place for own in places for place in own], dtype=torch.int64),
        slots=torch.tensor(slots, dtype=torch.int64),
        starts=sizes.cumsum(0).to(torch.int32),
        lengths=torch.tensor([own.stop for own in places], dtype=torch.int32),
        tables=torch.tensor(tables, dtype=torch.int32),
        wanted=torch.arange(int(sizes.sum())),
    )
