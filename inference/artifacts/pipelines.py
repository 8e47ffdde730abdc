"""pipeline.json: is it a graph that can run, and do its steps fit each other? Values in, a signature or Rejected out.

What needs rows (which versions there are) is the registry's; what is here needs only the definition and what the
steps' versions take and give.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from inference.artifacts import jsons
from inference.artifacts.paths import shown
from inference.errors import Rejected
from inference.protocol.oip import DATATYPES, MAX_RANK, Signature, TensorSpec
from inference.protocol.pipelines import ENTRY, MAX_BYTES, PLATFORM, Pipeline, PipelineStep

REMEDY = "See docs/pipelines.md for what a pipeline.json says."
MAX_NUMBER = 2**31 - 1
_KEYS = frozenset({"inputs", "outputs", "steps"})


@dataclass(frozen=True, slots=True)
class StepFacts:
    """What the checks need to know of a step's version. obstacle: why it cannot be a step at all, "" when it can."""

    number: int
    signature: Signature
    obstacle: str = ""


def is_definition(path: str, data: bytes) -> bool:
    """Whether a lone file is a pipeline: by its name, or a JSON object with inputs, outputs and steps."""
    name = path.rpartition("/")[2]
    if name == ENTRY:
        return True
    if not name.endswith(".json") or len(data) > MAX_BYTES:
        return False
    try:
        value = jsons.parse(data, name)
    except Rejected:
        return False
    return isinstance(value, dict) and value.keys() >= _KEYS


def read(data: bytes) -> Pipeline:
    """The definition. Raises Rejected, naming the field that is wrong."""
    if len(data) > MAX_BYTES:
        raise Rejected(f"{ENTRY} is larger than {MAX_BYTES} bytes", remedy=REMEDY)
    value = jsons.parse(data, ENTRY, remedy=REMEDY)
    _check_values(value)
    try:
        return msgspec.convert(value, Pipeline)
    except msgspec.ValidationError as error:
        raise Rejected(f"{ENTRY}: {error}", remedy=REMEDY) from error


def check_graph(pipeline: Pipeline) -> list[PipelineStep]:
    """The steps in an order in which they can run. Raises Rejected.

    1. No name stands for two things. 2. Every tensor is made once and by somebody. 3. No step waits for itself.
    4. Every input and every step leads to an output.
    """
    _check_names(pipeline)
    makers = _makers(pipeline)
    _check_sources(pipeline, makers)
    ordered = _ordered(pipeline, makers)
    _check_reached(pipeline, makers)
    return ordered


def check_steps(pipeline: Pipeline, facts: Mapping[str, StepFacts]) -> Signature:
    """What the whole graph takes and gives; `facts` by step name. Raises Rejected, naming the step.

    1. Each step may be one and gets exactly its inputs. 2. Batch sizes agree. 3. Every tensor fits whoever reads it.
    """
    for step in pipeline.steps:
        _check_maps(step, facts[step.name])
    largest = _batch_size(pipeline, facts)
    made = _tensors(pipeline, facts, largest)
    for step in pipeline.steps:
        wanted = {spec.name: _free(spec, facts[step.name].signature.max_batch_size) for spec in _inputs(step, facts)}
        for inner, outer in step.input_map.items():
            _check_fits(made[outer], wanted[inner], f"step {shown(step.name)}: input {shown(inner)}", outer)
            _check_rows(made[outer], facts[step.name].signature, step, outer)
    for output in pipeline.outputs:
        _check_fits(made[output.name], _free(output, largest), f"output {shown(output.name)}", output.name)
    return Signature(
        inputs=[_plain(spec) for spec in pipeline.inputs],
        outputs=[_plain(spec) for spec in pipeline.outputs],
        max_batch_size=largest,
        platform=PLATFORM,
        labels=next((output.labels for output in pipeline.outputs if output.labels), []),
    )


def pin(pipeline: Pipeline, facts: Mapping[str, StepFacts], signature: Signature) -> Pipeline:
    """The same graph with every version and the batch size written out: it means the same for ever."""
    steps = [msgspec.structs.replace(step, version=facts[step.name].number, alias="") for step in pipeline.steps]
    return msgspec.structs.replace(pipeline, steps=steps, max_batch_size=signature.max_batch_size)


