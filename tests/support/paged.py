"""A language model that one can calculate by hand, over a paged cache: it tells every mistake of a block table.

The cache holds in each slot a chained hash of the text up to there, made from what the slot of the position before
holds, as attention would see it through the block table. The next token is that hash modulo the vocabulary. So a
wrong prefix hit, a missing copy, a block given away too early or a load before its save changes the text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from inference.generation.scheduler import Flat, Item, Plan, flatten
from inference.generation.sequence import Sequence

NOTHING = -1
MASK = (1 << 61) - 1


def root(sequence: Sequence) -> int:
    return hash((int.from_bytes(sequence.salt, "big"), sequence.adapter)) & MASK


def chained(before: int, token: int) -> int:
    return hash((before, token)) & MASK


def greedy(sequence: Sequence, prompt: list[int], count: int, vocabulary: int) -> list[int]:
    """What the model says after `prompt`, alone and without a cache."""
    key, made = root(sequence), []
    for token in prompt:
        key = chained(key, token)
    for _ in range(count):
        made.append(key % vocabulary)
        key = chained(key, made[-1])
    return made


@dataclass
class PagedModel:
    """`blocks` and `host` blocks of `size` slots; `vocabulary` tokens."""

    blocks: int
    size: int
    host: int = 0
    vocabulary: int = 3
    device: list[list[int]] = field(init=False)
    saved: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.device = [[NOTHING] * self.size for _ in range(self.blocks)]
        self.saved = [[NOTHING] * self.size for _ in range(self.host)]

    def step(self, plan: Plan) -> list[list[int]]:
        """Moves what the plan says, writes its tokens, and gives each item's new ones (drafts verified)."""
        self.move(plan)
        flat = flatten(plan)
        results, row = [], 0
        for index, item in enumerate(plan.items):
            keys = self._write(flat, index, item)
            rows = flat.rows[index]
            begin = flat.starts[index]
            wanted = [keys[at - begin] for at in flat.wanted[row : row + rows]]
            row += rows
            self.check(item.sequence, item.start + item.count - len(item.drafts))
            results.append(self._accepted(item, wanted) if item.wants_logits else [])
        assert row == len(flat.wanted)
        return results

    def move(self, plan: Plan) -> None:
        for moves, at in ((plan.saves, 1), (plan.copies, 1), (plan.loads, 1)):
            assert len({pair[at] for pair in moves}) == len(moves), f"targets are not unique: {moves}"
        for block, slot in plan.saves:
            self.saved[slot] = list(self.device[block])
        for source, target in plan.copies:
            self.device[target] = list(self.device[source])
        for slot, block in plan.loads:
            self.device[block] = list(self.saved[slot])

    def _write(self, flat: Flat, index: int, item: Item) -> list[int]:
        begin, end = flat.starts[index], flat.starts[index + 1]
        table = flat.tables[index * flat.width : (index + 1) * flat.width]
        assert flat.lengths[index] == item.start + item.count
        keys = []
        for row in range(begin, end):
            position = flat.positions[row]
            before = root(item.sequence) if position == 0 else self._read(table, position - 1)
            keys.append(chained(before, flat.tokens[row]))
            block, offset = divmod(flat.slots[row], self.size)
            assert block == table[position // self.size], "slot and table differ"
            assert offset == position % self.size
            self.device[block][offset] = keys[-1]
        return keys

    def _read(self, table: Iterable[int], position: int) -> int:
        return self.device[list(table)[position // self.size]][position % self.size]

    def _accepted(self, item: Item, keys: list[int]) -> list[int]:
        keys = keys[-1 - len(item.drafts) :]
        new: list[int] = []
        for draft, key in zip([*item.drafts, NOTHING], keys, strict=True):
            new.append(key % self.vocabulary)
            if draft != new[-1]:
                break
        return new

    def check(self, sequence: Sequence, computed: int) -> None:
        """The sequence's table holds exactly its own text, up to `computed`."""
        key = root(sequence)
        for position, token in enumerate(sequence.tokens[:computed]):
            key = chained(key, token)
            found = self._read(sequence.blocks, position)
            assert found == key, f"sequence {sequence.id} reads another text at position {position}"
