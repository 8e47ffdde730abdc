"""What pages and live updates read: rows that an actor may see, put together in a bounded number of queries."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import Counter
from dataclasses import dataclass
from typing import Any

from django.db.models import BooleanField, Case, Prefetch, Q, QuerySet, Value, When
from django.db.models.functions import Now

from accounts.permissions import Actor, visible
from console.health import Facts
from endpoints.models import Endpoint, Variant
from fleet.models import Deployment, Device, Host, Replica
from fleet.standing import ready_counts
from inference.errors import NotFound
from registry.models import Model, Version, VersionStatus

MAX_SHOWN = 200
OF_VERSION = "deployment__version__model__team"


def stamp(*parts: Any) -> str:
    """A short mark that changes when what it is made of does."""
    return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()[:12]


def model_named(actor: Actor, name: str) -> Model:
    """Raises NotFound, also for what the actor may not see."""
    found = visible(actor, Model.objects.select_related("team")).filter(name=name).first()
    if found is None:
        raise NotFound(f"There is no model “{name[:64]}” in your teams.")
    return found


def version_numbered(actor: Actor, model: str, number: int) -> Version:
    """Raises NotFound."""
    rows = visible(actor, Version.objects.select_related("model__team", "created_by"), "model__team")
    found = rows.filter(model__name=model, number=min(number, 2**31 - 1)).first()
    if found is None:
        raise NotFound(f"There is no version {number} of “{model[:64]}” in your teams.")
    return found


def endpoint_named(actor: Actor, name: str) -> Endpoint:
    """Raises NotFound."""
    found = visible(actor, Endpoint.objects.select_related("team", "model__team")).filter(name=name).first()
    if found is None:
        raise NotFound(f"There is no endpoint “{name[:64]}” in your teams.")
    return found


def alive_hosts() -> QuerySet[Any]:
    """Every host with `.alive`, by the database's clock."""
    alive = Case(When(lease_until__gt=Now(), then=Value(True)), default=Value(False), output_field=BooleanField())
    return Host.objects.annotate(alive=alive).order_by("name")


@dataclass(slots=True)
class EndpointState:
    """An endpoint with its variants and how many replicas of each are ready."""

    endpoint: Endpoint
    variants: list[Variant]
    ready: dict[int, int]

    @property
    def dark(self) -> bool:
        return any(variant.weight_bp and not self.ready.get(variant.version_id) for variant in self.variants)

    @property
    def tone(self) -> str:
        return "bad" if self.dark or not self.variants else "good"

    @property
    def word(self) -> str:
        return "No replica ready" if self.dark else "Serving" if self.variants else "Empty"

    @property
    def ready_total(self) -> int:
        return sum(self.ready.get(variant.version_id, 0) for variant in self.variants)

    @property
    def shares(self) -> list[tuple[str, int]]:
        return [(f"v{variant.version.number}", variant.weight_bp) for variant in self.variants]


def endpoint_states(actor: Actor, rows: QuerySet[Endpoint] | None = None) -> list[EndpointState]:
    """At most MAX_SHOWN endpoints, in three queries."""
    variants = Prefetch("variants", Variant.objects.select_related("version"))
    shown = visible(actor, Endpoint.objects.all() if rows is None else rows)
    held = list(shown.select_related("team", "model").prefetch_related(variants).order_by("name")[:MAX_SHOWN])
    wanted = {variant.version_id for endpoint in held for variant in endpoint.variants.all()}
    ready = ready_counts(wanted)
    return [EndpointState(endpoint, list(endpoint.variants.all()), ready) for endpoint in held]


def facts_of(actor: Actor, states: list[EndpointState], error_share: float | None) -> Facts:
    """What the health sentence is made of."""
    hosts = list(alive_hosts().values_list("name", "alive"))
    statuses = Counter(
        visible(actor, Version.objects.all(), "model__team")
        .filter(status__in=[VersionStatus.VALIDATING, VersionStatus.AWAITING_APPROVAL])
        .values_list("status", flat=True)[:1000]
    )
    return Facts(
        endpoints=len(states),
        dark=[state.endpoint.name for state in states if state.dark],
        hosts=len(hosts),
        lost_hosts=[name for name, alive in hosts if not alive],
        validating=statuses[VersionStatus.VALIDATING],
        awaiting=statuses[VersionStatus.AWAITING_APPROVAL],
        error_share=error_share,
    )


def replicas_of(versions: list[int]) -> list[Replica]:
    rows = Replica.objects.filter(deployment__version__in=versions).select_related(
        "deployment__version__model__team", "host"
    )
    return list(
        rows.exclude(wanted="stop", phase="stopped").order_by("deployment__version__number", "created_at")[:MAX_SHOWN]
    )


def replica_numbered(actor: Actor, pk: str) -> Replica:
    """Raises NotFound, also for what the actor may not see and for what is no id."""
    try:
        wanted = uuid.UUID(pk)
    except ValueError:
        raise NotFound(f"There is no replica “{pk[:40]}” in your teams.") from None
    rows = visible(actor, Replica.objects.select_related(OF_VERSION, "host"), OF_VERSION)
    found = rows.filter(pk=wanted).first()
    if found is None:
        raise NotFound("There is no such replica in your teams.")
    return found


@dataclass(slots=True)
class DeviceState:
    """A device and the replicas on it."""

    device: Device
    replicas: list[Replica]

    @property
    def used_bytes(self) -> int:
        return max(0, self.device.memory_total_bytes - self.device.memory_free_bytes)


@dataclass(slots=True)
class HostState:
    """A host, alive or not, with its devices."""

    host: Host
    alive: bool
    devices: list[DeviceState]

    @property
    def tone(self) -> str:
        return "bad" if not self.alive else "warn" if self.host.draining or self.host.problem else "good"

    @property
    def word(self) -> str:
        return "Not answering" if not self.alive else "Draining" if self.host.draining else "Serving"


def host_states() -> list[HostState]:
    """Every host (at most MAX_SHOWN) as a tree, in three queries."""
    replicas: dict[tuple[str, str], list[Replica]] = {}
    rows = Replica.objects.exclude(host=None).select_related("deployment__version__model__team")
    for replica in rows.order_by("created_at")[: MAX_SHOWN * 10]:
        replicas.setdefault((replica.host_id or "", replica.device), []).append(replica)
    found = []
    for host in alive_hosts().prefetch_related("devices")[:MAX_SHOWN]:
        devices = [DeviceState(device, replicas.pop((host.name, device.name), [])) for device in host.devices.all()]
        stray = [key for key in replicas if key[0] == host.name]
        devices += [DeviceState(Device(host=host, name=key[1]), replicas.pop(key)) for key in stray]
        found.append(HostState(host, host.alive, devices))
    return found


def pending(actor: Actor) -> list[Deployment]:
    """Wishes that are not met, each with the reason in words."""
    rows = visible(actor, Deployment.objects.exclude(reason=""), "version__model__team")
    return list(rows.filter(~Q(replicas=0)).select_related("version__model__team")[:MAX_SHOWN])
