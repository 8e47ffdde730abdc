"""Pipelines as rows: which versions their steps are, whether they fit, and what keeps them. Called by registry.versions.

A pipeline is judged when it is created, in the transaction that writes it: its steps' rows are locked meanwhile, so
that none is archived between the check and the commit. It needs no host, for nothing of it runs by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from django.db.models import QuerySet

from accounts.audit import record
from accounts.models import Team
from accounts.permissions import SYSTEM
from inference.artifacts import nesting, pipelines
from inference.artifacts.manifest import TIER_OF, Format, Manifest
from inference.artifacts.paths import shown
from inference.artifacts.pipelines import StepFacts
from inference.errors import ClientError, Rejected
from inference.protocol.oip import Signature
from inference.protocol.pipelines import ENTRY, MAX_BYTES, NEWEST, Pipeline, PipelineStep, encode
from inference.protocol.settings import RuntimeSettings
from inference.protocol.supervision import CheckSeen, FileRef
from registry.aliases import set_alias
from registry.models import PipelineStep as StepRow
from registry.models import Version, VersionStatus
from registry.moves import move
from registry.storage import store

T = TypeVar("T")
CHECKS = ("read", "graph", "steps", "tensors")


@dataclass(slots=True)
class Judged:
    """The verdict: with a signature, or with why it was refused. pipeline: as soon as it is a graph, flat and pinned when
    it passed; versions: those of its steps, as soon as there is one for each.
    """

    manifest: Manifest
    checks: list[CheckSeen] = field(default_factory=list)
    pipeline: Pipeline | None = None
    versions: dict[str, Version] = field(default_factory=dict)
    signature: Signature | None = None
    refused: Rejected | None = None

    def step(self, name: str, do: Callable[[], T]) -> T:
        """Runs one line of the checklist. Raises what `do` raises."""
        began = time.perf_counter()
        try:
            found = do()
        except Rejected as error:
            ms = round((time.perf_counter() - began) * 1e3, 3)
            self.checks.append(CheckSeen(name, "failed", error.reason, error.remedy, ms))
            rest = CHECKS[CHECKS.index(name) + 1 :]
            self.checks += [CheckSeen(later, "skipped") for later in rest]
            raise
        self.checks.append(CheckSeen(name, "passed", ms=round((time.perf_counter() - began) * 1e3, 3)))
        return found


def definition_of(manifest: Manifest) -> bytes | None:
    """The content of a pipeline.json; None for the files of anything else. Raises ClientError for settings."""
    files = manifest.files
    if len(files) != 1 or not files[0].path.endswith(".json") or files[0].size_bytes > MAX_BYTES:
        return None
    data = store().path(files[0].sha256).read_bytes()
    if not pipelines.is_definition(files[0].path, data):
        return None
    if manifest.settings != RuntimeSettings():
        named = ", ".join(sorted(msgspec.to_builtins(manifest.settings)))
        raise ClientError(f"runtime: a pipeline has no settings of its own ({named}): its steps' versions have them")
    return data


def judge(data: bytes, manifest: Manifest, team: Team) -> Judged:
    """As `examine`, and stores the pinned definition of one that passed: the manifest then holds that, so that the
    version's digest says which versions it is made of.
    """
    judged = examine(data, team)
    judged.manifest = manifest
    if judged.signature is not None and judged.pipeline is not None:
        sha256, size = store().put_stream([encode(judged.pipeline)])
        judged.manifest = Manifest(files=[FileRef(ENTRY, size, sha256)], settings=manifest.settings)
    return judged


def examine(data: bytes, team: Team) -> Judged:
    """Reads the definition, finds and locks its steps' versions, and checks that they fit. Runs in a transaction."""
    judged = Judged(Manifest(files=[]))
    try:
        pipeline = judged.step("read", lambda: pipelines.read(data))
        ordered = judged.step("graph", lambda: pipelines.check_graph(pipeline))
        judged.pipeline = pipeline
        flat, versions = judged.step("steps", lambda: _resolved(pipeline, ordered, team))
        judged.versions = {step.name: versions[step.name] for step in ordered}
        facts = {name: _facts(version) for name, version in versions.items()}
        signature = judged.step("tensors", lambda: _fitting(pipeline, flat, facts))
    except Rejected as error:
        judged.refused = error
        return judged
    judged.pipeline, judged.signature = pipelines.pin(flat, facts, signature), signature
    judged.versions = {step.name: versions[step.name] for step in flat.steps}
    return judged


