"""What a host's agent reports: its own lease and devices, and what its supervisor sees of each replica.

Every write carries host and generation in its WHERE: a report about a replica that has moved on changes no row.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta

import msgspec
from django.db import transaction
from django.db.models import Case, F, Value, When
from django.db.models.functions import Coalesce, Now

from accounts.wakeups import send_on_commit
from fleet import messages
from fleet.models import Device, Host, Replica
from inference.protocol.status import ReplicaPhase
from inference.protocol.supervision import DeviceSeen, ReplicaSeen, Seen

LEASE_S = 10
GONE = frozenset({ReplicaPhase.STOPPED})


def lease_end() -> object:
    """When a lease that is renewed now lapses, by the database's clock."""
    return Now() + timedelta(seconds=LEASE_S)


def heartbeat_host(name: str, seen: Seen, *, cpus: int = 1, problem: str = "") -> None:
    """Renews the host's lease and writes its devices. Creates the host at its first heartbeat."""
    state = {
        "lease_until": lease_end(),
        "boot": seen.boot,
        "agent_pid": os.getpid(),
        "supervisor_pid": seen.pid,
        "standby_ready": seen.standby_ready,
        "cpus": cpus,
        "problem": problem[:500],
    }
    with transaction.atomic():
        if not Host.objects.filter(name=name).update(**state):
            Host.objects.get_or_create(name=name)
            Host.objects.filter(name=name).update(**state)
            send_on_commit(messages.RECONCILE)
        _write_devices(name, seen.devices)


def record_problem(name: str, problem: str) -> None:
    """Says what keeps this host from serving. Its lease is not renewed: it lapses unless the problem goes away."""
    host, _ = Host.objects.get_or_create(name=name)
    if host.problem != problem[:500]:
        Host.objects.filter(name=name).update(problem=problem[:500], agent_pid=os.getpid())


def _write_devices(host: str, devices: Iterable[DeviceSeen]) -> None:
    rows = [
        Device(
            host_id=host,
            name=d.name,
            kind=d.kind,
            description=d.description[:200],
            memory_total_bytes=d.memory_total_bytes,
            memory_free_bytes=d.memory_free_bytes,
            utilisation=d.utilisation,
        )
        for d in devices
    ]
    Device.objects.filter(host_id=host).exclude(name__in=[row.name for row in rows]).delete()
    Device.objects.bulk_create(
        rows,
        update_conflicts=True,
        unique_fields=["host", "name"],
        update_fields=["kind", "description", "memory_total_bytes", "memory_free_bytes", "utilisation"],
    )
    Device.objects.filter(host_id=host).update(seen_at=Now())


def record_seen(host: str, seen: Seen) -> int:
    """Writes what the host's supervisor sees of its replicas; answers how many rows changed what gateways need.

    1. Each replica that was seen: state and lease, if host and generation are still the row's. 2. Rows that are to
    stop and were not seen any more go away. 3. If a route changed, the publisher is woken.
    """
    # A supervisor may hold two generations of a replica for a while: the old one serves until the new one is ready.
    reports = {(report.id, report.generation): report for report in seen.replicas if report.phase not in GONE}
    routed = 0
    with transaction.atomic():
        for row in Replica.objects.filter(host_id=host):
            report = reports.get((str(row.id), row.generation))
            if report is not None:
                routed += _record_replica(row, report)
        gone = Replica.objects.filter(host_id=host, wanted="stop").exclude(id__in={replica for replica, _ in reports})
        gone.delete()
        if routed:
            send_on_commit(messages.PUBLISH)
    return routed


def _record_replica(row: Replica, report: ReplicaSeen) -> int:
    """1 when the route of this replica changed, else 0."""
    adapters = msgspec.to_builtins(report.adapters)
    state: dict[str, object] = {
        "phase": report.phase.value,
        "seen_generation": report.generation,
        "address": report.address,
        "pid": report.pid,
        "restarts": report.restarts,
        "message": report.message[:1000],
        "memory_bytes": report.memory_bytes,
        "device_memory_bytes": report.device_memory_bytes,
        "compiles_after_ready": report.compiles_after_ready,
        "queue_depth": report.queue_depth,
        "adapters": adapters,
        "lease_until": lease_end(),
    }
    if report.phase is ReplicaPhase.READY:
        state |= {
            "route_address": report.address,
            "route_generation": report.generation,
            "ready_at": Case(When(phase="ready", then=Coalesce(F("ready_at"), Now())), default=Now()),
        }
    elif report.phase is ReplicaPhase.FAILED:
        state |= {"route_address": Value(""), "ready_at": None}
    fenced = Replica.objects.filter(id=row.id, host_id=row.host_id, generation=report.generation)
    if fenced.update(**state) != 1:
        return 0
    route = report.address if report.phase is ReplicaPhase.READY else row.route_address
    return int(row.phase != report.phase.value or row.route_address != route or row.adapters != adapters)
