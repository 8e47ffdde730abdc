"""How many replicas of a version are ready. A pipeline is as ready as the step of it that has the fewest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from fleet.models import Replica
from registry.models import PipelineStep


def ready_counts(versions: Iterable[int]) -> dict[int, int]:
    """Version id -> ready replicas, in two queries; who has none may be left out."""
    wanted = set(versions)
    steps: dict[int, set[int]] = {}
    rows = PipelineStep.objects.filter(pipeline__in=wanted).order_by().values_list("pipeline_id", "version_id")
    for pipeline, step in rows:
        steps.setdefault(pipeline, set()).add(step)
    asked = wanted.union(*steps.values())
    replicas = Replica.objects.filter(wanted="run", phase="ready", deployment__version__in=asked)
    ready = Counter(replicas.values_list("deployment__version_id", flat=True))
    return {**ready, **{pipeline: min(ready[step] for step in held) for pipeline, held in steps.items()}}


def step_ids(versions: Iterable[int]) -> list[int]:
    """The ids of versions that are steps of these pipelines, each once."""
    rows = PipelineStep.objects.filter(pipeline__in=list(versions)).order_by("version_id")
    return list(rows.values_list("version_id", flat=True).distinct())
