"""The blocks of the key-value cache: who holds which, what may be shared, and which one is given up next.

The law: a block with a count above zero belongs to that many sequences; one with zero is free, and its content stays
in the prefix cache until it is taken for something else, the least recently used first and a text's tail before its
head. A block's name in the prefix cache is the chained hash of all tokens up to its end (salt and adapter included),
and only full blocks whose keys and values are written have one. A block that is shared or named is never written.
Blocks given up may go to a host tier. This decides; the engine moves the bytes: saves, then copies, then loads.

The scheme is PagedAttention's (Kwon et al. 2023) with the hash chain and LRU order of vLLM v1's prefix cache.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b

from inference.generation.sequence import Sequence

DIGEST_BYTES = 32
Pairs = list[tuple[int, int]]


def digest_of(parent: bytes, tokens: list[int]) -> bytes:
    """The name of a block: blake2b over the parent's name and the token ids as int64."""
    return blake2b(parent + array("q", tokens).tobytes(), digest_size=DIGEST_BYTES).digest()


def root_of(sequence: Sequence) -> bytes:
    """What the first block hangs on: adapter and salt."""
    return blake2b(array("q", [sequence.adapter]).tobytes() + sequence.salt, digest_size=DIGEST_BYTES).digest()


@dataclass(slots=True)
class Transfers:
    """What must be moved before the next forward pass, in this order; the targets of each list are unique.

    saves: (device block, host slot). copies: (source block, target block). loads: (host slot, device block).
    """

    saves: Pairs = field(default_factory=list)
    copies: Pairs = field(default_factory=list)
    loads: Pairs = field(default_factory=list)


@dataclass(slots=True)
class HostTier:
    """Which prefixes lie in which slot of host memory, the least recently used first.

    A slot that a plan under way reads or writes is pinned: it is not given to another prefix before the next plan.
    """

    count: int
    _slots: OrderedDict[bytes, int] = field(default_factory=OrderedDict)
    _free: list[int] = field(default_factory=list)
    _pinned: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._free = list(range(self.count - 1, -1, -1))

    @property
    def used(self) -> int:
        return len(self._slots)

    def find(self, digest: bytes) -> int | None:
        return self._slots.get(digest)

    def touch(self, digest: bytes) -> None:
        self._slots.move_to_end(digest)

    def pin(self, slot: int) -> None:
        self._pinned.add(slot)

    def unpin_all(self) -> None:
        self._pinned.clear()

    def keep(self, digest: bytes) -> int | None:
        """A pinned slot for a new prefix; None where every slot is in use by the plan under way."""
        slot = self._free.pop() if self._free else self._give_up()
        if slot is not None:
            self._slots[digest] = slot
            self._pinned.add(slot)
        return slot

    def _give_up(self) -> int | None:
        for digest, slot in self._slots.items():
            if slot not in self._pinned:
                del self._slots[digest]
                return slot
        return None

    def forget(self) -> None:
        self._slots.clear()
        self._pinned.clear()
        self._free = list(range(self.count - 1, -1, -1))

    def check_integrity(self) -> None:
        """Raises AssertionError that names what is wrong."""
        taken = list(self._slots.values())
        everything = sorted(taken + self._free)
        assert everything == list(range(self.count)), f"host slots used and free are {everything} of {self.count}"
        assert self._pinned <= set(taken), f"pinned host slots hold nothing: {sorted(self._pinned - set(taken))}"