def settle(version: Version, judged: Judged) -> None:
    """Writes the verdict about a version that was just made: ready with its steps, or rejected with the reason."""
    report: dict[str, Any] = {"checks": msgspec.to_builtins(judged.checks), "measurements": {}, "host": ""}
    changes: dict[str, object] = {
        "format": Format.PIPELINE.value,
        "tier": TIER_OF[Format.PIPELINE].value,
        "report": report,
    }
    if judged.pipeline is None or judged.signature is None:
        refused = judged.refused or Rejected("it was not judged")
        move(version, VersionStatus.REJECTED, reason=refused.reason[:2000], remedy=refused.remedy[:2000], **changes)
    else:
        move(version, VersionStatus.READY, signature=msgspec.to_builtins(judged.signature), **changes)
        _write_steps(version, judged.pipeline.steps, judged.versions)
    after = {"status": version.status, "format": version.format, "steps": [str(v) for v in judged.versions.values()]}
    record(
        SYSTEM,
        "validate_version",
        "version",
        str(version),
        team=version.model.team,
        before={"status": VersionStatus.VALIDATING},
        after=after,
        reason=version.reason,
    )
    if version.wanted_alias and version.status == VersionStatus.READY:
        name = version.wanted_alias
        set_alias(actor=SYSTEM, model=version.model, name=name, version=version, reason="asked for at upload")


def steps_of(version: Version) -> list[Version]:
    """The versions that a pipeline's steps are, each once; empty for a version that is none."""
    rows = Version.objects.filter(used_in__pipeline=version).select_related("model__team").distinct()
    return list(rows.order_by("pk"))


def _write_steps(version: Version, steps: list[PipelineStep], versions: dict[str, Version]) -> None:
    StepRow.objects.bulk_create(
        [
            StepRow(
                pipeline=version,
                position=position,
                name=step.name,
                version=versions[step.name],
                input_map=step.input_map,
                output_map=step.output_map,
                max_inflight=step.max_inflight,
            )
            for position, step in enumerate(steps)
        ]
    )


def _resolved(pipeline: Pipeline, ordered: list[PipelineStep], team: Team) -> tuple[Pipeline, dict[str, Version]]:
    """The graph with pipelines opened, and the locked version of each step, before and after that."""
    found = {step.name: _find(step, team) for step in ordered}
    inner = {name: _inside(version) for name, version in found.items() if version.format == Format.PIPELINE}
    flat = nesting.flattened(pipeline, inner) if inner else pipeline
    found |= {step.name: _find(step, team) for step in flat.steps if step.name not in found}
    # In one order, so that two pipelines over the same versions never wait for each other.
    rows = Version.objects.select_for_update(of=("self",)).select_related("model").order_by("pk")
    locked = {row.pk: row for row in rows.filter(pk__in={version.pk for version in found.values()})}
    for step in (*ordered, *flat.steps):
        row = locked[found[step.name].pk]
        if row.status != VersionStatus.READY:
            status = VersionStatus(row.status).label.lower()
            raise _missing(step, f"{row} is {status}, and only a ready version can be a step")
    return flat, {name: locked[version.pk] for name, version in found.items()}


def _inside(version: Version) -> list[PipelineStep]:
    """What a ready pipeline is made of: plain versions, for it was opened itself when it was made."""
    return [
        PipelineStep(
            name=row.name,
            model=row.version.model.name,
            version=row.version.number,
            input_map=row.input_map,
            output_map=row.output_map,
            max_inflight=row.max_inflight,
        )
        for row in version.steps.select_related("version__model").order_by("position")
    ]


def _fitting(pipeline: Pipeline, flat: Pipeline, facts: dict[str, StepFacts]) -> Signature:
    """As it was written first, so that errors bear the names that its author knows."""
    signature = pipelines.check_steps(pipeline, facts)
    if flat is pipeline:
        return signature
    pipelines.check_graph(flat)
    pinned = msgspec.structs.replace(flat, max_batch_size=signature.max_batch_size)
    return pipelines.check_steps(pinned, facts)


def _find(step: PipelineStep, team: Team) -> Version:
    if step.alias and step.version != NEWEST:
        raise _missing(step, "it names both a version and an alias: leave one of them out")
    versions: QuerySet[Version] = Version.objects.filter(model__name=step.model, model__team=team)
    if not versions.exists():
        raise _missing(step, f"team {team.name} has no model {shown(step.model)} with a version")
    if step.alias:
        found = versions.filter(aliases__name=step.alias).first()
        what = f"alias {shown(step.alias)}"
    elif step.version != NEWEST:
        found, what = versions.filter(number=step.version).first(), f"version {step.version}"
    else:
        found, what = versions.filter(status=VersionStatus.READY).order_by("-number").first(), "ready version"
    if found is None:
        raise _missing(step, f"model {shown(step.model)} has no {what}")
    return found


def _facts(version: Version) -> StepFacts:
    settings = msgspec.convert(version.settings, RuntimeSettings)
    obstacle = ""
    if settings.sequence is not None:
        obstacle = f"{version} keeps state between the requests of a sequence, which a pipeline cannot"
    elif settings.decoupled:
        obstacle = f"{version} gives any number of answers, and a pipeline's step must give one"
    return StepFacts(version.number, msgspec.convert(version.signature, Signature), obstacle)


def _missing(step: PipelineStep, why: str) -> Rejected:
    return Rejected(f"step {shown(step.name)}: {why}", remedy="Upload that model first, or name another version.")
