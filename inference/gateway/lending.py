"""The blocks of memory that one link lends to its replica: large bodies are received into them, answers come in them.

The laws: a block is taken again only when nobody here refers to it and the replica has answered who it was taken for;
where that is not known (a caller left, a fault, a lost connection) the block is given up. All links together hold at
most BUDGET_BYTES; beyond, and until the replica has mapped a new block, tensors go through the socket as ever.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from inference.protocol import blocks
from inference.protocol.blocks import Block
from inference.protocol.memory import ALIGNED_TO

LEAST_BYTES = 256 << 10
BUDGET_BYTES = 128 << 20
STEP_BYTES = 256 << 10
IDLE_S = 10.0
_UNUSED = 3  # references to a block that nobody uses: the list's, a loop's, and getrefcount's own

Part = bytes | memoryview


@dataclass(slots=True)
class Budget:
    """Bytes that all links of a gateway may still lend."""

    left_bytes: int = BUDGET_BYTES


class Lender:
    """One link's blocks. offer: begins to lend a new one; recall: tells the replica that one is given up."""

    def __init__(self, budget: Budget, offer: Callable[[Block], None], recall: Callable[[int], None]) -> None:
        self._budget = budget
        self._offer = offer
        self._recall = recall
        self._blocks: list[Block] = []
        self._numbers = count(1)
        self.room_bytes = 0  # of the last answer, if it was large
        self.is_open = False  # whether there is a replica that takes blocks
        self.mapped: set[int] = set()  # by the replica, on the connection that stands

    def take(self, size: int, offset: int) -> memoryview | None:
        """`size` bytes for a body, which begin `offset` after a multiple of ALIGNED_TO; None: not from here."""
        start = offset % ALIGNED_TO
        block = self._take(start + size, is_for_answers=False) if self.is_open else None
        return None if block is None else memoryview(block)[start : start + size]

    def place(self, parts: Sequence[Part]) -> tuple[int, int]:
        """(block, offset) of tensors that lie one after the other in a block the replica has mapped; (0, 0): they do
        not.
        """
        block = block_of(parts)
        if block is None or block.lender is not self or block.number not in self.mapped:
            return 0, 0
        start = at = _address(parts[0])
        for part in parts:
            if block_of((part,)) is not block or _address(part) != at:
                return 0, 0
            at += len(part)
        return block.number, start - _address(memoryview(block))

    def copied(self, parts: Sequence[Part], size: int) -> memoryview | None:
        """These parts, `size` bytes in all, one after the other in a block that the replica has mapped; None where no
        such block is free.
        """
        block = self._free(size, is_for_answers=False) if self.is_open else None
        if block is None or block.number not in self.mapped:
            return None
        view, at = memoryview(block)[:size], 0
        for part in parts:
            view[at : at + len(part)] = part
            at += len(part)
        return view

    def prepare(self, parts: Sequence[Part], size: int) -> None:
        """These parts went through the socket: the next ones of their size shall find a block to be copied into."""
        if self.is_open and lender_of(parts) is not self:  # a block of its own is on its way to being mapped
            self._take(size, is_for_answers=False)

    def room(self) -> memoryview | None:
        """Memory for an answer such as the last one, if that was large; None: it shall come through the socket."""
        if not self.room_bytes or not self.is_open:
            return None
        block = self._take(self.room_bytes, is_for_answers=True)
        return memoryview(block) if block is not None and block.number in self.mapped else None

    def saw_answer(self, size: int) -> None:
        self.room_bytes = size if size >= LEAST_BYTES else 0

    def is_mapped(self, number: int) -> None:
        """The replica says so."""
        if any(block.number == number for block in self._blocks):
            self.mapped.add(number)
        else:
            self._recall(number)  # it was given up meanwhile

    def give_up(self, parts: Sequence[Part]) -> None:
        """Nobody knows whether the replica still reads this body: its block, if it lies in one, is not used again."""
        block = block_of(parts)
        if block is not None and block in self._blocks:
            self._drop(block)

    def lost(self) -> None:
        """The connection has ended: who was lent what is not known any more."""
        self.is_open = False
        self.mapped.clear()
        for block in list(self._blocks):
            self._drop(block)

    def tidy(self, now: float) -> None:
        """Gives up what nobody has used for IDLE_S."""
        for block in list(self._blocks):
            # the copy of the list refers to it too
            if now - block.used_at > IDLE_S and sys.getrefcount(block) == _UNUSED + 1:
                self._drop(block)

    def _take(self, size: int, *, is_for_answers: bool) -> Block | None:
        found = self._free(size, is_for_answers=is_for_answers)
        return found if found is not None else self._make(size, is_for_answers=is_for_answers)

    def _free(self, size: int, *, is_for_answers: bool) -> Block | None:
        for block in self._blocks:
            if (
                block.is_for_answers is is_for_answers
                and size <= len(block) <= 2 * size + STEP_BYTES
                and sys.getrefcount(block) == _UNUSED
            ):
                block.used_at = time.monotonic()
                return block
        return None

    def _make(self, size: int, *, is_for_answers: bool) -> Block | None:
        whole = -(-size // STEP_BYTES) * STEP_BYTES
        if whole > self._budget.left_bytes:
            return None
        try:
            block = blocks.made(next(self._numbers), whole, is_for_answers=is_for_answers)
        except OSError:
            return None
        self._budget.left_bytes -= whole
        block.lender, block.used_at = self, time.monotonic()
        self._blocks.append(block)
        self._offer(block)
        return block

    def _drop(self, block: Block) -> None:
        self._blocks.remove(block)
        self._budget.left_bytes += len(block)
        blocks.closed(block)
        if block.number in self.mapped:
            self.mapped.discard(block.number)
            self._recall(block.number)


def block_of(parts: Sequence[Part]) -> Block | None:
    """The block that the first of these parts lies in."""
    first = parts[0] if parts else None
    if type(first) is memoryview and type(first.obj) is Block:
        return first.obj
    return None


def lender_of(parts: Sequence[Part]) -> object:
    """Whose block a body lies in, None for other memory."""
    block = block_of(parts)
    return None if block is None else block.lender


def number_of(room: memoryview | None) -> int:
    """The number of the block that is an answer's room, 0 without one."""
    return room.obj.number if room is not None and isinstance(room.obj, Block) else 0


def _address(part: Part) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(part)) if len(part) else 0
