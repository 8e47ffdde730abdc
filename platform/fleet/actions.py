"""The only writer of this app's rows: transaction, compare-and-swap, audit entry, on_commit.

Leases run by the database's clock alone. A replica's generation is in the WHERE of each write that tells what was
seen of it, so an agent that slept through a move writes nothing. What a person may ask is here; what the reconciler
does is in reconciling.py, what a host reports in reporting.py.
"""

from __future__ import annotations

from django.db import transaction
from django.db.models import F

from accounts import audit
from accounts.permissions import Actor, Verb, require
from accounts.wakeups import send_on_commit
from fleet import messages
from fleet.models import Deployment, Host, Replica
from fleet.reconciling import reconcile
from fleet.reporting import heartbeat_host, record_problem, record_seen
from inference.artifacts.manifest import Format
from inference.errors import Conflict, InvalidInput, NotFound
from registry.models import Version, VersionStatus

__all__ = [
    "heartbeat_host",
    "reconcile",
    "record_problem",
    "record_seen",
    "require_ready",
    "restart_replica",
    "scale",
    "scale_version",
    "set_draining",
    "want",
    "want_at_least",
]
MAX_REPLICAS = 64
DEVICE_KINDS = ("cpu", "cuda", "tpu")


def check_device(device: str) -> str:
    """`device` if it is "any", a kind, or a kind and a number; raises InvalidInput otherwise."""
    kind, colon, number = device.partition(":")
    fine = device == "any" or (kind in DEVICE_KINDS and (number.isascii() and number.isdigit() if colon else True))
    if not fine or len(device) > 16:
        raise InvalidInput(f"device '{device[:40]}' is none: use any, cpu, cuda, tpu, or one such as cuda:0")
    return device


def want(*, version: Version, replicas: int, device: str | None = None) -> Deployment:
    """Writes the wish for so many replicas of a version; no remote call. 0 stops them all.

    The caller has checked rights and audits. Raises InvalidInput, and Conflict for a version that may not be served.
    """
    if not 0 <= replicas <= MAX_REPLICAS:
        raise InvalidInput(f"replicas must be from 0 to {MAX_REPLICAS}")
    wish: dict[str, object] = {"replicas": replicas}
    if device is not None:
        wish["device"] = check_device(device)
    with transaction.atomic():
        kind = _locked_format(version, ready=bool(replicas))
        if replicas and kind == Format.PIPELINE:
            raise Conflict(f"{version} is a pipeline and has no replicas of its own: scale the versions of its steps")
        deployment, _ = Deployment.objects.update_or_create(version=version, defaults=wish)
        send_on_commit(messages.RECONCILE)
    return deployment


def require_ready(version: Version) -> None:
    """Locks the version, in a transaction. Raises Conflict for one that may not be served."""
    _locked_format(version, ready=True)


def _locked_format(version: Version, *, ready: bool) -> str:
    # Locked, so that it cannot be archived at the same moment.
    status, kind = Version.objects.select_for_update().values_list("status", "format").get(pk=version.pk)
    if ready and status != VersionStatus.READY:
        raise Conflict(f"{version} is {status.replace('_', ' ')}: only a ready version can be deployed")
    return kind


def want_at_least(*, version: Version, replicas: int, device: str | None = None) -> Deployment:
    """As `want`, for one of several who need the version: a larger wish, and the device it names, stay as they are."""
    with transaction.atomic():
        held = Deployment.objects.select_for_update().filter(version=version, replicas__gt=0).first()
        if held is None:
            return want(version=version, replicas=replicas, device=device)
        if held.replicas >= replicas:
            return held
        return want(version=version, replicas=replicas)


def scale(*, deployment: Deployment, replicas: int, actor: Actor, device: str | None = None) -> Deployment:
    """Changes how many replicas a version has, and on which device new ones go."""
    return scale_version(version=deployment.version, replicas=replicas, actor=actor, device=device)


def scale_version(*, version: Version, replicas: int, actor: Actor, device: str | None = None) -> Deployment:
    """As `scale`, for a version that may have no replicas yet."""
    require(actor, Verb.DEPLOY, version)
    with transaction.atomic():
        held = Deployment.objects.select_for_update().filter(version=version).first()
        before = {"replicas": held.replicas, "device": held.device} if held else None
        changed = want(version=version, replicas=replicas, device=device)
        after = {"replicas": changed.replicas, "device": changed.device}
        audit.record(actor, "scale", "version", str(version), team=version.model.team, before=before, after=after)
    return changed


def set_draining(*, host: Host, draining: bool, actor: Actor) -> Host:
    """Takes a host out of service: its replicas get successors elsewhere, then stop. Or puts it back."""
    require(actor, Verb.OPERATE, host)
    with transaction.atomic():
        if Host.objects.filter(name=host.name, draining=not draining).update(draining=draining) == 1:
            verb = "drain" if draining else "undrain"
            before, after = {"draining": not draining}, {"draining": draining}
            audit.record(actor, verb, "host", host.name, before=before, after=after)
            send_on_commit(messages.RECONCILE)
    host.refresh_from_db()
    return host


def restart_replica(*, replica: Replica, actor: Actor) -> Replica:
    """Replaces the replica's process by one of the next generation on the same device; the old one serves meanwhile."""
    require(actor, Verb.OPERATE, replica.deployment)
    version = replica.deployment.version
    with transaction.atomic():
        changed = Replica.objects.filter(id=replica.id, generation=replica.generation, wanted="run").update(
            generation=F("generation") + 1, phase="pending", message="", restarts=0
        )
        if changed != 1:
            raise Conflict
        audit.record(
            actor, "restart", "replica", str(replica.id), team=version.model.team, after={"version": str(version)}
        )
        if replica.host_id:
            messages.wake_host_on_commit(replica.host_id)
    replica.refresh_from_db()
    return replica


def host_named(name: str) -> Host:
    """Raises NotFound."""
    host = Host.objects.filter(name=name).first()
    if host is None:
        raise NotFound(f"there is no host '{name[:64]}'")
    return host
