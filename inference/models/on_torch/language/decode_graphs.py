"""Steps in which every sequence brings one token, as CUDA graphs: recorded once for each of a few batch sizes, then replayed.

A step of fewer sequences than the recorded ones fills the rest with rows that nobody reads, whose keys and values go into a
block of their own. What a graph reads lies in tensors that stay where they are, and are written before each replay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from inference.models.language import Step
from inference.models.on_torch.language import paged_triton
from inference.models.on_torch.language.attention import Batch

Tensor = torch.Tensor
Pass = Callable[[], Tensor]
Record = Callable[[Pass], tuple[Callable[[], object], Tensor]]
WARM_UPS = 2


@dataclass(frozen=True, slots=True, eq=False)
class _Recorded:
    batch: Batch
    replay: Callable[[], object]
    logits: Tensor


class DecodeGraphs:
    """run: the pass that is recorded; largest: sequences of a step; width: blocks of the longest text; spare: the block
    that rows without a sequence use; group: query heads that share a head of keys; record: how a pass is recorded.
    """

    def __init__(
        self,
        run: Callable[[Batch], Tensor],
        *,
        largest: int,
        width: int,
        spare: int,
        block_size: int,
        group: int,
        device: str,
        record: Record | None = None,
    ) -> None:
        self._width, self._spare, self._block_size, self._group = width, spare, block_size, group
        self._device = device
        record = record or recorded
        self._by_size: dict[int, _Recorded] = {}
        for size in sizes_up_to(largest)[::-1]:  # the largest first, so that the others fit into its memory
            batch = self._batch(size)
            self._by_size[size] = _Recorded(batch, *record(partial(run, batch)))

    def forward(self, step: Step) -> Tensor | None:
        """Logits [S, vocabulary]; None for a step that is none of decodes alone."""
        count = len(step.lengths)
        size = next((size for size in sorted(self._by_size) if size >= count), 0)
        if not size or len(step.tokens) != count or len(step.wanted) != count or step.adapters is not None:
            return None
        one = self._by_size[size]
        self._fill(one.batch, step, count)
        one.replay()
        return one.logits[:count].clone()

    def _fill(self, batch: Batch, step: Step, count: int) -> None:
        self._clear(batch, count)
        for target, source in (
            (batch.tokens, step.tokens),
            (batch.positions, step.positions),
            (batch.slots, step.slots),
            (batch.lengths, step.lengths),
            (batch.tables[:, : step.tables.shape[1]], step.tables),
        ):
            target[:count].copy_(source, non_blocking=True)

    def _clear(self, batch: Batch, begin: int) -> None:
        """Rows from `begin` on are nobody's."""
        batch.tokens[begin:] = 0
        batch.positions[begin:] = 0
        batch.slots[begin:] = self._spare * self._block_size
        batch.lengths[begin:] = 1
        batch.tables[begin:] = self._spare

    def _batch(self, size: int) -> Batch:
        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self._device)

        tokens = paged_triton.tokens_of_a_tile(self._group, 1)
        every = torch.arange(size + 1, dtype=torch.int32, device=self._device)
        batch = Batch(
            tokens=zeros(size),
            positions=zeros(size),
            slots=zeros(size),
            tables=zeros(size, self._width, dtype=torch.int32),
            wanted=every[:-1].long(),
            starts=every,
            lengths=zeros(size, dtype=torch.int32),
            spans=[],
            is_compiled=False,
            tiles=torch.stack((every[:-1], torch.zeros_like(every[:-1])), dim=1).contiguous(),
            tile_tokens=tokens,
        )
        self._clear(batch, 0)
        return batch


def sizes_up_to(largest: int) -> list[int]:
    """1, 2, 4, 8, then every 8 up to 64, then every 32, as far as `largest` needs."""
    steps = [1, 2, 4, *range(8, 65, 8), *range(96, 513, 32)]
    found = [size for size in steps if size < largest]
    return [*found, *steps[len(found) : len(found) + 1]]


def recorded(run: Pass) -> tuple[Callable[[], object], Tensor]:
    """(replay, what it gives), recorded on the current CUDA device."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):  # compiles kernels, which cannot be recorded
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = run()
    return graph.replay, logits