def _check_values(value: Any) -> None:
    """Text can be shown and stored, numbers fit 32 bits. Raises Rejected."""
    rest = [value]
    while rest:
        one = rest.pop()
        if isinstance(one, dict):
            rest += one.keys()
            rest += one.values()
        elif isinstance(one, list):
            rest += one
        elif isinstance(one, str) and not one.isprintable():
            raise Rejected(f"{ENTRY}: {shown(one)} holds a character that cannot be printed", remedy=REMEDY)
        elif isinstance(one, int) and not -MAX_NUMBER <= one <= MAX_NUMBER:
            raise Rejected(f"{ENTRY} holds a number that is out of range", remedy=REMEDY)


# -- the graph ---------------------------------------------------------------------------------------------------------


def _check_names(pipeline: Pipeline) -> None:
    for what, names in (
        ("step", [step.name for step in pipeline.steps]),
        ("input", [spec.name for spec in pipeline.inputs]),
        ("output", [spec.name for spec in pipeline.outputs]),
    ):
        twice = _first_twice(names)
        if twice:
            raise _broken(f"the {what} {shown(twice)} is there twice")
    for spec in (*pipeline.inputs, *pipeline.outputs):
        if spec.datatype not in DATATYPES:
            raise _broken(f"tensor {shown(spec.name)} has the datatype {shown(spec.datatype)}, which there is not")
        if len(spec.shape) > MAX_RANK or any(size < -1 for size in spec.shape):
            raise _broken(f"tensor {shown(spec.name)} has a shape that is none: {spec.shape[:MAX_RANK]}")
        if spec.optional:
            raise _broken(f"tensor {shown(spec.name)} cannot be optional: a pipeline waits for all of its inputs")


def _makers(pipeline: Pipeline) -> dict[str, PipelineStep | None]:
    """Tensor -> who makes it; None for an input."""
    makers: dict[str, PipelineStep | None] = {spec.name: None for spec in pipeline.inputs}
    for step in pipeline.steps:
        for tensor in step.output_map.values():
            if tensor in makers:
                first = makers[tensor]
                by = f"step {shown(first.name)} makes too" if first is not None else "is an input already"
                raise _broken(f"step {shown(step.name)} makes tensor {shown(tensor)}, which {by}")
            makers[tensor] = step
    return makers


def _check_sources(pipeline: Pipeline, makers: Mapping[str, PipelineStep | None]) -> None:
    for step in pipeline.steps:
        for inner, tensor in step.input_map.items():
            if tensor not in makers:
                raise _broken(
                    f"step {shown(step.name)}: input {shown(inner)} reads tensor {shown(tensor)}, "
                    "which no input is and no step makes"
                )
    for output in pipeline.outputs:
        if makers.get(output.name) is None:
            what = "is an input" if output.name in makers else "is made by no step"
            raise _broken(f"output {shown(output.name)} {what}")


def _ordered(pipeline: Pipeline, makers: Mapping[str, PipelineStep | None]) -> list[PipelineStep]:
    waits = {
        step.name: {maker.name for tensor in step.input_map.values() if (maker := makers[tensor]) is not None}
        for step in pipeline.steps
    }
    steps = {step.name: step for step in pipeline.steps}
    ordered: list[PipelineStep] = []
    done: set[str] = set()
    while len(done) < len(steps):
        free = [name for name in steps if name not in done and waits[name] <= done]
        if not free:
            raise _broken(f"steps wait for each other in a circle: {_circle(waits, done)}")
        ordered += [steps[name] for name in free]
        done.update(free)
    return ordered


def _circle(waits: Mapping[str, set[str]], done: set[str]) -> str:
    """Words for one circle among the steps that are not `done`: each of them waits for another such."""
    path = [next(name for name in waits if name not in done)]
    while path[-1] not in path[:-1]:
        path.append(min(waits[path[-1]] - done))
    return " <- ".join(path[path.index(path[-1]) :])


def _check_reached(pipeline: Pipeline, makers: Mapping[str, PipelineStep | None]) -> None:
    needed, tensors = set[str](), set[str]()
    rest = [output.name for output in pipeline.outputs]
    while rest:
        tensor = rest.pop()
        tensors.add(tensor)
        maker = makers[tensor]
        if maker is not None and maker.name not in needed:
            needed.add(maker.name)
            rest += maker.input_map.values()
    for step in pipeline.steps:
        if step.name not in needed:
            raise _broken(f"step {shown(step.name)} leads to no output")
    for spec in pipeline.inputs:
        if spec.name not in tensors:
            raise _broken(f"input {shown(spec.name)} leads to no output")


