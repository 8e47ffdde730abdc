"""Which replicas to start and which to stop. Pure: wanted and held in, actions out.

A generation is a fencing token: an older one than has been seen is never started. A newer one starts beside the old
one, which leaves when the new one is ready; on a device that cannot be shared the old one leaves first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from msgspec import structs

from inference.protocol.status import ReplicaPhase
from inference.protocol.supervision import ReplicaSpec


@dataclass(frozen=True, slots=True)
class Held:
    """A replica's process (or its back-off) as this decision sees it."""

    id: str
    generation: int
    phase: ReplicaPhase
    stopping: bool


@dataclass(frozen=True, slots=True)
class Start:
    spec: ReplicaSpec


@dataclass(frozen=True, slots=True)
class Stop:
    id: str
    generation: int


Action = Start | Stop
Wanted = dict[str, ReplicaSpec]


def is_exclusive(device: str) -> bool:
    """Whether two generations must never hold `device` at once."""
    return device != "cpu"


def accept(wanted: Wanted, newest: Mapping[str, int], specs: Iterable[ReplicaSpec]) -> Wanted:
    """The new wanted set by id. A spec older than the newest generation seen leaves what was wanted as it was; one of the
    same generation changes its adapters, and nothing else.
    """
    accepted: Wanted = {}
    for spec in specs:
        if spec.generation < newest.get(spec.id, spec.generation):
            if spec.id in wanted and spec.id not in accepted:
                accepted[spec.id] = wanted[spec.id]
        elif spec.id not in accepted or accepted[spec.id].generation <= spec.generation:
            same = wanted.get(spec.id)
            is_same = same is not None and same.generation == spec.generation
            accepted[spec.id] = structs.replace(same, adapters=spec.adapters) if same and is_same else spec
    return accepted


def decide(wanted: Wanted, held: Iterable[Held]) -> list[Action]:
    """Actions that bring `held` closer to `wanted`; none when nothing is to be done."""
    by_id: dict[str, list[Held]] = {replica_id: [] for replica_id in wanted}
    for one in held:
        by_id.setdefault(one.id, []).append(one)
    actions: list[Action] = []
    for replica_id, ones in by_id.items():
        spec = wanted.get(replica_id)
        actions += [Stop(o.id, o.generation) for o in ones if not o.stopping] if spec is None else _one(spec, ones)
    return actions


def _one(spec: ReplicaSpec, held: list[Held]) -> list[Action]:
    current = next((one for one in held if one.generation == spec.generation), None)
    others = [one for one in held if one.generation != spec.generation]
    staying = [one for one in others if not one.stopping]
    if current is not None:
        if current.stopping:
            return []
        done = current.phase is ReplicaPhase.READY
        return [Stop(o.id, o.generation) for o in staying if done or o.phase is not ReplicaPhase.READY]
    if not is_exclusive(spec.device):
        return [Start(spec)]
    if others:
        return [Stop(o.id, o.generation) for o in staying]
    return [Start(spec)]
