"""A declared signature against what the program itself says: a difference is told before anything is served."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import msgspec

from inference.errors import Rejected
from inference.models.entry import checked, with_state
from inference.protocol.oip import Signature, TensorSpec

if TYPE_CHECKING:
    from inference.artifacts.manifest import RuntimeSettings


def against(own: Signature, settings: RuntimeSettings) -> Signature:
    """The declared signature, where the program's `own` allows it.

    All of the program's inputs must be declared, or be a stateful model's; outputs may be left out. Shapes agree where
    both say a size. The largest batch is exactly the settings' own: 0 is none, and a batch needs a free first
    dimension. Raises Rejected.
    """
    inputs, outputs = settings.inputs or own.inputs, settings.outputs or own.outputs
    _match(inputs, own.inputs, "input", batched=bool(settings.max_batch_size))
    _match(outputs, own.outputs, "output", batched=bool(settings.max_batch_size))
    checked(Signature(inputs, outputs, settings.max_batch_size))
    inputs, outputs = _with_own_state(own, settings, inputs, outputs)
    missing = {spec.name for spec in own.inputs} - {spec.name for spec in inputs}
    if missing:
        _refuse(f"the model's inputs {sorted(missing)} are not declared")
    return msgspec.structs.replace(own, inputs=inputs, outputs=outputs, max_batch_size=settings.max_batch_size)


def _with_own_state(
    own: Signature, settings: RuntimeSettings, inputs: list[TensorSpec], outputs: list[TensorSpec]
) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """The controls and states of the settings, as the program itself has them."""
    taken, given = with_state(settings, inputs, outputs)
    known = {spec.name: spec for spec in (*own.inputs, *own.outputs)}
    for spec in (*taken, *given):
        if spec.name not in known:
            _refuse(f"the sequence names '{spec.name}', and the model has {sorted(known)}")
    return (
        [*inputs, *(known[spec.name] for spec in taken[len(inputs) :])],
        [*outputs, *(known[spec.name] for spec in given[len(outputs) :])],
    )


def _match(declared: list[TensorSpec], own: list[TensorSpec], kind: str, *, batched: bool) -> None:
    there = {spec.name: spec for spec in own}
    for spec in declared:
        if spec.name not in there:
            _refuse(f"{kind} '{spec.name}' is declared, and the model has {sorted(there)}")
        found = there[spec.name]
        if found.datatype != spec.datatype:
            _refuse(f"{kind} '{spec.name}' is declared as {spec.datatype}, and the model has {found.datatype}")
        if batched and found.shape[:1] != [-1]:
            _refuse(f"max_batch_size is set, and {kind} '{spec.name}' has no free first dimension: {found.shape}")
        if len(found.shape) != len(spec.shape) or any(
            -1 not in (a, b) and a != b for a, b in zip(found.shape, spec.shape, strict=True)
        ):
            _refuse(f"{kind} '{spec.name}' is declared as {spec.shape}, and the model has {found.shape}")


def _refuse(reason: str) -> NoReturn:
    remedy = "declare what the model has; dims leave out the batch dimension, and only where max_batch_size is set"
    raise Rejected(reason, remedy=remedy, check="signature")
