"""What a repository's folder asks for: models in an order in which each ensemble comes after its steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from inference.artifacts.nesting import flattened
from inference.artifacts.triton import repository
from inference.artifacts.triton.repository import RepositoryModel
from inference.artifacts.triton.translate import ENSEMBLE
from inference.errors import Rejected
from inference.protocol.pipelines import ENTRY, Pipeline, encode

PIPELINE = ENTRY
NEWEST = -1
NO_OVERRIDES: Mapping[str, Path] = {}
NO_ENSEMBLES: Mapping[tuple[str, int], Pipeline] = {}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A model that cannot be imported, and why."""

    name: str
    reason: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """models in the order in which they are imported."""

    models: list[RepositoryModel] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


def plan(root: Path, wanted: Iterable[str] = (), overrides: Mapping[str, Path] = NO_OVERRIDES) -> Plan:
    """All models of the folder, or those `wanted` with the steps of their ensembles. overrides: model -> what takes the
    place of its config.pbtxt. Raises Rejected for no folder.
    """
    there = repository.names(root)
    asked = list(dict.fromkeys(wanted)) or there
    found: dict[str, RepositoryModel] = {}
    refused: dict[str, Refusal] = {}
    queue = list(asked)
    while queue:
        name = queue.pop(0)
        if name in found or name in refused:
            continue
        try:
            found[name] = repository.model(root, name, overrides.get(name))
        except Rejected as error:
            refused[name] = Refusal(name, error.reason, error.remedy)
        else:
            queue += [step.model for step in found[name].translated.steps]
    return ordered(found, refused)


def ordered(found: Mapping[str, RepositoryModel], refused: Mapping[str, Refusal]) -> Plan:
    """Steps before ensembles; an ensemble with a refused step, or within a circle, is refused too."""
    done: dict[str, RepositoryModel] = {}
    refusals = dict(refused)
    left = dict(sorted(found.items()))
    while left:
        before = len(left)
        for name, model in list(left.items()):
            steps = [step.model for step in model.translated.steps]
            bad = next((step for step in steps if step in refusals), "")
            if bad:
                del left[name]
                refusals[name] = Refusal(name, f"its step '{bad}' cannot be imported: {refusals[bad].reason}")
            elif all(step in done for step in steps):
                done[name] = left.pop(name)
        if len(left) == before:
            break
    for name in left:
        refusals[name] = Refusal(name, f"it waits for ensembles in a circle: {_circle(name, left)}")
    return Plan(list(done.values()), [refusals[name] for name in sorted(refusals)])


def _circle(name: str, left: Mapping[str, RepositoryModel]) -> str:
    """Words for the circle that this ensemble is in, or waits for: each of those that are left waits for another."""
    path = [name]
    while path[-1] not in path[:-1]:
        path.append(next(step.model for step in left[path[-1]].translated.steps if step.model in left))
    return " <- ".join(path[path.index(path[-1]) :])


def pipeline(
    model: RepositoryModel,
    newest: Mapping[str, int],
    numbers: Mapping[tuple[str, int], int],
    ensembles: Mapping[tuple[str, int], Pipeline] = NO_ENSEMBLES,
) -> bytes:
    """pipeline.json of an ensemble, with every version named, and flat: the registry keeps it so, and what was imported
    before is found again by these bytes.

    newest: model -> the version that its clients get; numbers: (model, Triton's number) -> ours; ensembles: (model, our
    number) -> what those that are ensembles became. Raises Rejected for a step's version that was not imported.
    """
    translated = model.translated
    settings = translated.settings
    steps: list[dict[str, Any]] = []
    for step in translated.steps:
        number = newest.get(step.model) if step.version == NEWEST else numbers.get((step.model, step.version))
        if number is None:
            version = "any version" if step.version == NEWEST else f"version {step.version}"
            raise Rejected(f"its step '{step.model}' has no {version} that was imported", remedy="Import that first.")
        one = {
            "name": step.name,
            "model": step.model,
            "input_map": step.input_map,
            "output_map": step.output_map,
            "version": number,
        }
        steps.append(one | ({"max_inflight": translated.inflight} if translated.inflight else {}))
    outputs: list[dict[str, Any]] = msgspec.to_builtins(settings.outputs)
    if settings.labels:
        outputs[0]["labels"] = settings.labels
    graph = {
        "inputs": msgspec.to_builtins(settings.inputs),
        "outputs": outputs,
        "steps": steps,
        "max_batch_size": settings.max_batch_size,
    }
    made = msgspec.convert(graph, Pipeline)
    inner = {
        step.name: ensembles[step.model, step.version].steps
        for step in made.steps
        if (step.model, step.version) in ensembles
    }
    return encode(flattened(made, inner) if inner else made)


def is_ensemble(model: RepositoryModel) -> bool:
    return model.translated.backend == ENSEMBLE


def rows(outcomes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """For a table: what became what."""
    return [(o.model, o.triton, o.version or "", o.state, o.message) for o in outcomes]