# -- the steps ---------------------------------------------------------------------------------------------------------


def _check_maps(step: PipelineStep, facts: StepFacts) -> None:
    where = f"step {shown(step.name)}"
    if facts.obstacle:
        raise _unfit(f"{where}: {facts.obstacle}")
    inputs = {spec.name for spec in facts.signature.inputs}
    outputs = {spec.name for spec in facts.signature.outputs}
    version = f"{step.model}:{facts.number}"
    for what, given, known in (("input", step.input_map, inputs), ("output", step.output_map, outputs)):
        for name in given:
            if name not in known:
                raise _unfit(f"{where}: {version} has no {what} {shown(name)}; it has {_listed(known)}")
    needed = {spec.name for spec in facts.signature.inputs if not spec.optional}
    missing = sorted(needed - step.input_map.keys())
    if missing:
        raise _unfit(f"{where}: {version} also needs its input {shown(missing[0])}")


def _batch_size(pipeline: Pipeline, facts: Mapping[str, StepFacts]) -> int:
    limits = {step.name: facts[step.name].signature.max_batch_size for step in pipeline.steps}
    largest = min(limits.values()) if pipeline.max_batch_size is None else pipeline.max_batch_size
    if not largest:
        return 0
    for name, limit in limits.items():
        if limit < largest:
            takes = f"batches of {limit} at most" if limit else "no batches"
            raise _unfit(f"step {shown(name)} takes {takes}, the pipeline {largest}: lower its max_batch_size")
    for spec in (*pipeline.inputs, *pipeline.outputs):
        if not spec.shape or spec.shape[0] != -1:
            raise _unfit(f"tensor {shown(spec.name)} needs -1 as its first size, the batch's, and has {spec.shape}")
    return largest


def _tensors(pipeline: Pipeline, facts: Mapping[str, StepFacts], largest: int) -> dict[str, TensorSpec]:
    made: dict[str, TensorSpec] = {spec.name: _free(spec, largest) for spec in pipeline.inputs}
    for step in pipeline.steps:
        signature = facts[step.name].signature
        specs = {spec.name: _free(spec, signature.max_batch_size) for spec in signature.outputs}
        made |= {outer: specs[inner] for inner, outer in step.output_map.items()}
    return made


def _inputs(step: PipelineStep, facts: Mapping[str, StepFacts]) -> list[TensorSpec]:
    return facts[step.name].signature.inputs


def _free(spec: TensorSpec, max_batch_size: int) -> TensorSpec:
    """A batch's first size is free, whatever a program with a fixed one says."""
    if max_batch_size and spec.shape:
        return TensorSpec(spec.name, spec.datatype, [-1, *spec.shape[1:]])
    return spec


def _check_fits(made: TensorSpec, wanted: TensorSpec, where: str, tensor: str) -> None:
    if made.datatype != wanted.datatype:
        raise _unfit(f"{where} is {wanted.datatype}, but tensor {shown(tensor)} is {made.datatype}")
    same = len(made.shape) == len(wanted.shape)
    if not same or any(a != b and -1 not in (a, b) for a, b in zip(made.shape, wanted.shape, strict=True)):
        raise _unfit(f"{where} has the shape {wanted.shape}, but tensor {shown(tensor)} has {made.shape}")


def _check_rows(made: TensorSpec, signature: Signature, step: PipelineStep, tensor: str) -> None:
    if signature.max_batch_size and made.shape and made.shape[0] > signature.max_batch_size:
        raise _unfit(
            f"step {shown(step.name)} takes batches of {signature.max_batch_size} at most, "
            f"but tensor {shown(tensor)} has {made.shape[0]} rows"
        )


def _plain(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(spec.name, spec.datatype, spec.shape)


def _first_twice(names: Iterable[str]) -> str:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(shown(name) for name in sorted(names)[:8])


def _broken(reason: str) -> Rejected:
    return Rejected(reason, remedy=REMEDY, check="graph")


def _unfit(reason: str) -> Rejected:
    return Rejected(reason, remedy="Change the step, or name another version in it, and upload again.", check="tensors")
