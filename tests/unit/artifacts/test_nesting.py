"""Pipelines whose steps are pipelines, opened."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.artifacts import pipelines
from inference.artifacts.nesting import flattened
from inference.errors import Rejected
from inference.protocol.pipelines import Pipeline, PipelineStep
from tests.support.pipelines import chain, facts, random_graph, step, tensor


def run(pipeline: Pipeline, values: dict[str, int], inner: dict[str, Pipeline]) -> dict[str, int]:
    """What a graph answers, level by level, where each plain step hashes its model's name and inputs."""
    held = dict(values)
    for one in pipelines.check_graph(pipeline):
        given = {own: held[name] for own, name in one.input_map.items()}
        if one.name in inner:
            found = run(inner[one.name], given, {})
        else:
            found = {own: hash((one.model, own, *sorted(given.items()))) for own in one.output_map}
        held |= {outer: found[own] for own, outer in one.output_map.items()}
    return {spec.name: held[spec.name] for spec in pipeline.outputs}


@given(st.integers(0, 10**9), st.integers(1, 8), st.integers(1, 8))
def test_the_flat_graph_answers_as_the_nested_one(seed: int, outside: int, inside: int) -> None:
    chance = random.Random(seed)
    outer, inner = random_graph(seed, outside), {}
    steps: list[PipelineStep] = []
    for one in outer.steps:
        if chance.random() < 0.5:
            steps.append(one)
            continue
        graph = inner[one.name] = random_graph(chance.randrange(10**9), inside)
        reads = {spec.name: chance.choice(list(one.input_map.values())) for spec in graph.inputs}
        left = [name for name in one.input_map.values() if name not in reads.values()]
        own = [spec.name for spec in graph.outputs]
        makes = dict(zip(own, one.output_map.values(), strict=False))
        if left or len(makes) < len(one.output_map):
            del inner[one.name]
            steps.append(one)
        else:
            steps.append(step(one.name, reads, makes))
    nested = Pipeline(inputs=outer.inputs, outputs=outer.outputs, steps=steps)
    flat = flattened(nested, {name: graph.steps for name, graph in inner.items()})
    values = {spec.name: place for place, spec in enumerate(nested.inputs)}
    assert run(flat, values, {}) == run(nested, values, inner)
    assert not {one.name for one in flat.steps} & inner.keys()


def test_names_maps_and_bounds() -> None:
    nested = Pipeline(
        inputs=[tensor("raw")],
        outputs=[tensor("out")],
        steps=[step("pre", {"raw": "raw"}, {"out": "t1"}, max_inflight=8), step("pre.a", "t1", "out")],
    )
    inner = [*chain("a", "b").steps[:1], step("b", "t1", "out", max_inflight=5)]
    flat = flattened(nested, {"pre": inner})
    names = [one.name for one in flat.steps]
    assert names[0].startswith("pre.a-")
    assert names[1:] == ["pre.b", "pre.a"]
    assert [(one.input_map, one.output_map, one.max_inflight) for one in flat.steps] == [
        ({"x": "raw"}, {"y": "pre.t1"}, 8),
        ({"x": "pre.t1"}, {"y": "t1"}, 5),
        ({"x": "t1"}, {"y": "out"}, 0),
    ]
    pipelines.check_steps(flat, facts(flat))
    long = flattened(chain("n" * 40), {"n" * 40: [step("m" * 40, {"x": "x"}, {"y": "y"})]})
    assert len(long.steps[0].name) == 64


def test_what_nobody_asks_of_an_inner_pipeline_is_not_run() -> None:
    inner = [step("a", "raw", "left"), step("b", "raw", "right")]
    nested = Pipeline([tensor("in")], [tensor("out")], [step("pre", {"raw": "in"}, {"right": "out"})])
    assert [one.name for one in flattened(nested, {"pre": inner}).steps] == ["pre.b"]


def test_too_many_steps_are_refused_with_the_names_of_the_pipelines() -> None:
    wide = chain(*(f"s{number}" for number in range(33)))
    outer = Pipeline(
        [tensor("raw")],
        [tensor("out")],
        [step("one", {"raw": "raw"}, {"out": "t"}), step("two", {"raw": "t"}, {"out": "out"})],
    )
    assert len(flattened(outer, {"one": wide.steps}).steps) == 34
    with pytest.raises(Rejected, match="its steps 'one', 'two' it has 66 steps, and at most 64"):
        flattened(outer, {"one": wide.steps, "two": wide.steps})
