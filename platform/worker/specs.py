"""From rows to what the supervisor is told: the whole wanted set of one host. Specs hold no secret."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import msgspec

from endpoints.adapters import adapters_for
from endpoints.models import Adapter
from fleet.models import Host, Replica
from fleet.reconciling import device_memory_bytes, peak_memory_bytes
from inference.protocol.oip import Signature
from inference.protocol.supervision import AdapterSpec, FileRef, ReplicaSpec, ValidationSpec
from registry.models import ValidationRun, Version

FLOOR_BYTES = 2 << 30
# What CUDA's and XLA's runtimes map and stage on the host beside the model.
RUNTIME_BYTES = 4 << 30
log = logging.getLogger(__name__)


def replica_specs(host: str) -> list[ReplicaSpec]:
    """What this host shall have: its replicas that are wanted to run, each at its row's generation."""
    rows = list(
        Replica.objects.filter(host_id=host, wanted="run")
        .select_related("deployment__version__model")
        .order_by("created_at", "id")
    )
    cpus = Host.objects.filter(name=host).values_list("cpus", flat=True).first() or 1
    threads = max(1, cpus // max(1, len(rows)))
    adapters = adapters_for(row.deployment.version_id for row in rows)
    specs = (_replica(row, threads, adapters.get(row.deployment.version_id, [])) for row in rows)
    return [spec for spec in specs if spec is not None]


def validation_specs(runs: Iterable[ValidationRun]) -> list[ValidationSpec]:
    """The validations that this host holds, each under its lease."""
    return [
        ValidationSpec(
            run=str(run.id),
            lease=run.lease,
            model=run.version.model.name,
            version=run.version.number,
            digest=run.version.digest,
            # Code is named as such only once a person has approved it, and nothing of it runs before.
            tier=run.version.tier if run.version.approved_by else "",
            files=msgspec.convert(run.version.manifest["files"], list[FileRef]),
            settings=dict(run.version.manifest.get("settings") or {}),
            purpose=run.purpose,
        )
        for run in runs
    ]


def _replica(row: Replica, threads: int, adapters: list[Adapter]) -> ReplicaSpec | None:
    version = row.deployment.version
    try:
        return ReplicaSpec(
            id=str(row.id),
            generation=row.generation,
            model=version.model.name,
            version=version.number,
            digest=version.digest,
            format=version.format,
            tier=version.tier,
            files=msgspec.convert(version.served_files or version.manifest["files"], list[FileRef]),
            signature=msgspec.convert(version.signature, Signature),
            settings=dict(version.settings),
            device=row.device,
            memory_bytes=_limit_bytes(version, row.device),
            threads=threads,
            device_memory_bytes=device_memory_bytes(version) if row.device_memory_share else 0,
            device_memory_share=row.device_memory_share,
            adapters=[_adapter(adapter) for adapter in adapters],
        )
    except (msgspec.ValidationError, KeyError):
        log.exception("replica %s of %s cannot be started from its rows", row.id, version)
        return None


def _adapter(adapter: Adapter) -> AdapterSpec:
    version = adapter.version
    files = msgspec.convert(version.served_files or version.manifest["files"], list[FileRef])
    return AdapterSpec(adapter.name, str(version), version.digest, files)


def _limit_bytes(version: Version, device: str) -> int:
    """Of host memory, what validation allowed it, or twice what it then took; beside an accelerator its runtime too."""
    own = max(FLOOR_BYTES, 4 * version.size_bytes, 2 * peak_memory_bytes(version))
    return own if device == "cpu" else own + RUNTIME_BYTES
