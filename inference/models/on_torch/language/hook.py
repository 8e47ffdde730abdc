"""transformers' own attention interface as a door to our blocks of keys and values.

`attend` is what a model of transformers calls in the place of its attention: it puts the new tokens' keys and values into
their slots, and lets each token look at its own sequence's blocks. `masked` is what the model asks for a mask: it gives
back one number, how many tokens a token sees, read from the rule that the model hands over. A model that knows nothing
of the interface is given `PagedLayer`s as its cache instead, one sequence at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.cache_utils import CacheLayerMixin
from transformers.masking_utils import AttentionMaskInterface

from inference.models.on_torch.language import attention
from inference.models.on_torch.language.layer_cache import LayerCache, LayerShape

Tensor = torch.Tensor
NAME = "serinus_blocks"
_current = threading.local()


UNKNOWN = -1


class UnknownMaskError(ValueError):
    """A layer's tokens see other tokens than all before them, or the last few."""


@dataclass(slots=True)
class Pass:
    """One forward pass through the hook. cache, batch: None in the first pass of all, which finds out the layers' shapes
    and what masks the model asks for, by turns: windows, 0 where a token sees all before it; context: the longest text; window: the largest of any layer.
    """

    cache: LayerCache | None
    batch: attention.Batch | None
    context: int
    windows: list[int] = field(default_factory=list)
    shapes: list[LayerShape] = field(default_factory=list)
    layers: int = 0
    masks: int = 0
    window: int = 0


@contextmanager
def through(one: Pass) -> Iterator[None]:
    """Within, models of this thread run their attention for that pass."""
    _current.one = one
    try:
        yield
    finally:
        _current.one = None


def attend(
    _module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """[1, heads, T, width] -> [1, T, heads, width of values]. s_aux: [heads], a score that takes a share and gives nothing.

    A layer is known by its turn: models call their layers in the same order in every pass.
    """
    one: Pass = _current.one
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))  # [T, heads, width]
    layer, one.layers = one.layers, one.layers + 1
    window = int(attention_mask) if attention_mask is not None else int(sliding_window or 0)
    if window == UNKNOWN:
        raise UnknownMaskError("its tokens see other tokens than all before them, or the last few")
    if one.cache is None or one.batch is None:
        one.window = max(one.window, window if window < one.context else 0)
        one.shapes.append(LayerShape(key.shape[1], key.shape[2], value.shape[2]))
        return query.new_zeros(1, *query.shape[:2], value.shape[2]), None
    one.cache.store(layer, one.batch.slots, key, value)
    shape = attention.Shape(scaling or query.shape[2] ** -0.5, window, softcap or 0.0)
    keys, values = one.cache.keys[layer], one.cache.values[layer]
    found = attention.attend(query.contiguous(), keys, values, one.batch, shape, s_aux)
    return found[None], None


def masked(*, mask_function: Callable[..., Any], **_: Any) -> Tensor:
    """How many tokens a token sees with that rule, 0 for all before it: int64 [1, 1, 1, 1] on the host, where nobody has
    to wait for it. UNKNOWN for another rule: models ask for masks that no layer uses.
    """
    one: Pass = _current.one
    turn, one.masks = one.masks, one.masks + 1
    if turn == len(one.windows):
        one.windows.append(_window(mask_function, one.context))
    return torch.full((1, 1, 1, 1), one.windows[turn], dtype=torch.int64)


def _window(mask_function: Callable[..., Any], context: int) -> int:
    nothing = torch.zeros((), dtype=torch.int64)
    whole, cut = -1, set()
    for place in sorted({0, context // 3, context // 2, context - 1}):
        others = torch.arange(place + 2)
        told = mask_function(nothing, nothing, torch.full_like(others, place), others)
        seen = torch.as_tensor(told, dtype=torch.bool).expand(len(others))
        first = int(seen.to(torch.uint8).argmax())
        if seen[place + 1] or not seen[first : place + 1].all():
            return UNKNOWN
        if first:
            cut.add(place + 1 - first)
        else:
            whole = place
    moves_along = len(cut) <= 1 and (not cut or whole < min(cut))
    return min(cut, default=0) if moves_along else UNKNOWN


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, masked)


class PagedLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's cache as a model of transformers wants it, of one sequence in our blocks."""

    is_sliding = False
    is_croppable = False

    def __init__(self, cache: LayerCache, layer: int, table: Tensor, *, slots: Tensor, past: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cache, self._layer, self._table, self._slots, self._length = cache, layer, table, slots, past
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """There is nothing to do: the blocks are allocated."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """key_states, value_states: [1, kv_heads, new tokens, width]; gives all of the sequence, as [1, kv_heads, ...]."""
        self._length += key_states.shape[2]
        self._cache.store(self._layer, self._slots, key_states[0].transpose(0, 1), value_states[0].transpose(0, 1))
        keys, values = self._cache.gathered(self._layer, self._table, self._length)
        return keys[None].to(key_states.dtype), values[None].to(value_states.dtype)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._length + query_length, 0

    def get_seq_length(self) -> int:
        return self._length

    def get_max_length(self) -> int:
        return -1
