"""What may be a pipeline, and what a person is told about one that may not."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.artifacts import pipelines
from inference.artifacts.inspect import inspect
from inference.artifacts.manifest import Format, Tier
from inference.artifacts.pipelines import StepFacts
from inference.errors import Rejected
from inference.protocol.oip import Signature, TensorSpec
from inference.protocol.pipelines import Pipeline, decode, encode
from tests.support.pipelines import as_json, chain, facts, random_graph, signature, step, tensor


def with_steps(*steps, inputs=("raw",), outputs=("out",), **more):
    return Pipeline(
        inputs=[tensor(name) for name in inputs], outputs=[tensor(name) for name in outputs], steps=list(steps), **more
    )


@given(st.integers(0, 10**9), st.integers(1, 20))
def test_a_graph_that_can_run_passes_and_its_order_can_run(seed, steps):
    pipeline = random_graph(seed, steps)
    ordered = pipelines.check_graph(pipeline)
    there = {spec.name for spec in pipeline.inputs}
    for one in ordered:
        assert set(one.input_map.values()) <= there
        there |= set(one.output_map.values())
    assert sorted(one.name for one in ordered) == sorted(one.name for one in pipeline.steps)
    found = pipelines.check_steps(pipeline, facts(pipeline))
    assert found.max_batch_size == 8
    assert [spec.name for spec in found.outputs] == [spec.name for spec in pipeline.outputs]


@given(st.integers(0, 10**9), st.integers(2, 12), st.data())
def test_an_edge_back_is_found_and_named(seed, steps, data):
    pipeline = random_graph(seed, steps)
    ordered = pipelines.check_graph(pipeline)
    early = data.draw(st.sampled_from(ordered))
    later = _after(pipeline, early)
    late = data.draw(st.sampled_from(later))
    looped = msgspec.structs.replace(early, input_map=early.input_map | {"back": next(iter(late.output_map.values()))})
    changed = [looped if one.name == early.name else one for one in pipeline.steps]
    with pytest.raises(Rejected, match=f"in a circle:.*{early.name}") as caught:
        pipelines.check_graph(msgspec.structs.replace(pipeline, steps=changed))
    assert caught.value.check == "graph"


def _after(pipeline, first):
    """`first` and every step that waits for it, however far."""
    found = {first.name: first}
    while True:
        made = {tensor for one in found.values() for tensor in one.output_map.values()}
        more = {one.name: one for one in pipeline.steps if one.name not in found and made & set(one.input_map.values())}
        if not more:
            return list(found.values())
        found |= more


BROKEN = {
    "made twice": (
        with_steps(step("a", "raw", "out"), step("b", "raw", "out")),
        "step 'b' makes tensor 'out', which step 'a' makes too",
    ),
    "an input made again": (with_steps(step("a", "raw", {"y": "raw"})), "which is an input already"),
    "read from nowhere": (
        with_steps(step("a", "ghost", "out")),
        "step 'a': input 'x' reads tensor 'ghost', which no input is and no step makes",
    ),
    "an output of nobody": (with_steps(step("a", "raw", "t")), "output 'out' is made by no step"),
    "an output that is an input": (with_steps(step("a", "raw", "out"), outputs=("out", "raw")), "output 'raw' is an input"),
    "a step for nothing": (with_steps(step("a", "raw", "out"), step("b", "raw", "t")), "step 'b' leads to no output"),
    "an input for nothing": (with_steps(step("a", "raw", "out"), inputs=("raw", "idle")), "input 'idle' leads to no output"),
    "two steps of one name": (with_steps(step("a", "raw", "t"), step("a", "t", "out")), "the step 'a' is there twice"),
    "two inputs of one name": (with_steps(step("a", "raw", "out"), inputs=("raw", "raw")), "the input 'raw' is there twice"),
    "waiting for itself": (
        with_steps(step("a", {"x": "raw", "z": "t"}, {"y": "out", "w": "t"})), "in a circle: a <- a",
    ),
    "a datatype of nobody": (
        Pipeline(inputs=[tensor("raw", datatype="FP7")], outputs=[tensor("out")], steps=[step("a", "raw", "out")]),
        "tensor 'raw' has the datatype 'FP7'",
    ),
    "a shape of nobody": (
        Pipeline(inputs=[tensor("raw", [-2])], outputs=[tensor("out")], steps=[step("a", "raw", "out")]),
        "tensor 'raw' has a shape that is none",
    ),
    "an input that may be left out": (
        Pipeline(
            inputs=[msgspec.structs.replace(tensor("raw"), optional=True)], outputs=[tensor("out")],
            steps=[step("a", "raw", "out")],
        ),
        "tensor 'raw' cannot be optional",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_graph_that_cannot_run_is_refused_by_name(name):
    pipeline, words = BROKEN[name]
    with pytest.raises(Rejected) as caught:
        pipelines.check_graph(pipeline)
    assert words in caught.value.reason


AB = chain("a", "b")
UNFIT = {
    "datatype": (AB, {"b": StepFacts(1, signature(datatype="INT64"))}, "step 'b': input 'x' is INT64, but tensor 't1' is FP32"),
    "shape": (
        AB, {"b": StepFacts(1, signature([("x", [-1, 5])]))},
        "step 'b': input 'x' has the shape [-1, 5], but tensor 't1' has [-1, 4]",
    ),
    "rank": (AB, {"a": StepFacts(1, signature(outputs=[("y", [-1, 4, 1])]))}, "but tensor 't1' has [-1, 4, 1]"),
    "output": (AB, {"b": StepFacts(1, signature(outputs=[("y", [-1, 2])]))}, "output 'out' has the shape [-1, 4]"),
    "unknown input": (AB, {"a": StepFacts(3, signature([("z", [-1, 4])]))}, "step 'a': a:3 has no input 'x'; it has 'z'"),
    "unknown output": (AB, {"a": StepFacts(3, signature(outputs=[("z", [-1, 4])]))}, "step 'a': a:3 has no output 'y'"),
    "input left out": (
        AB, {"a": StepFacts(3, signature([("x", [-1, 4]), ("mask", [-1, 4])]))}, "step 'a': a:3 also needs its input 'mask'",
    ),
    "smaller batch": (
        chain("a", "b", batch=16), {"a": StepFacts(1, signature(batch=64))}, "step 'b' takes batches of 8 at most, the pipeline 16",
    ),
    "no batch": (
        chain("a", "b", batch=4), {"b": StepFacts(1, signature(batch=0))}, "step 'b' takes no batches, the pipeline 4",
    ),
    "first size": (
        Pipeline(inputs=[tensor("raw", [2, 4])], outputs=[tensor("out")], steps=[step("a", "raw", "out")], max_batch_size=8),
        {}, "tensor 'raw' needs -1 as its first size",
    ),
    "too many rows": (
        Pipeline(inputs=[tensor("raw", [9, 4])], outputs=[tensor("out")], steps=[step("a", "raw", "out")], max_batch_size=0),
        {}, "step 'a' takes batches of 8 at most, but tensor 'raw' has 9 rows",
    ),
    "an obstacle": (AB, {"a": StepFacts(1, signature(), "a:1 keeps state")}, "step 'a': a:1 keeps state"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNFIT)
def test_steps_that_do_not_fit_are_named_with_why(name):
    pipeline, given_facts, words = UNFIT[name]
    pipelines.check_graph(pipeline)
    with pytest.raises(Rejected) as caught:
        pipelines.check_steps(pipeline, facts(pipeline, **given_facts))
    assert words in caught.value.reason
    assert caught.value.remedy


def test_free_sizes_fit_every_size_and_a_compiled_batch_is_free():
    fixed = StepFacts(1, signature([("x", [1, -1])], [("y", [1, 4])], batch=8))
    found = pipelines.check_steps(chain("a", "b"), facts(chain("a", "b"), a=fixed))
    assert found.max_batch_size == 8


def test_a_step_may_be_left_without_an_optional_input():
    given_signature = signature([("x", [-1, 4]), ("mask", [-1, 4])])
    needed, optional = given_signature.inputs[0], msgspec.structs.replace(given_signature.inputs[1], optional=True)
    loose = StepFacts(3, msgspec.structs.replace(given_signature, inputs=[needed, optional]))
    assert pipelines.check_steps(AB, facts(AB, a=loose)).inputs


def test_the_batch_is_what_all_steps_take_unless_the_author_says():
    big = StepFacts(1, signature(batch=64))
    assert pipelines.check_steps(AB, facts(AB, a=big)).max_batch_size == 8
    assert pipelines.check_steps(chain("a", "b", batch=3), facts(AB, a=big)).max_batch_size == 3
    assert pipelines.check_steps(chain("a", "b", batch=0), facts(AB, a=big)).max_batch_size == 0
    alone = StepFacts(1, signature(batch=0))
    assert pipelines.check_steps(AB, facts(AB, a=alone)).max_batch_size == 0


def test_a_pinned_pipeline_names_numbers_only_and_means_the_same():
    pipeline = msgspec.structs.replace(AB, steps=[msgspec.structs.replace(AB.steps[0], alias="best"), AB.steps[1]])
    known = facts(pipeline, a=StepFacts(7, signature()))
    found = pipelines.pin(pipeline, known, pipelines.check_steps(pipeline, known))
    assert [(one.version, one.alias) for one in found.steps] == [(7, ""), (1, "")]
    assert found.max_batch_size == 8
    assert decode(encode(found)) == found
    assert pipelines.pin(found, known, pipelines.check_steps(found, known)) == found


def test_the_signature_is_the_pipelines_with_the_labels_of_its_output():
    pipeline = msgspec.structs.replace(AB, outputs=[tensor("out", labels=["cat", "dog"])])
    assert pipelines.check_steps(pipeline, facts(pipeline)) == Signature(
        inputs=[TensorSpec("raw", "FP32", [-1, 4])],
        outputs=[TensorSpec("out", "FP32", [-1, 4])],
        max_batch_size=8,
        platform="ensemble",
        labels=["cat", "dog"],
    )


UNREADABLE = {
    "no JSON": b"{",
    "a list": b"[]",
    "a key twice": b'{"steps": [], "steps": []}',
    "no steps": json.dumps(as_json(AB) | {"steps": []}).encode(),
    "an unknown field": json.dumps(as_json(AB) | {"extra": 1}).encode(),
    "a bad name": json.dumps(as_json(AB)).replace('"name":"a"', '"name":"../a"').replace('"name": "a"', '"name": "../a"').encode(),
    "no map": json.dumps(as_json(AB)).replace('{"x": "raw"}', "{}").encode(),
    "a character that cannot be stored": json.dumps(as_json(AB)).replace('"raw"', '"ra\\u0000w"').encode(),
    "half a character": json.dumps(as_json(AB)).replace('"raw"', '"ra\\ud800w"').encode(),
    "a number without end": json.dumps(as_json(AB)).replace("[-1, 4]", f"[-1, {10**400}]").encode(),
    "deep": b"[" * 100_000,
    "NaN": b'{"max_batch_size": NaN}',
}  # fmt: skip


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_refused_with_a_way_out(name):
    with pytest.raises(Rejected) as caught:
        pipelines.read(UNREADABLE[name])
    assert caught.value.remedy


def test_an_unknown_field_is_refused_by_its_name():
    with pytest.raises(Rejected, match="extra"):
        pipelines.read(UNREADABLE["an unknown field"])


@given(st.binary(max_size=300))
def test_reading_raises_nothing_but_rejected(data):
    try:
        pipelines.read(data)
    except Rejected:
        return
    raise AssertionError("noise is no pipeline")


def test_it_is_known_by_its_name_or_by_what_it_says():
    data = encode(AB)
    assert pipelines.is_definition("folder/pipeline.json", b"anything")
    assert pipelines.is_definition("mine.json", data)
    assert not pipelines.is_definition("mine.txt", data)
    assert not pipelines.is_definition("config.json", b'{"steps": 3}')
    assert not pipelines.is_definition("mine.json", b"[]")


def test_the_parse_stage_knows_a_pipeline(tmp_path):
    (tmp_path / "pipeline.json").write_bytes(encode(AB))
    found = inspect(tmp_path)
    assert (found.format, found.tier, found.entry) == (Format.PIPELINE, Tier.DATA, "pipeline.json")
    (tmp_path / "README.md").write_text("hello")
    with pytest.raises(Rejected, match="not alone"):
        inspect(tmp_path)
