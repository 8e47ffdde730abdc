"""The same cast everywhere: a team with an owner, a teammate and a stranger; versions; hosts that answer by the rules."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from accounts.models import Membership, Role, Team, User
from accounts.permissions import Actor, actor_of_user
from fleet.models import Deployment, Host, Replica
from inference.protocol.status import ReplicaPhase
from inference.protocol.supervision import DeviceSeen, ReplicaSeen, ReplicaSpec, Seen, ValidationSeen, ValidationSpec
from registry.models import Model, Version, VersionStatus

GIB = 1 << 30
SIGNATURE = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
    "max_batch_size": 8,
    "platform": "echo",
}


def team(name: str = "canaries") -> Team:
    return Team.objects.get_or_create(name=name)[0]


def person(name: str, role: str = Role.ADMIN, in_team: Team | None = None, *, superuser: bool = False) -> Actor:
    user = User.objects.create(username=name, is_superuser=superuser)
    if not superuser:
        Membership.objects.create(user=user, team=in_team or team(), role=role)
    return actor_of_user(user)


def version(model: str = "digits", *, of: Team | None = None, peak_bytes: int = 0, **more: object) -> Version:
    row, _ = Model.objects.get_or_create(name=model, defaults={"team": of or team()})
    number = row.versions.count() + 1
    digest = hashlib.sha256(f"{model}{number}".encode()).hexdigest()
    files = [{"path": "echo.json", "size_bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}]
    values: dict[str, object] = {
        "status": VersionStatus.READY,
        "digest": digest,
        "manifest": {"files": files, "settings": {}},
        "format": "echo",
        "tier": "data",
        "signature": SIGNATURE,
        "report": {"checks": [], "measurements": {"peak_memory_bytes": peak_bytes}},
    }
    return Version.objects.create(model=row, number=number, **(values | more))


def ready_replica(row: Version) -> Replica:
    """One replica of this deployed version that answers."""
    deployment = Deployment.objects.get(version=row)
    return Replica.objects.create(deployment=deployment, wanted="run", phase="ready")


def devices(memory_gib: int = 8, cudas: int = 0) -> list[DeviceSeen]:
    found = [DeviceSeen("cpu", "cpu", memory_gib * GIB, memory_gib * GIB)]
    return found + [DeviceSeen(f"cuda:{n}", "cuda", memory_gib * GIB, memory_gib * GIB) for n in range(cudas)]


@dataclass
class Rules:
    """A supervisor by its rules, in memory: has exactly the replicas it was last told; a replica moves one phase with
    every look. It stands where a socket would be in simulations of lost, doubled and late messages.
    """

    name: str = "a"
    boot: str = "boot"
    held: dict[str, ReplicaSeen] = field(default_factory=dict)
    validations: list[ValidationSeen] = field(default_factory=list)
    told: list[list[ReplicaSpec]] = field(default_factory=list)
    asked_to_validate: list[ValidationSpec] = field(default_factory=list)
    standby_ready: bool = True
    down: bool = False

    STEPS = {
        ReplicaPhase.STARTING: ReplicaPhase.LOADING,
        ReplicaPhase.LOADING: ReplicaPhase.WARMING,
        ReplicaPhase.WARMING: ReplicaPhase.READY,
        ReplicaPhase.BACKOFF: ReplicaPhase.STARTING,
    }

    def converge(self, replicas: Sequence[ReplicaSpec], validations: Sequence[ValidationSpec] = ()) -> Seen:
        if self.down:
            raise ConnectionRefusedError("no supervisor")
        self.told.append(list(replicas))
        self.asked_to_validate = list(validations)
        before, self.held = self.held, {}
        for spec in replicas:
            old = before.get(spec.id)
            if old is None or old.generation < spec.generation:
                self.held[spec.id] = ReplicaSeen(
                    spec.id, spec.generation, ReplicaPhase.STARTING, f"unix:/run/{self.name}/{spec.id}", pid=100
                )
            else:
                self.held[spec.id] = old
        return self.look()

    def look(self) -> Seen:
        for key, seen in self.held.items():
            phase = self.STEPS.get(seen.phase, seen.phase)
            self.held[key] = ReplicaSeen(seen.id, seen.generation, phase, seen.address, seen.pid, seen.restarts)
        return Seen(self.boot, 77, list(self.held.values()), self.validations, devices(), self.standby_ready)

    def crash(self, replica: str) -> None:
        seen = self.held[replica]
        self.held[replica] = ReplicaSeen(
            seen.id, seen.generation, ReplicaPhase.BACKOFF, seen.address, 0, seen.restarts + 1, "killed by signal 9"
        )


def lapse(host: str) -> None:
    """The host's lease ran out a minute ago."""
    from datetime import timedelta

    from django.db.models.functions import Now

    Host.objects.filter(name=host).update(lease_until=Now() - timedelta(minutes=1))


__all__ = ["Rules", "devices", "lapse", "person", "ready_replica", "replace", "team", "version"]
