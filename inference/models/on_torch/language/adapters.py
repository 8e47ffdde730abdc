"""LoRA adapters (Hu et al. 2021) of a decoder, in slots: many of them, and none, in one flat batch.

To a linear layer an adapter adds x @ down.T @ up. Sequences that bring many rows are multiplied by their own adapter's
matrices. The rows of all others are multiplied by the adapters' matrices one below the other, and what a row has no
part in is set to 0 between the two products: two products for a layer, however many adapters the rows have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import safe_open

from inference.artifacts import lora
from inference.errors import InvalidInput, Rejected
from inference.models.on_torch.language.weights import plain_name

if TYPE_CHECKING:
    from pathlib import Path

    from inference.models.language import Step
    from inference.models.on_torch.language.spec import DecoderSpec

Tensor = torch.Tensor
QKV, OUTPUT, GATE_UP, DOWN = range(4)  # the places for an adapter in a layer; the head comes after all layers
PLACES = 4
MANY_ROWS = 16  # with so many new tokens, a sequence is worth products of its own
OTHER_BASE = "Upload an adapter that was trained on this very model."


class Pair(NamedTuple):
    """What is added to one linear layer. down [C, inputs]; up [C, outputs], with the scale in it; C: ranks together."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """about: what it is; pairs: by place (layer * PLACES + QKV..DOWN, then the head)."""

    about: lora.Adapter
    pairs: dict[int, Pair]


@dataclass(frozen=True, slots=True, eq=False)
class Joined:
    """Several adapters' pairs, one below the other. counts: by place, each adapter's part of C."""

    members: tuple[Loaded, ...]
    pairs: dict[int, Pair]
    counts: dict[int, tuple[int, ...]]


class Adapters:
    """The adapters of one decoder, in slots from 1 on. `load` may run in another thread than the steps."""

    def __init__(self, spec: DecoderSpec, *, most: int, largest_rank: int, device: str, dtype: torch.dtype) -> None:
        self._spec, self._most, self._largest_rank = spec, most, largest_rank
        self._device, self._dtype = device, dtype
        self._slots: dict[int, Loaded] = {}
        self._joined: dict[range, Joined] = {}
        self._head = spec.layers * PLACES

    def about(self) -> dict[int, lora.Adapter]:
        """What is in which slot."""
        return {slot: loaded.about for slot, loaded in self._slots.items()}

    @property
    def most_bytes(self) -> int:
        """What all slots take when each holds an adapter of the largest rank for every linear layer: its matrices, and
        their copies among those that decode together.
        """
        parts = {QKV: 3, OUTPUT: 1, GATE_UP: 2, DOWN: 1}  # projections that one product holds
        rows = sum(parts[place] * sum(_sizes(self._spec, place)) for place in range(PLACES)) * self._spec.layers
        rows += sum(_sizes(self._spec, self._head))
        return 2 * self._most * self._largest_rank * rows * self._dtype.itemsize

    def load(self, slot: int, folder: Path) -> lora.Adapter:
        """Puts the PEFT adapter in `folder` into `slot`, in the place of what was there.

        Raises InvalidInput for a slot beyond the setting, Rejected for an adapter that does not fit the model.
        """
        self._check(slot)
        about = lora.read(folder)
        if about.rank > self._largest_rank:
            raise Rejected(
                f"the adapter's rank {about.rank} is above generation.max_adapter_rank {self._largest_rank}",
                remedy="raise generation.max_adapter_rank of the base version, or train with a smaller r",
                check="load",
            )
        halves = _halves(folder)
        parts: dict[int, list[tuple[int, Tensor, Tensor]]] = {}
        for module in about.modules:
            place, begin, rows = _place_of(self._spec, plain_name(module))
            down, up = halves[module, "A"].float(), halves[module, "B"].float() * about.scale
            self._check_shapes(module, place, rows, down, up)
            parts.setdefault(place, []).append((begin, down, up))
        pairs = {place: self._pair(place, found) for place, found in parts.items()}
        self._slots[slot] = Loaded(about, pairs)
        self._joined.clear()
        return about

    def drop(self, slot: int) -> None:
        """Empties the slot; an empty one is no error."""
        self._check(slot)
        self._slots.pop(slot, None)
        self._joined.clear()

    def for_step(self, step: Step, adapters: Tensor) -> tuple[Applied, Applied]:
        """What to add to the layers' outputs, and to the head's, whose rows are the wanted ones. adapters: int32 [S].

        Raises InvalidInput for a slot that is empty.
        """
        slots, starts = adapters.tolist(), step.starts.tolist()
        for slot in set(slots):
            if slot and slot not in self._slots:
                raise InvalidInput(f"no adapter is loaded in slot {slot}; load it first")
        by_row = adapters.repeat_interleave(step.starts.diff())
        wanted = by_row[step.wanted]
        if len(set(slots)) == 1:
            own, by_row = [(0, starts[-1], self._slots[slots[0]])], torch.zeros_like(by_row)
        else:
            own = []
            for slot, begin, end in zip(slots, starts[:-1], starts[1:], strict=True):
                if slot and end - begin >= MANY_ROWS:
                    own.append((begin, end, self._slots[slot]))
                    by_row[begin:end] = 0
        return self._applied(own, by_row, range(self._head)), self._applied(
            [], wanted, range(self._head, self._head + 1)
        )

    def _applied(self, own: list[tuple[int, int, Loaded]], by_row: Tensor, places: range) -> Applied:
        """by_row: int32 [rows], the slot of each row that shares its products with others, 0 for the rest."""
        rows = by_row.nonzero().flatten()
        slots = by_row[rows]
        members = sorted(set(slots.tolist()))
        joined = self._join(tuple(self._slots[slot] for slot in members), places)
        numbers = torch.searchsorted(torch.tensor(members, dtype=slots.dtype), slots)
        return Applied(own, rows.to(self._device), numbers.to(self._device), joined, is_all=len(rows) == len(by_row))

    def _join(self, members: tuple[Loaded, ...], places: range) -> Joined:
        """Kept until other adapters come: who decodes is the same for many steps."""
        kept = self._joined.get(places)
        if kept is not None and kept.members == members:
            return kept
        pairs, counts = {}, {}
        for place in sorted({place for member in members for place in member.pairs if place in places}):
            found = [member.pairs.get(place) for member in members]
            there = [pair for pair in found if pair is not None]
            is_one = len(there) == 1
            pairs[place] = there[0] if is_one else Pair(*(torch.cat(part) for part in zip(*there, strict=True)))
            counts[place] = tuple(0 if pair is None else len(pair.down) for pair in found)
        self._joined[places] = Joined(members, pairs, counts)
        return self._joined[places]

    def _check(self, slot: int) -> None:
        if not 0 < slot <= self._most:
            raise InvalidInput(
                f"there is no slot {slot} for adapters; generation.max_adapters allows the slots 1 to {self._most}"
            )

    def _check_shapes(self, module: str, place: int, rows: int, down: Tensor, up: Tensor) -> None:
        inputs, _ = _sizes(self._spec, place)
        if down.shape[1] != inputs or up.shape[0] != rows:
            raise Rejected(
                f"the adapter's {module} is for a layer of {down.shape[1]} inputs and {up.shape[0]} outputs; "
                f"this model's has {inputs} and {rows}",
                remedy=OTHER_BASE,
                check="load",
            )
        if not (down.isfinite().all() and up.isfinite().all()):
            raise Rejected(
                f"the adapter's {module} holds NaN or infinity",
                remedy="train it again with a smaller step",
                check="load",
            )

    def _pair(self, place: int, parts: list[tuple[int, Tensor, Tensor]]) -> Pair:
        """One pair out of those of a fused layer's parts, each of which writes its own outputs (from `begin` on)."""
        _, outputs = _sizes(self._spec, place)
        down = torch.cat([part for _, part, _ in parts])
        up = torch.zeros(len(down), outputs)
        row = 0
        for begin, _, part in parts:
            width, rank = part.shape
            up[row : row + rank, begin : begin + width] = part.T
            row += rank
        return Pair(down.to(self._device, self._dtype), up.to(self._device, self._dtype))


