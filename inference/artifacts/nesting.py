"""A pipeline whose steps are pipelines, as one flat graph of plain versions.

Flat, and not walked level by level, because then each step is one request to one replica, counted once under its own
name, the steps of all levels run as soon as their own inputs are there, and a pipeline has no depth where it is served.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping, Sequence

import msgspec

from inference.artifacts.paths import shown
from inference.errors import Rejected
from inference.protocol.pipelines import MAX_STEPS, Pipeline, PipelineStep

MAX_NAME = 64
MARK = 8


def flattened(pipeline: Pipeline, inner: Mapping[str, Sequence[PipelineStep]]) -> Pipeline:
    """The same graph with other steps in the place of some of its own. inner: step -> the plain steps that it is made of.

    A step S's step T is called `S.T`; what bounds S (`max_inflight`) bounds each of its steps. Steps that make nothing
    for an output are left out, as nobody would ask for them. Raises Rejected for more than MAX_STEPS.
    """
    tensors = {spec.name for spec in pipeline.inputs} | {
        tensor for step in pipeline.steps for tensor in step.output_map.values()
    }
    names = {step.name for step in pipeline.steps}
    steps: list[PipelineStep] = []
    for step in pipeline.steps:
        if step.name not in inner:
            steps.append(step)
            continue
        for made in _opened(step, inner[step.name], tensors):
            name = _free(f"{step.name}.{made.name}", names)
            names.add(name)
            steps.append(msgspec.structs.replace(made, name=name))
    kept = _leading_to({spec.name for spec in pipeline.outputs}, steps)
    if len(kept) > MAX_STEPS:
        nested = ", ".join(shown(name) for name in sorted(inner)[:8])
        raise Rejected(
            f"with the steps of the pipelines in its steps {nested} it has {len(kept)} steps, and at most {MAX_STEPS} can be",
            remedy="Leave some out, or call the larger ones from the client.",
            check="graph",
        )
    return msgspec.structs.replace(pipeline, steps=kept)


def _opened(step: PipelineStep, inside: Sequence[PipelineStep], tensors: set[str]) -> list[PipelineStep]:
    """The steps `inside` of this one, reading and making the outer graph's tensors. tensors: names that are taken."""
    renamed = dict(step.input_map) | dict(step.output_map)
    made = [name for one in inside for name in one.output_map.values()]
    for name in (*made, *(name for one in inside for name in one.input_map.values())):
        if name not in renamed:
            renamed[name] = fresh = _free(f"{step.name}.{name}", tensors, most=256)
            tensors.add(fresh)
    return [
        msgspec.structs.replace(
            one,
            input_map={own: renamed[name] for own, name in one.input_map.items()},
            output_map={own: renamed[name] for own, name in one.output_map.items()},
            max_inflight=min(filter(None, (step.max_inflight, one.max_inflight)), default=0),
        )
        for one in inside
    ]


def _leading_to(wanted: set[str], steps: Sequence[PipelineStep]) -> list[PipelineStep]:
    makers = {tensor: step for step in steps for tensor in step.output_map.values()}
    kept, rest = set[str](), list(wanted)
    while rest:
        maker = makers.get(rest.pop())
        if maker is not None and maker.name not in kept:
            kept.add(maker.name)
            rest += maker.input_map.values()
    return [step for step in steps if step.name in kept]


def _free(name: str, taken: Container[str], most: int = MAX_NAME) -> str:
    """The name, or one like it that is short enough and stands for nothing else."""
    found = name
    while len(found) > most or found in taken:
        mark = hashlib.sha256(found.encode()).hexdigest()[:MARK]
        found = f"{name[: most - MARK - 1]}-{mark}"
    return found
