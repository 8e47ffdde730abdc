"""Keys and values of all layers, in blocks: [layers, blocks, kv_heads, block_size, head_width] each."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from inference.errors import OutOfMemory
from inference.models.on_torch.language.attention import plain
from inference.models.on_torch.language.spec import DecoderSpec


def block_bytes(spec: DecoderSpec, block_size: int, dtype: torch.dtype) -> int:
    return 2 * spec.layers * spec.kv_heads * block_size * spec.head_width * dtype.itemsize


class BlockCache:
    """Raises OutOfMemory where the device has no room."""

    def __init__(self, spec: DecoderSpec, blocks: int, block_size: int, dtype: torch.dtype, device: str) -> None:
        shape = (spec.layers, blocks, spec.kv_heads, block_size, spec.head_width)
        try:
            self.keys = torch.zeros(shape, dtype=dtype, device=device)
            self.values = torch.zeros(shape, dtype=dtype, device=device)
        except RuntimeError as error:
            raise OutOfMemory(f"{blocks} blocks of keys and values do not fit the device") from error
        self.blocks, self.block_size = blocks, block_size

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        source = torch.tensor([one for one, _ in pairs], device=self.keys.device)
        target = torch.tensor([two for _, two in pairs], device=self.keys.device)
        for tensor in (plain(self.keys), plain(self.values)):
            tensor[:, target] = tensor[:, source]

    def save(self, blocks: Sequence[int]) -> torch.Tensor:
        """[blocks, 2, layers, kv_heads, block_size, head_width] on the host; fp8 as bytes."""
        chosen = torch.tensor(list(blocks), device=self.keys.device)
        both = torch.stack((plain(self.keys)[:, chosen], plain(self.values)[:, chosen]))
        return both.permute(2, 0, 1, 3, 4, 5).contiguous().cpu()

    def load(self, blocks: Sequence[int], saved: torch.Tensor) -> None:
        chosen = torch.tensor(list(blocks), device=self.keys.device)
        both = saved.to(self.keys.device).permute(1, 2, 0, 3, 4, 5)
        plain(self.keys)[:, chosen] = both[0]
        plain(self.values)[:, chosen] = both[1]
