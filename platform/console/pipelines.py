"""A pipeline as its pages show it: the picture of its graph, and a line for each step with how it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from console.graph import Box, Picture, Wire, layout
from console.templatetags.serinus import ms, shape
from console.traffic import Traffic, traffic_of
from fleet.standing import ready_counts
from inference.protocol.oip import TensorSpec
from inference.protocol.pipelines import Pipeline
from registry.models import PipelineStep, Version

NAME_CHARS = 64


@dataclass(slots=True)
class StepShown:
    """One step: its version (None: not known yet), its maps, ready replicas, and its traffic when there was any."""

    name: str
    model: str
    number: int | None
    input_map: dict[str, str]
    output_map: dict[str, str]
    ready: int = 0
    traffic: Traffic | None = None

    @property
    def version(self) -> str:
        return f"{self.model}:{self.number}" if self.number else self.model

    @property
    def p50_ms(self) -> float | None:
        return self.traffic.quantile_ms(0.5) if self.traffic else None

    @property
    def p99_ms(self) -> float | None:
        return self.traffic.quantile_ms(0.99) if self.traffic else None


@dataclass(slots=True)
class PipelineShown:
    steps: list[StepShown]
    picture: Picture
    is_deployed: bool = False


def pipeline_of(version: Version, endpoint: str = "") -> PipelineShown | None:
    """What a version's page shows of its graph, None for one that is no pipeline. `endpoint`: whose traffic to tell."""
    rows = list(PipelineStep.objects.filter(pipeline=version).select_related("version__model").order_by("position"))
    if not rows:
        return None
    ready = ready_counts({row.version_id for row in rows})
    keys = {row.name: f"{endpoint}/{row.name}"[:NAME_CHARS] for row in rows}
    traffic = traffic_of(sorted(keys.values())) if endpoint else {}
    steps = [
        StepShown(
            row.name,
            row.version.model.name,
            row.version.number,
            row.input_map,
            row.output_map,
            ready.get(row.version_id, 0),
            traffic.get(keys[row.name]),
        )
        for row in rows
    ]
    deployed = bool(endpoint) or version.variants.exists()
    signature = version.signature or {}
    picture = draw(signature.get("inputs", []), signature.get("outputs", []), steps, deployed=deployed)
    return PipelineShown(steps, picture, deployed)


def definition_shown(pipeline: Pipeline, versions: dict[str, Version]) -> PipelineShown:
    """The same for a definition that is being written."""
    steps = [
        StepShown(
            step.name,
            step.model,
            versions[step.name].number if step.name in versions else None,
            step.input_map,
            step.output_map,
        )
        for step in pipeline.steps
    ]
    inputs, outputs = ([_described(t) for t in side] for side in (pipeline.inputs, pipeline.outputs))
    return PipelineShown(steps, draw(inputs, outputs, steps, deployed=False))


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}


def draw(
    inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]], steps: Sequence[StepShown], *, deployed: bool
) -> Picture:
    boxes = [Box(f"in:{spec['name']}", "input", spec["name"], (_spec(spec),)) for spec in inputs]
    boxes += [
        Box(f"step:{step.name}", "step", step.name, _lines(step, deployed), _tone(step, deployed)) for step in steps
    ]
    boxes += [Box(f"out:{spec['name']}", "output", spec["name"], (_spec(spec),)) for spec in outputs]
    makers = {spec["name"]: f"in:{spec['name']}" for spec in inputs}
    makers |= {tensor: f"step:{step.name}" for step in steps for tensor in step.output_map.values()}
    wires = [
        Wire(makers.get(tensor, ""), f"step:{step.name}", tensor)
        for step in steps
        for tensor in step.input_map.values()
    ]
    wires += [Wire(makers.get(spec["name"], ""), f"out:{spec['name']}", spec["name"]) for spec in outputs]
    return layout(boxes, wires)


def _spec(spec: dict[str, Any]) -> str:
    return f"{spec['datatype']} {shape(spec['shape'])}"


def _lines(step: StepShown, deployed: bool) -> tuple[str, ...]:
    if not deployed:
        return (step.version,)
    state = f"{step.ready} ready" if step.ready else "none ready"
    return step.version, f"{state} · {ms(step.p50_ms)}" if step.p50_ms is not None else state


def _tone(step: StepShown, deployed: bool) -> str:
    return ("good" if step.ready else "bad") if deployed else ""