class BlockPool:
    """`count` blocks of `block_size` tokens. offload: blocks that fit the host tier, 0 for none.

    Only the scheduler changes it. `refs[block]` is how many sequences hold the block.
    """

    def __init__(self, count: int, block_size: int, *, caching: bool = True, offload: int = 0) -> None:
        if count < 1 or block_size < 1 or offload < 0:
            raise ValueError(f"A pool needs blocks: count {count}, block_size {block_size}, offload {offload}.")
        self.count = count
        self.block_size = block_size
        self.caching = caching
        self.host = HostTier(offload if caching else 0)
        self.refs = [0] * count
        self.names: list[bytes | None] = [None] * count
        self._cached: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(count))
        self._pending = Transfers()

    @property
    def available(self) -> int:
        """Blocks that nobody holds, cached ones included."""
        return len(self._free)

    @property
    def usage(self) -> float:
        """Share of the blocks that sequences hold, 0..1."""
        return 1 - len(self._free) / self.count

    @property
    def cached(self) -> int:
        """Blocks with a name in the prefix cache, held or not."""
        return len(self._cached)

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    # --- prefixes -----------------------------------------------------------------------------------------------

    def match(self, sequence: Sequence) -> list[int]:
        """Where the sequence's first full blocks are cached: a device block, or ~slot of the host tier, for each.

        The last known token is never part of it: it must be computed, for its logits are wanted.
        """
        found: list[int] = []
        if not self.caching or sequence.every_logit:
            return found
        limit = (sequence.length - 1) // self.block_size
        for index in range(limit):
            digest = self._digest(sequence, index)
            block = self._cached.get(digest)
            if block is None:
                slot = self.host.find(digest)
                if slot is None:
                    break
                block = ~slot
            found.append(block)
        return found

    def cost(self, sequence: Sequence, found: list[int]) -> int:
        """Blocks that leave the free list when the sequence is admitted with all its known tokens."""
        held = sum(1 for block in found if block >= 0 and self.refs[block])
        return self.blocks_for(sequence.length) - held

    def admit(self, sequence: Sequence, found: list[int]) -> None:
        """Gives the sequence blocks for all its known tokens; `cost` of them must be available.

        1. Hits are touched, so that nothing below takes them. 2. Those of the host tier get a block and a load.
        3. Fresh blocks for the rest.
        """
        digests = sequence.digests
        for index, block in enumerate(found):
            if block >= 0:
                self._touch(block)
            else:
                self.host.touch(digests[index])
                self.host.pin(~block)
        blocks = [block if block >= 0 else self._load(~block, digests[index]) for index, block in enumerate(found)]
        blocks += [self._take() for _ in range(self.blocks_for(sequence.length) - len(found))]
        sequence.blocks = blocks
        sequence.sealed = len(found)
        sequence.computed = len(found) * self.block_size

    def seal(self, sequence: Sequence) -> None:
        """Names the blocks that `computed` has filled; where the same prefix is cached already, that one stays."""
        if not self.caching:
            return
        for index in range(sequence.sealed, sequence.computed // self.block_size):
            digest, block = self._digest(sequence, index), sequence.blocks[index]
            if digest not in self._cached and self.names[block] is None:
                self._cached[digest] = block
                self.names[block] = digest
        sequence.sealed = max(sequence.sealed, sequence.computed // self.block_size)

    def forget(self) -> None:
        """Empties the prefix cache of both tiers: adapters have changed, or the bytes of a plan were not moved."""
        for block in self._cached.values():
            self.names[block] = None
        self._cached.clear()
        self.host.forget()

    def _digest(self, sequence: Sequence, index: int) -> bytes:
        digests, size = sequence.digests, self.block_size
        while len(digests) <= index:
            start = len(digests) * size
            parent = digests[-1] if digests else root_of(sequence)
            digests.append(digest_of(parent, sequence.slice(start, start + size)))
        return digests[index]

    def _load(self, slot: int, digest: bytes) -> int:
        block = self._take()
        self._pending.loads.append((slot, block))
        self._cached[digest] = block
        self.names[block] = digest
        return block

    # --- growing, sharing, giving back ---------------------------------------------------------------------------

    def is_writable(self, block: int) -> bool:
        return self.refs[block] == 1 and self.names[block] is None

    def missing(self, sequence: Sequence, tokens: int) -> int:
        """Blocks to be taken before tokens [computed, tokens) can be written, copies included."""
        blocks = sequence.blocks
        index = sequence.computed // self.block_size
        copied = index < len(blocks) and not self.is_writable(blocks[index])
        return max(0, self.blocks_for(tokens) - len(blocks)) + copied

    def grow(self, sequence: Sequence, tokens: int) -> None:
        """Makes tokens [computed, tokens) writable; `missing` of the blocks must be available.

        1. The block that the next token falls into is copied if others hold it too. 2. Fresh blocks are added.
        """
        blocks = sequence.blocks
        index = sequence.computed // self.block_size
        if index < len(blocks) and not self.is_writable(blocks[index]):
            source, target = blocks[index], self._take()
            self._pending.copies.append((source, target))
            blocks[index] = target
            self._release(source)
            sequence.sealed = min(sequence.sealed, index)
        for _ in range(self.blocks_for(tokens) - len(blocks)):
            blocks.append(self._take())

    def share(self, parent: Sequence, child: Sequence) -> None:
        """The child holds the parent's blocks up to its own `computed`, the last of them perhaps in part."""
        child.blocks = parent.blocks[: self.blocks_for(child.computed)]
        for block in child.blocks:
            self.refs[block] += 1
        full = child.computed // self.block_size
        child.digests = parent.digests[:full]
        child.sealed = min(parent.sealed, full)

    def release(self, sequence: Sequence) -> None:
        """Takes all blocks from the sequence, its tail first in the order of reuse."""
        for block in reversed(sequence.blocks):
            self._release(block)
        sequence.blocks = []
        sequence.sealed = 0
        sequence.computed = 0

    def _release(self, block: int) -> None:
        self.refs[block] -= 1
        if not self.refs[block]:
            self._free[block] = None
            if self.names[block] is None:
                self._free.move_to_end(block, last=False)

    def _touch(self, block: int) -> None:
        if not self.refs[block]:
            del self._free[block]
        self.refs[block] += 1

    def _take(self) -> int:
        block, _ = self._free.popitem(last=False)
        digest = self.names[block]
        if digest is not None:
            del self._cached[digest]
            self.names[block] = None
            self._offload(block, digest)
        self.refs[block] = 1
        return block

    def _offload(self, block: int, digest: bytes) -> None:
        if self.host.find(digest) is not None:
            self.host.touch(digest)
        elif self.host.count:
            slot = self.host.keep(digest)
            if slot is not None:
                self._pending.saves.append((block, slot))

    # --- what a plan takes along ---------------------------------------------------------------------------------

    def begin(self) -> None:
        """A new plan: what the last one moved has been moved."""
        self.host.unpin_all()

    def take_transfers(self) -> Transfers:
        transfers, self._pending = self._pending, Transfers()
        return transfers

    def check_integrity(self, tables: Iterable[list[int]] | None = None) -> None:
        """Raises AssertionError that names what is wrong. tables: the block tables of all sequences that hold any."""
        free = {block for block, held in enumerate(self.refs) if not held}
        assert min(self.refs) >= 0, f"a count is negative: {self.refs}"
        assert set(self._free) == free, f"free list and counts differ in {sorted(set(self._free) ^ free)}"
        names = {block: digest for digest, block in self._cached.items()}
        assert len(names) == len(self._cached), "two prefixes name the same block"
        named = {block: digest for block, digest in enumerate(self.names) if digest is not None}
        assert names == named, f"prefix table and names differ in blocks {sorted(names.keys() ^ named.keys())}"
        self.host.check_integrity()
        if tables is not None:
            self._check_owners(tables)

    def _check_owners(self, tables: Iterable[list[int]]) -> None:
        counted: Counter[int] = Counter()
        for table in tables:
            assert len(set(table)) == len(table), f"a table holds a block twice: {table}"
            counted.update(table)
        wrong = {b: (held, counted[b]) for b, held in enumerate(self.refs) if held != counted[b]}
        assert not wrong, f"blocks leaked or owned twice, block: (count, owners): {wrong}"