class Applied:
    """A step's adapters. own: (begin, end, adapter) of rows with products of their own; rows: int64, the others that
    have an adapter, whose number in `joined` is in `numbers`; is_all: these are all rows.
    """

    def __init__(
        self, own: list[tuple[int, int, Loaded]], rows: Tensor, numbers: Tensor, joined: Joined, *, is_all: bool
    ) -> None:
        self._own, self._rows, self._numbers, self._joined, self._is_all = own, rows, numbers, joined, is_all
        self._foreign: dict[tuple[int, ...], Tensor] = {}

    def add(self, place: int, x: Tensor, out: Tensor) -> None:
        """Adds to `out` [rows, outputs], in place, what the adapters make of `x` [rows, inputs]."""
        for begin, end, loaded in self._own:
            if (pair := loaded.pairs.get(place)) is not None:
                out[begin:end].addmm_(x[begin:end] @ pair.down.T, pair.up)
        pair = self._joined.pairs.get(place)
        if pair is None or not len(self._rows):
            return
        inner = (x if self._is_all else x[self._rows]) @ pair.down.T
        if len(self._joined.members) > 1:
            inner.masked_fill_(self._foreign_columns(self._joined.counts[place]), 0)
        if self._is_all:
            out.addmm_(inner, pair.up)
        else:
            out.index_add_(0, self._rows, inner @ pair.up)

    def _foreign_columns(self, counts: tuple[int, ...]) -> Tensor:
        """[rows, C]: which columns belong to another adapter than the row's."""
        found = self._foreign.get(counts)
        if found is None:
            device = self._numbers.device
            owners = torch.arange(len(counts), device=device).repeat_interleave(torch.tensor(counts, device=device))
            found = self._foreign[counts] = self._numbers[:, None] != owners
        return found


