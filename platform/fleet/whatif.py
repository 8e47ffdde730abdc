"""Would there be room? Placement asked about a wish that nobody has written: pure, but for `standing`, which reads.

Replicas are placed by the same rules as the reconciler's, onto the fleet as it is now, with every other wish as it is.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from datetime import datetime

from django.db.models.functions import Now
from django.utils import timezone

from fleet.models import Deployment, Host
from fleet.placement import (
    GIB,
    DeploymentView,
    HostView,
    Move,
    ReplicaView,
    Room,
    Start,
    Stop,
    place,
    rooms,
)
from fleet.reconciling import deployment_view, deployment_views, host_views, replica_views
from registry.models import Version


@dataclass(frozen=True, slots=True)
class Fleet:
    """Wishes, replicas and hosts at a moment."""

    deployments: tuple[DeploymentView, ...]
    replicas: tuple[ReplicaView, ...]
    hosts: tuple[HostView, ...]
    now: datetime


@dataclass(frozen=True, slots=True)
class Answer:
    """placed: of `wanted` replicas, how many stand or find room. short: in words, which device misses how much for the
    next one; "" when all do. after: the fleet with them.
    """

    wanted: int
    placed: int
    short: str
    after: Fleet

    @property
    def fits(self) -> bool:
        return self.placed >= self.wanted


def standing() -> Fleet:
    """The fleet as its rows say, by the database's clock."""
    now = Host.objects.annotate(now=Now()).values_list("now", flat=True).first()
    return Fleet(tuple(deployment_views()), tuple(replica_views()), tuple(host_views()), now or timezone.now())


def wish_of(version: Version, replicas: int, device: str) -> DeploymentView:
    """The wish for so many replicas of a version, whether there is a row for it or not."""
    row = Deployment.objects.select_related("version").filter(version=version).first()
    made = row or Deployment(pk=-version.pk, version=version)
    made.replicas, made.device = replicas, device
    return deployment_view(made)


def ask(fleet: Fleet, wish: DeploymentView) -> Answer:
    """Where the replicas of `wish` would stand. Nothing else is moved or stopped for them."""
    others = [one for one in fleet.deployments if one.id != wish.id]
    decisions = place([*others, wish], fleet.replicas, fleet.hosts, fleet.now)
    moved = {one.replica for one in decisions if isinstance(one, Move)}
    started = [
        ReplicaView(str(uuid.uuid4()), one.deployment, one.host, one.device)
        for one in decisions
        if isinstance(one, Start)
    ]
    alive = {host.name for host in fleet.hosts if host.alive(fleet.now)}
    here = [one for one in fleet.replicas if one.deployment == wish.id and one.wanted == "run"]
    stands = sum(one.host in alive or one.id in moved for one in here)
    placed = min(wish.replicas, stands + sum(one.deployment == wish.id for one in started))
    after = replace(fleet, deployments=(*others, wish), replicas=(*fleet.replicas, *started))
    return Answer(wish.replicas, placed, "" if placed >= wish.replicas else _short(after, wish), after)


def without_one(fleet: Fleet, wish: DeploymentView) -> Fleet:
    """The fleet when one replica of `wish` has stopped and given its memory back; as it is when none stands."""
    left = replace(wish, replicas=max(0, wish.replicas - 1))
    others = [one for one in fleet.deployments if one.id != wish.id]
    decisions = place([*others, left], fleet.replicas, fleet.hosts, fleet.now)
    mine = {one.id: one for one in fleet.replicas if one.deployment == wish.id}
    leaving = next((mine[one.replica] for one in decisions if isinstance(one, Stop) and one.replica in mine), None)
    if leaving is None:
        return replace(fleet, deployments=(*others, left))
    freed = wish.need(leaving.device.partition(":")[0]) if leaving.phase in {"ready", "draining"} else 0
    return replace(
        fleet,
        deployments=(*others, left),
        replicas=tuple(one for one in fleet.replicas if one.id != leaving.id),
        hosts=tuple(_freed(host, leaving, freed) for host in fleet.hosts),
    )


def exchanges(fleet: Fleet, old: DeploymentView, new: DeploymentView) -> Answer:
    """Whether the replicas of `old` could be exchanged for those of `new` one by one, each making room for the next."""
    count, answer = old.replicas, Answer(0, 0, "", fleet)
    for done in range(1, count + 1):
        fleet = without_one(fleet, replace(old, replicas=count - done + 1))
        answer = ask(fleet, replace(new, replicas=done))
        if not answer.fits:
            break
        fleet = answer.after
    return replace(answer, wanted=count)


def _freed(host: HostView, leaving: ReplicaView, size_bytes: int) -> HostView:
    if host.name != leaving.host:
        return host
    devices = tuple(
        replace(one, memory_free_bytes=one.memory_free_bytes + size_bytes) if one.name == leaving.device else one
        for one in host.devices
    )
    return replace(host, devices=devices)


def _short(fleet: Fleet, wish: DeploymentView) -> str:
    """Of the devices that may run it, the one that misses the least."""
    found, reason = rooms(wish, fleet.deployments, fleet.replicas, fleet.hosts, fleet.now)
    if not found:
        return reason
    nearest: Room = min(found, key=lambda room: room.need_bytes - room.free_bytes)
    where, missing = f"{nearest.device} of host {nearest.host}", nearest.need_bytes - nearest.free_bytes
    if nearest.is_taken:
        return f"{where} is taken: such a chip serves one replica"
    return f"{where} is {missing / GIB:.1f} GiB short ({nearest.need_bytes / GIB:.1f} needed, {nearest.free_bytes / GIB:.1f} left)"
