"""What one iteration does: which tokens of which sequences, and what must be moved before; and the same as flat arrays."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from inference.generation.blocks import Pairs
from inference.generation.sequence import Sequence


@dataclass(slots=True, eq=False)
class Item:
    """A sequence's part: `count` tokens from position `start` on, of which the last are the `drafts`.

    wants_logits: it reaches the end of the known tokens, so that 1 + len(drafts) rows of logits give new ones; a
    prompt's chunk before its end gives none (unless the sequence wants every logit).
    """

    sequence: Sequence
    start: int
    count: int
    drafts: list[int]
    wants_logits: bool


@dataclass(slots=True, eq=False)
class Plan:
    """One iteration. The engine moves saves, then copies, then loads, then runs the items in one forward pass.

    saves: (device block, host slot); copies: (source block, target block); loads: (host slot, device block).
    A plan without items has nothing to be moved. tokens: of all items; decode_tokens: one for each sequence that only
    lacked its newest; draft_tokens; prompt_tokens: the rest.
    """

    block_size: int
    items: list[Item] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)
    saves: Pairs = field(default_factory=list)
    copies: Pairs = field(default_factory=list)
    loads: Pairs = field(default_factory=list)
    decode_tokens: int = 0
    draft_tokens: int = 0
    prompt_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.decode_tokens + self.draft_tokens + self.prompt_tokens


@dataclass(slots=True, eq=False)
class Flat:
    """A plan as the tensors of a `Step`, T tokens of S sequences with L rows of logits; `q` is int64, `i` is int32.

    tokens, positions, slots: q [T]. starts: i [S + 1]. lengths: i [S]. tables: i [S * width], row after row, padded
    with 0. wanted: q [L], rows of T. rows: i [S], how many of L are each sequence's. adapters: i [S]; None when
    nobody uses one. An empty array has no buffer that torch.frombuffer takes: look at its length first.
    """

    tokens: array[int]
    positions: array[int]
    slots: array[int]
    starts: array[int]
    lengths: array[int]
    tables: array[int]
    width: int
    wanted: array[int]
    rows: array[int]
    adapters: array[int] | None


def flatten(plan: Plan) -> Flat:
    """The plan's items, sequence after sequence; call it before `commit`, which moves the sequences on."""
    width = max((len(item.sequence.blocks) for item in plan.items), default=0)
    flat = Flat(array("q"), array("q"), array("q"), array("i", [0]), array("i"), array("i"), width, *_empty_rows(plan))
    size, table, end = plan.block_size, list[int](), 0
    token, at, slot = flat.tokens.append, flat.positions.append, flat.slots.append  # this loop is most of the cost
    for item in plan.items:
        sequence, start, count = item.sequence, item.start, item.count
        blocks = sequence.blocks
        if count == 1:
            past = start - len(sequence.prompt)
            token(sequence.output[past] if past >= 0 else sequence.prompt[start])
            at(start)
            slot(blocks[start // size] * size + start % size)
        else:
            _extend(flat, item, size)
        end += count
        flat.starts.append(end)
        flat.lengths.append(start + count)
        table += blocks
        if len(blocks) < width:
            table += [0] * (width - len(blocks))
        _want(flat, item, end)
    flat.tables.fromlist(table)
    return flat


def _empty_rows(plan: Plan) -> tuple[array[int], array[int], array[int] | None]:
    adapters = [item.sequence.adapter for item in plan.items]
    return array("q"), array("i"), array("i", adapters) if any(adapters) else None


def _extend(flat: Flat, item: Item, size: int) -> None:
    sequence, start, stop = item.sequence, item.start, item.start + item.count
    flat.tokens.extend(sequence.slice(start, stop - len(item.drafts)))
    flat.tokens.extend(item.drafts)
    flat.positions.extend(range(start, stop))
    position = start
    while position < stop:
        index, offset = divmod(position, size)
        many = min(size - offset, stop - position)
        slot = sequence.blocks[index] * size + offset
        flat.slots.extend(range(slot, slot + many))
        position += many


def _want(flat: Flat, item: Item, end: int) -> None:
    if item.wants_logits and item.count == 1:
        flat.wanted.append(end - 1)
        flat.rows.append(1)
    elif item.wants_logits or item.sequence.every_logit:
        rows = item.count if item.sequence.every_logit else 1 + len(item.drafts)
        flat.wanted.extend(range(end - rows, end))
        flat.rows.append(rows)
    else:
        flat.rows.append(0)
