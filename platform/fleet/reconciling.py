"""One pass of the reconciler: compares wanted with seen and writes what placement decides.

One process at a time (an advisory lock of the database), each write a compare-and-swap, all in one transaction.
"""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from typing import Any

from django.db import connection, transaction
from django.db.models import F, Q

from accounts.wakeups import send_on_commit
from fleet import messages
from fleet.models import Deployment, Device, Host, Reconciliation, Replica
from fleet.placement import (
    Decision,
    DeploymentView,
    DeviceView,
    Explain,
    HostView,
    Move,
    ReplicaView,
    Start,
    Stop,
    place,
)
from registry.models import Version

LOCK = 0x5E71_F1EE
GAP_S = 8
GRACE_S = 15
AFTER_START_S = 15
DEVICE_FLOOR_BYTES = 1 << 30


def reconcile() -> int:
    """Answers how many decisions were carried out; 0 also when another process is at it.

    1. Take the lock. 2. See whether the database was away: then leases get a grace period. 3. Mark lost hosts'
    replicas. 4. Place and write. 5. On commit wake the hosts and the publisher that this concerns.
    """
    with transaction.atomic():
        if not _is_leader():
            return 0
        now, grace = _clock()
        if not grace:
            _mark_lost(now)
        views = host_views()
        decisions = place(deployment_views(), replica_views(), views, now, grace=grace)
        touched = {name for decision in decisions for name in _carry_out(decision)}
        _tidy(now, grace=grace)
        for name in touched & {view.name for view in views if view.alive(now)}:
            messages.wake_host_on_commit(name)
        if any(isinstance(decision, Stop) for decision in decisions):
            send_on_commit(messages.PUBLISH)
    return len(decisions)


def _is_leader() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [LOCK])
        return bool(cursor.fetchone()[0])


def _clock() -> tuple[datetime, bool]:
    """The database's time, and whether leases that lapsed may say nothing about their hosts.

    That is so for AFTER_START_S after the database came up, and for GRACE_S after a time in which no reconciler saw it.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT now(), pg_postmaster_start_time()")
        now, started = cursor.fetchone()
    last, _ = Reconciliation.objects.get_or_create(id=1)
    grace_until = max(last.grace_until or started, started + timedelta(seconds=AFTER_START_S))
    if last.at is None or now - last.at > timedelta(seconds=GAP_S):
        grace_until = max(grace_until, now + timedelta(seconds=GRACE_S))
    Reconciliation.objects.filter(id=1).update(at=now, grace_until=grace_until)
    return now, now < grace_until


def _mark_lost(now: datetime) -> None:
    lapsed = Q(host__isnull=True) | Q(host__lease_until__isnull=True) | Q(host__lease_until__lte=now)
    Replica.objects.filter(lapsed, wanted="run").exclude(phase="lost").update(
        phase="lost", pid=0, queue_depth=0, message="its host gave no sign of life"
    )


def host_views() -> list[HostView]:
    """Every host as its last heartbeat left it."""
    devices: dict[str, list[DeviceView]] = {}
    for d in Device.objects.order_by("host_id", "name"):
        view = DeviceView(d.name, d.kind, d.memory_total_bytes, d.memory_free_bytes)
        devices.setdefault(d.host_id, []).append(view)
    return [
        HostView(h.name, h.lease_until, tuple(devices.get(h.name, ())), draining=h.draining, allow_code=h.allow_code)
        for h in Host.objects.order_by("name")
    ]


def deployment_views() -> list[DeploymentView]:
    """Every wish, the oldest first."""
    return [deployment_view(row) for row in Deployment.objects.select_related("version").order_by("id")]


def deployment_view(row: Deployment) -> DeploymentView:
    return DeploymentView(
        id=row.pk,
        replicas=row.replicas,
        device=row.device,
        format=row.version.format,
        tier=row.version.tier,
        platforms=tuple((row.version.signature or {}).get("platforms", ())),
        memory_bytes=peak_memory_bytes(row.version),
        device_bytes=device_memory_bytes(row.version),
        reason=row.reason,
    )


def peak_memory_bytes(version: Version) -> int:
    """What one replica of this version takes at its peak, as validation measured it; 0 when it is not known."""
    report: dict[str, Any] = version.report or {}
    measured = report.get("measurements") or report
    return int(measured.get("peak_memory_bytes") or 0)


def device_memory_bytes(version: Version) -> int:
    """What the framework of one replica may take of an accelerator. Validation measures on the CPU, where neither
    workspaces of kernels nor an allocator's reserve show, hence twice the peak and a floor.
    """
    return max(DEVICE_FLOOR_BYTES, 2 * max(peak_memory_bytes(version), version.size_bytes))


def replica_views() -> list[ReplicaView]:
    """Every replica, the oldest first."""
    return [
        ReplicaView(
            id=str(row.id),
            deployment=row.deployment_id,
            host=row.host_id,
            device=row.device,
            generation=row.generation,
            wanted=row.wanted,
            phase=row.phase,
            message=row.message,
        )
        for row in Replica.objects.order_by("created_at", "id")
    ]


def _carry_out(decision: Decision) -> set[str]:
    """Writes one decision; answers the hosts that it concerns."""
    match decision:
        case Start(deployment, host, device, share):
            Replica.objects.create(
                id=uuid.uuid4(), deployment_id=deployment, host_id=host, device=device, device_memory_share=share
            )
            return {host}
        case Move(replica, generation, host, device, share):
            moved = Replica.objects.filter(id=replica, generation=generation, wanted="run").update(
                host_id=host, device=device, generation=F("generation") + 1, phase="pending", pid=0, message="",
                lease_until=None, restarts=0, device_memory_share=share,
            )  # fmt: skip
            return {host} if moved else set()
        case Stop(replica):
            row = Replica.objects.filter(id=replica, wanted="run")
            names = {name for name in row.values_list("host_id", flat=True) if name}
            return names if row.update(wanted="stop") else set()
        case Explain(deployment, reason):
            Deployment.objects.filter(id=deployment).update(reason=reason[:500])
            return set()


def _tidy(now: datetime, *, grace: bool) -> None:
    """Forgets what is to stop and has no host that could still say so, and wishes for nothing that are met."""
    stopping = Replica.objects.filter(wanted="stop")
    stopping.filter(host__isnull=True).delete()
    if not grace:
        stopping.filter(Q(host__lease_until__isnull=True) | Q(host__lease_until__lte=now)).delete()
    # Locked before it is deleted, so that a wish that comes back at this moment waits and is written anew. A version
    # behind an endpoint keeps its wish, which may be scaled up again; so does a step of a pipeline behind one.
    met = Deployment.objects.select_for_update(of=("self",)).filter(replicas=0, version__variants__isnull=True)
    met = met.exclude(id__in=Replica.objects.values("deployment"))
    met = met.exclude(version__used_in__pipeline__variants__isnull=False)
    Deployment.objects.filter(id__in=[row.pk for row in met]).delete()
