"""Pipelines for tests: definitions by hand, and random graphs that can run."""

from __future__ import annotations

import random
from typing import Any

import msgspec

from inference.artifacts.pipelines import StepFacts
from inference.protocol.oip import Signature, TensorSpec
from inference.protocol.pipelines import Pipeline, PipelineStep, PipelineTensor


def tensor(name: str, shape: list[int] | None = None, datatype: str = "FP32", **more: Any) -> PipelineTensor:
    return PipelineTensor(name, datatype, [-1, 4] if shape is None else shape, **more)


def signature(
    inputs: list[tuple[str, list[int]]] | None = None,
    outputs: list[tuple[str, list[int]]] | None = None,
    *,
    batch: int = 8,
    datatype: str = "FP32",
) -> Signature:
    return Signature(
        inputs=[TensorSpec(name, datatype, shape) for name, shape in inputs or [("x", [-1, 4])]],
        outputs=[TensorSpec(name, datatype, shape) for name, shape in outputs or [("y", [-1, 4])]],
        max_batch_size=batch,
        platform="echo",
    )


def step(name: str, reads: str | dict[str, str], makes: str | dict[str, str], **more: Any) -> PipelineStep:
    """A step with the input x and the output y, unless told otherwise."""
    inputs = {"x": reads} if isinstance(reads, str) else reads
    outputs = {"y": makes} if isinstance(makes, str) else makes
    return PipelineStep(**{"name": name, "model": name, "input_map": inputs, "output_map": outputs} | more)


def chain(*names: str, batch: int | None = None) -> Pipeline:
    """raw -> names... -> out"""
    tensors = ["raw", *(f"t{place}" for place in range(1, len(names))), "out"]
    steps = [step(name, tensors[place], tensors[place + 1]) for place, name in enumerate(names)]
    return Pipeline(inputs=[tensor("raw")], outputs=[tensor("out")], steps=steps, max_batch_size=batch)


def facts(pipeline: Pipeline, **given: StepFacts) -> dict[str, StepFacts]:
    """What each step's version is: inputs and outputs as the step names them, [-1, 4], batches of 8."""
    return {
        one.name: given.get(one.name)
        or StepFacts(
            1, signature([(name, [-1, 4]) for name in one.input_map], [(name, [-1, 4]) for name in one.output_map])
        )
        for one in pipeline.steps
    }


def random_graph(seed: int, steps: int) -> Pipeline:
    """A graph that can run: every step reads tensors that are there before it, and everything leads to an output."""
    chance = random.Random(seed)
    inputs = [f"in{number}" for number in range(chance.randint(1, 3))]
    tensors, used, made = list(inputs), set[str](), []
    for number in range(steps):
        reads = chance.sample(tensors, chance.randint(1, min(3, len(tensors))))
        makes = [f"s{number}.{place}" for place in range(chance.randint(1, 3))]
        used.update(reads)
        made.append(
            step(
                f"s{number}",
                {f"x{place}": name for place, name in enumerate(reads)},
                {f"y{place}": name for place, name in enumerate(makes)},
            )
        )
        tensors += makes
    outputs = [one for one in tensors if one not in used and one not in inputs]
    outputs += [one for one in used if one not in inputs and chance.random() < 0.2]
    kept = [name for name in inputs if name in used]
    chance.shuffle(made)
    return Pipeline(inputs=[tensor(name) for name in kept], outputs=[tensor(name) for name in outputs], steps=made)


def as_json(pipeline: Pipeline) -> Any:
    return msgspec.to_builtins(pipeline)


def created(actor: Any, team: Any, pipeline: Pipeline | bytes, name: str = "chain", **options: Any) -> Any:
    """A version made of this definition, by the actions of a real upload."""
    from registry import actions
    from tests.support.contents import sent

    data = pipeline if isinstance(pipeline, bytes) else msgspec.json.encode(pipeline)
    upload = sent(actor, team, data, "pipeline.json")
    files: Any = [{"path": "pipeline.json", "upload": str(upload.id)}]
    return actions.create_version(actor=actor, model_name=name, files=files, team=team, **options)