def _halves(folder: Path) -> dict[tuple[str, str], Tensor]:
    """(module, "A" or "B") -> the matrix, of a file whose names have been checked."""
    found: dict[tuple[str, str], Tensor] = {}
    opened: Any = safe_open(folder / lora.WEIGHTS, framework="pt")
    with opened as file:
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            module, _, rest = name.removeprefix("base_model.model.").rpartition(".lora_")
            found[module, rest[0]] = file.get_tensor(name)
    return found


def _sizes(spec: DecoderSpec, place: int) -> tuple[int, int]:
    """(inputs, outputs) of the linear layer at that place."""
    if place == spec.layers * PLACES:
        return spec.width, spec.vocabulary
    out, kv = spec.heads * spec.head_width, spec.kv_heads * spec.head_width
    return {
        QKV: (spec.width, out + 2 * kv),
        OUTPUT: (out, spec.width),
        GATE_UP: (spec.width, 2 * spec.inner),
        DOWN: (spec.inner, spec.width),
    }[place % PLACES]


def _place_of(spec: DecoderSpec, module: str) -> tuple[int, int, int]:
    """(place, first output, outputs) of a linear layer by transformers' name. Raises Rejected for what is not there."""
    if module == "lm_head":
        return spec.layers * PLACES, 0, spec.vocabulary
    out, kv, inner = spec.heads * spec.head_width, spec.kv_heads * spec.head_width, spec.inner
    table = {
        "self_attn.q_proj": (QKV, 0, out),
        "self_attn.k_proj": (QKV, out, kv),
        "self_attn.v_proj": (QKV, out + kv, kv),
        "self_attn.qkv_proj": (QKV, 0, out + 2 * kv),
        "self_attn.o_proj": (OUTPUT, 0, spec.width),
        "mlp.gate_proj": (GATE_UP, 0, inner),
        "mlp.up_proj": (GATE_UP, inner, inner),
        "mlp.gate_up_proj": (GATE_UP, 0, 2 * inner),
        "mlp.down_proj": (DOWN, 0, spec.width),
    }
    number, _, rest = module.removeprefix("model.layers.").partition(".")
    if not module.startswith("model.layers.") or rest not in table or not number.isdecimal():
        raise Rejected(f"the adapter changes {module}, which this model has not", remedy=OTHER_BASE, check="load")
    if int(number) >= spec.layers:
        raise Rejected(
            f"the adapter changes {module}; this model has {spec.layers} layers", remedy=OTHER_BASE, check="load"
        )
    kind, begin, rows = table[rest]
    return int(number) * PLACES + kind, begin, rows
