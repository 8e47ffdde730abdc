"""Keys and values of layers that differ in their sizes, in blocks: for each layer [blocks, kv_heads, block_size, width]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from inference.errors import OutOfMemory

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one layer keeps of a token: kv_heads times a key of key_width and a value of value_width numbers."""

    kv_heads: int
    key_width: int
    value_width: int


class LayerCache:
    """Raises OutOfMemory where the device has no room."""

    def __init__(
        self, shapes: Sequence[LayerShape], blocks: int, block_size: int, *, dtype: torch.dtype, device: str
    ) -> None:
        self.blocks, self.block_size = blocks, block_size

        def made(one: LayerShape, width: int) -> Tensor:
            return torch.zeros(blocks, one.kv_heads, block_size, width, dtype=dtype, device=device)

        try:
            self.keys = [made(one, one.key_width) for one in shapes]
            self.values = [made(one, one.value_width) for one in shapes]
        except RuntimeError as error:
            raise OutOfMemory(f"{blocks} blocks of keys and values do not fit the device") from error

    @staticmethod
    def block_bytes(shapes: Sequence[LayerShape], block_size: int, dtype: torch.dtype) -> int:
        return sum(one.kv_heads * (one.key_width + one.value_width) for one in shapes) * block_size * dtype.itemsize

    def store(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """key, value: [T, kv_heads, width of that layer]; slots: int64 [T], on the device."""
        block, offset = slots // self.block_size, slots % self.block_size
        self.keys[layer][block, :, offset] = key.to(self.keys[layer].dtype)
        self.values[layer][block, :, offset] = value.to(self.values[layer].dtype)

    def gathered(self, layer: int, table: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """([kv_heads, length, key width], [kv_heads, length, value width]) of one sequence, in the order of its text."""
        blocks = table[: -(-length // self.block_size)].long()
        return tuple(  # type: ignore[return-value]
            one[layer][blocks].transpose(0, 1).flatten(1, 2)[:, :length] for one in (self.keys, self.values)
        )

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        source, target = (torch.tensor(one, device=self.keys[0].device) for one in zip(*pairs, strict=True))
        for tensor in self.keys + self.values:
            tensor[target] = tensor[source]

    def save(self, blocks: Sequence[int]) -> Tensor:
        """[blocks, numbers of a block over all layers] on the host."""
        chosen = torch.tensor(list(blocks), device=self.keys[0].device)
        return torch.cat([one[chosen].flatten(1) for one in self.keys + self.values], dim=1).cpu()

    def load(self, blocks: Sequence[int], saved: Tensor) -> None:
        chosen = torch.tensor(list(blocks), device=self.keys[0].device)
        every = self.keys + self.values
        parts = torch.split(saved.to(self.keys[0].device), [one[0].numel() for one in every], dim=1)
        for one, part in zip(every, parts, strict=True):
            one[chosen] = part.reshape(len(chosen), *one.shape[1:])
