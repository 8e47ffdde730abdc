"""How much memory keys and values may take, and how many blocks that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from inference.errors import Rejected

if TYPE_CHECKING:
    from inference.models.language import LanguageModel
    from inference.protocol.settings import GenerationSettings

HOST_SHARE = 0.25  # of the memory that is free, where the version says nothing
HOST_MOST_BYTES = 2 << 30
WORK_BYTES = 256 << 20  # what a pass needs beside keys and values
DEVICE_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class CacheSize:
    """blocks: of keys and values; host_blocks: of the offload tier; block_bytes: of one, with the draft model's own."""

    blocks: int
    host_blocks: int
    block_bytes: int

    @property
    def bytes(self) -> int:
        return self.blocks * self.block_bytes


def cache_size(
    model: LanguageModel,
    settings: GenerationSettings,
    *,
    device: str = "cpu",
    device_bytes: int = 0,
    left_bytes: int = 0,
    reserved_bytes: int = 0,
    draft: LanguageModel | None = None,
) -> CacheSize:
    """As many blocks as `cache_bytes` says, else as the free memory allows, and never more than all sequences can use.
    A draft model has as many of its own, out of the same memory.

    device_bytes: what this process may take of its accelerator in all, 0 for what is free; left_bytes: of the host's
    memory before this process meets its bound, 0 for none; reserved_bytes: of these, what adapters that come later may
    take (a version whose bound was set without them keeps half of its room for keys and values).

    Raises Rejected where not even 16 blocks fit.
    """
    answering = model.block_bytes(settings.block_size)
    one = answering + (draft.block_bytes(settings.block_size) if draft is not None else 0)
    per_sequence = -(-model.facts.max_context // settings.block_size)
    most = per_sequence * settings.max_num_seqs
    room = settings.cache_bytes or _free_bytes(device, device_bytes, reserved_bytes)
    if not settings.cache_bytes and device == "cpu":
        room = max(min(room, HOST_MOST_BYTES), min(per_sequence * one, psutil.virtual_memory().available // 2))
        room = min(room, _without(max(0, left_bytes - WORK_BYTES), reserved_bytes)) if left_bytes else room
    blocks = min(most, room // one)
    if blocks < min(16, per_sequence):
        raise Rejected(
            f"{room} bytes hold {blocks} blocks of keys and values of {one} bytes: too few for a text",
            remedy="set generation.cache_bytes higher, max_model_len lower, or use a device with more memory",
            check="load",
        )
    return CacheSize(blocks, settings.offload_bytes // answering, one)


def _without(room: int, reserved: int) -> int:
    return room - min(reserved, room // 2)


def _free_bytes(device: str, device_bytes: int, reserved: int) -> int:
    if device == "cpu":
        return int(psutil.virtual_memory().available * HOST_SHARE)
    import torch

    free, _ = torch.cuda.mem_get_info()
    if device_bytes:
        free = min(free, device_bytes - torch.cuda.memory_reserved())
    return _without(int(free * DEVICE_SHARE), reserved)
