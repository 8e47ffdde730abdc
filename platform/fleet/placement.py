"""Which replica runs where. Pure: takes values and a clock, returns decisions; reads and writes nothing.

Laws: stable (a replica that stands well is never moved), idempotent (when the decisions are applied, placing again
decides nothing), never more than a device's free memory, never onto a dead or draining host. A replica of a lost
host moves under the next generation, and only when a living host can take it.

On an accelerator a replica gets a share of its memory that its framework may not exceed, and all shares of a device
fit into it, whatever is in use now. A TPU chip belongs to one process, so it takes one replica.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

GIB = 1 << 30
PREFERRED: dict[str, tuple[str, ...]] = {
    "torch_export": ("cuda", "cpu", "tpu"),
    "torchscript": ("cuda", "cpu", "tpu"),
    "hf_encoder": ("cuda", "cpu", "tpu"),
    "jax_export": ("tpu", "cuda", "cpu"),
}
CPU_FIRST = ("cpu", "cuda", "tpu")
HOLDS_ITS_MEMORY = frozenset({"ready", "draining"})
EXCLUSIVE = frozenset({"tpu"})
# What a process holds of a CUDA device beside its allocator: context, kernels, libraries' own buffers.
CONTEXT_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A device of a host; memory_total_bytes is 0 where memory cannot be told, which is then no bound."""

    name: str
    kind: str
    memory_total_bytes: int = 0
    memory_free_bytes: int = 0


@dataclass(frozen=True, slots=True)
class HostView:
    """A host as its last heartbeat left it; it is alive while its lease runs."""

    name: str
    lease_until: datetime | None
    devices: tuple[DeviceView, ...] = ()
    draining: bool = False
    allow_code: bool = True

    def alive(self, now: datetime) -> bool:
        return self.lease_until is not None and self.lease_until > now


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """A replica's row: where it is wanted and how it was last seen."""

    id: str
    deployment: int
    host: str | None
    device: str = "cpu"
    generation: int = 1
    wanted: str = "run"
    phase: str = "pending"
    message: str = ""


@dataclass(frozen=True, slots=True)
class DeploymentView:
    """A wish. device: "any", a kind ("cuda") or one device ("cuda:1"); memory_bytes: what one replica takes of a host
    at its peak, 0 unknown; device_bytes: what its framework may take of an accelerator, 0 for no bound; platforms:
    kinds that the version can run on, empty for any; reason: as it stands in the row.
    """

    id: int
    replicas: int
    device: str = "any"
    format: str = ""
    tier: str = ""
    platforms: tuple[str, ...] = ()
    memory_bytes: int = 0
    device_bytes: int = 0
    reason: str = ""

    def need(self, kind: str) -> int:
        """Bytes that one replica takes of a device of this kind."""
        if kind == "cpu" or not self.device_bytes:
            return self.memory_bytes
        return self.device_bytes + CONTEXT_BYTES


@dataclass(frozen=True, slots=True)
class Start:
    """Create a replica here. share: the part (0..1) of an accelerator's memory that its framework may take, 0 unsaid."""

    deployment: int
    host: str
    device: str
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Move:
    """Place a lost replica here under `generation + 1`; `generation` is the one it had, to compare and swap."""

    replica: str
    generation: int
    host: str
    device: str
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Stop:
    """This replica is not wanted any more."""

    replica: str


@dataclass(frozen=True, slots=True)
class Explain:
    """Why the wish is not met, in words; empty when it is."""

    deployment: int
    reason: str


Decision = Start | Move | Stop | Explain


@dataclass(frozen=True, slots=True)
class _Spot:
    host: str
    device: DeviceView
    rank: int

    @property
    def place(self) -> tuple[str, str]:
        return (self.host, self.device.name)

    @property
    def free_bytes(self) -> float:
        """As the host told it, whatever else is decided."""
        return self.device.memory_free_bytes if self.device.memory_total_bytes else math.inf


@dataclass(frozen=True, slots=True)
class Room:
    """What one more replica needs of a device, and what is left there. is_taken: one replica has it for itself."""

    host: str
    device: str
    need_bytes: float
    free_bytes: float
    is_taken: bool = False


class _Ledger:
    """Free memory per device and replicas per host and device, as decisions use them up."""

    def __init__(
        self, hosts: Iterable[HostView], replicas: Iterable[ReplicaView], wishes: dict[int, DeploymentView]
    ) -> None:
        self.unused: dict[tuple[str, str], float] = {}
        self.unpromised: dict[tuple[str, str], float] = {}
        self.on_host: Counter[tuple[int, str]] = Counter()
        self.on_device: Counter[tuple[str, str]] = Counter()
        for host in hosts:
            for device in host.devices:
                place, known = (host.name, device.name), device.memory_total_bytes > 0
                self.unused[place] = device.memory_free_bytes if known else math.inf
                bounded = known and device.kind != "cpu"
                self.unpromised[place] = device.memory_total_bytes if bounded else math.inf
        for replica in replicas:
            if replica.host is not None:
                wish = wishes.get(replica.deployment)
                need = wish.need(replica.device.partition(":")[0]) if wish else 0
                self._count(replica, need)

    def _count(self, replica: ReplicaView, need: int) -> None:
        place = (replica.host or "", replica.device)
        self.on_device[place] += 1
        if replica.wanted == "run":
            self.on_host[replica.deployment, place[0]] += 1
        if place in self.unused:
            self.unpromised[place] -= need
            # What is ready already shows in the device's free memory; what still loads does not.
            self.unused[place] -= 0 if replica.phase in HOLDS_ITS_MEMORY else need

    def take(self, wish: DeploymentView, spot: _Spot) -> None:
        need = wish.need(spot.device.kind)
        self.on_host[wish.id, spot.host] += 1
        self.on_device[spot.place] += 1
        self.unused[spot.place] -= need
        self.unpromised[spot.place] -= need

    def free(self, spot: _Spot) -> float:
        return max(0, min(self.unused[spot.place], self.unpromised[spot.place]))

    def fits(self, wish: DeploymentView, spot: _Spot) -> bool:
        if spot.device.kind in EXCLUSIVE:
            return not self.on_device[spot.place] and spot.free_bytes >= wish.need(spot.device.kind)
        need = wish.need(spot.device.kind)
        return self.unused[spot.place] >= need and self.unpromised[spot.place] >= need

    def cost(self, deployment: int, spot: _Spot) -> tuple[object, ...]:
        place = spot.place
        return (spot.rank, self.on_host[deployment, spot.host], -self.free(spot), self.on_device[place], *place)


@dataclass(slots=True)
class _Standing:
    """A deployment's replicas, sorted by how they stand; in each, those to keep come first."""

    good: list[ReplicaView]
    leaving: list[ReplicaView]
    lost: list[ReplicaView]


def place(
    deployments: Sequence[DeploymentView],
    replicas: Sequence[ReplicaView],
    hosts: Sequence[HostView],
    now: datetime,
    *,
    grace: bool = False,
) -> list[Decision]:
    """What to change so that every wish is met as far as it can be.

    1. What nobody wants any more stops. 2. Lost replicas move, missing ones start, where the rules and memory allow.
    3. A draining host's replicas stop once their successors are ready. 4. What is not met is explained.

    replicas: oldest first. grace: leases may have lapsed because nobody could renew them (the database was away), so
    a lapsed host is not yet lost; nothing new goes there either.
    """
    running = [r for r in replicas if r.wanted == "run"]
    wishes = {d.id: d for d in deployments}
    # Those that are to stop hold their device until they are gone.
    ledger = _Ledger(hosts, replicas, wishes)
    decisions: list[Decision] = [Stop(r.id) for r in running if r.deployment not in wishes]
    by_name = {host.name: host for host in hosts}
    unmet: list[tuple[DeploymentView, _Standing, bool]] = []
    for wish in deployments:
        mine = [r for r in running if r.deployment == wish.id]
        standing = _standing(mine, by_name, now, grace=grace)
        decisions += _stops(wish, standing)
        moves, all_placed = _placements(wish, standing, ledger, hosts, now)
        decisions += moves
        unmet.append((wish, standing, all_placed))
    # Only now is it known what is left for those who found no place.
    for wish, standing, all_placed in unmet:
        reason = "" if all_placed else _no_place(wish, ledger, hosts, now)
        reason = reason or _failure(wish, standing.good)
        if reason != wish.reason:
            decisions.append(Explain(wish.id, reason))
    return decisions


def rooms(
    wish: DeploymentView,
    deployments: Sequence[DeploymentView],
    replicas: Sequence[ReplicaView],
    hosts: Sequence[HostView],
    now: datetime,
) -> tuple[list[Room], str]:
    """For one more replica of `wish`, every device where the rules allow it; without any, why not."""
    ledger = _Ledger(hosts, replicas, {d.id: d for d in deployments})
    spots, reason = _spots(wish, hosts, now)
    return [
        Room(
            spot.host,
            spot.device.name,
            wish.need(spot.device.kind),
            ledger.free(spot),
            spot.device.kind in EXCLUSIVE and bool(ledger.on_device[spot.place]),
        )
        for spot in spots
    ], reason


def _standing(mine: list[ReplicaView], hosts: dict[str, HostView], now: datetime, *, grace: bool) -> _Standing:
    found = _Standing([], [], [])
    for replica in mine:
        host = hosts.get(replica.host or "")
        if host is None or not (host.alive(now) or grace):
            found.lost.append(replica)
        elif host.draining and host.alive(now):
            found.leaving.append(replica)
        else:
            found.good.append(replica)
    found.good.sort(key=lambda r: r.phase != "ready")
    return found


def _stops(wish: DeploymentView, standing: _Standing) -> list[Decision]:
    ready = sum(r.phase == "ready" for r in standing.good)
    surplus = standing.good[wish.replicas :]
    if ready >= wish.replicas:
        surplus = surplus + standing.leaving
    missing = max(0, wish.replicas - len(standing.good))
    return [Stop(r.id) for r in surplus + standing.lost[missing:]]


def _placements(
    wish: DeploymentView, standing: _Standing, ledger: _Ledger, hosts: Sequence[HostView], now: datetime
) -> tuple[list[Decision], bool]:
    """What is placed, and whether that is all that was missing."""
    made: list[Decision] = []
    missing = max(0, wish.replicas - len(standing.good))
    movable = standing.lost[:missing]
    for index in range(missing):
        fitting = [spot for spot in _spots(wish, hosts, now)[0] if ledger.fits(wish, spot)]
        if not fitting:
            return made, False
        best = min(fitting, key=lambda s: ledger.cost(wish.id, s))
        ledger.take(wish, best)
        share = _share(wish, best.device)
        if index < len(movable):
            made.append(Move(movable[index].id, movable[index].generation, *best.place, share))
        else:
            made.append(Start(wish.id, *best.place, share))
    return made, True


def _no_place(wish: DeploymentView, ledger: _Ledger, hosts: Sequence[HostView], now: datetime) -> str:
    spots, reason = _spots(wish, hosts, now)
    return reason or _too_big(wish, spots, ledger)


def _share(wish: DeploymentView, device: DeviceView) -> float:
    if device.kind == "cpu" or not device.memory_total_bytes:
        return 0.0
    return round(min(1.0, wish.device_bytes / device.memory_total_bytes), 4)


def _spots(wish: DeploymentView, hosts: Sequence[HostView], now: datetime) -> tuple[list[_Spot], str]:
    """Where the rules allow this wish, memory aside; with none, why not."""
    living = [h for h in hosts if h.alive(now)]
    if not living:
        return [], "no host is alive"
    open_hosts = [h for h in living if not h.draining]
    if not open_hosts:
        return [], "every living host is draining"
    trusted = [h for h in open_hosts if h.allow_code or wish.tier != "code"]
    if not trusted:
        return [], "code tier: no host allows code"
    kinds = _kinds(wish)
    if not kinds:
        return [], f"wants {wish.device}, but this version runs on {' or '.join(wish.platforms)} only"
    spots = [
        _Spot(host.name, device, kinds.index(device.kind))
        for host in trusted
        for device in host.devices
        if device.kind in kinds and wish.device in {"any", device.kind, device.name}
    ]
    wanted = " or ".join(kinds) if wish.device == "any" else wish.device
    return spots, "" if spots else f"needs {wanted}: no host has one"


def _kinds(wish: DeploymentView) -> tuple[str, ...]:
    """Kinds of device that this wish may run on, the best first."""
    order = PREFERRED.get(wish.format, CPU_FIRST)
    runs_on = tuple(k for k in order if not wish.platforms or k in wish.platforms)
    wanted = wish.device.partition(":")[0]
    return runs_on if wanted == "any" else tuple(k for k in runs_on if k == wanted)


def _too_big(wish: DeploymentView, spots: list[_Spot], ledger: _Ledger) -> str:
    taken = [s for s in spots if s.device.kind in EXCLUSIVE and s.free_bytes >= wish.need(s.device.kind)]
    if taken:
        return f"every {taken[0].device.kind} that it could run on is taken: a chip serves one replica"
    best = max(spots, key=lambda s: ledger.free(s) - wish.need(s.device.kind))
    need, free = wish.need(best.device.kind) / GIB, ledger.free(best) / GIB
    what = "best host" if best.device.kind == "cpu" else f"best {best.device.kind}"
    return f"not enough memory: needs {need:.1f} GiB, {what} has {free:.1f} GiB"


def _failure(wish: DeploymentView, good: list[ReplicaView]) -> str:
    failed = [r for r in good[: wish.replicas] if r.phase == "failed"]
    if not failed:
        return ""
    return f"{len(failed)} of {wish.replicas} replicas failed: {failed[0].message or 'see the replica'}"[:500]
