"""Signature compatibility: by example, and by asking the replica's own reader whether each request is taken."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from inference.errors import InvalidInput
from inference.protocol import generation
from inference.protocol.oip import Signature, TensorSpec
from inference.protocol.settings import GenerationSettings, RuntimeSettings, SequenceSettings
from inference.runtime import tensors
from rollouts.signatures import compare_signatures, compare_versions

replace = msgspec.structs.replace
X = TensorSpec("x", "FP32", [-1, 64])
Y = TensorSpec("y", "FP32", [-1, 10])
STABLE = Signature([X], [Y], max_batch_size=8)


def with_input(shape: list[int], datatype: str = "FP32") -> Signature:
    return replace(STABLE, inputs=[TensorSpec("x", datatype, shape)])


def with_output(shape: list[int], datatype: str = "FP32") -> Signature:
    return replace(STABLE, outputs=[TensorSpec("y", datatype, shape)])


@pytest.mark.parametrize(
    ("candidate", "kind", "words"),
    [
        (STABLE, "compatible", ""),
        (with_input([-1, 64], "FP16"), "breaking", "input 'x': datatype FP32 became FP16"),
        (with_input([-1, 128]), "breaking", "input 'x', dimension 2: 64 became 128; -1 would take both"),
        (with_input([-1, -1]), "compatible", "input 'x', dimension 2: 64 became -1, which takes any size"),
        (with_input([4, 64]), "breaking", "input 'x', dimension 1: any size became 4 only"),
        (with_input([-1, 8, 8]), "breaking", "another number of dimensions"),
        (replace(STABLE, inputs=[]), "breaking", "input 'x' is gone"),
        (replace(STABLE, inputs=[X, TensorSpec("mask", "BOOL", [-1])]), "breaking", "input 'mask' is new"),
        (replace(STABLE, inputs=[X, TensorSpec("mask", "BOOL", [-1], optional=True)]), "compatible", ""),
        (replace(STABLE, outputs=[]), "breaking", "output 'y' is gone"),
        (replace(STABLE, outputs=[Y, TensorSpec("z", "FP32", [-1])]), "additive", "output 'z' is new"),
        (with_output([-1, 10], "FP16"), "breaking", "output 'y': datatype FP32 became FP16"),
        (with_output([-1, 11]), "breaking", "output 'y', dimension 2: 10 became 11"),
        (with_output([-1, -1]), "breaking", "output 'y', dimension 2: always 10 became any size"),
        (with_output([1, 10]), "compatible", "output 'y', dimension 1: any size became always 1"),
        (with_output([-1]), "breaking", "another number of dimensions"),
        (replace(STABLE, max_batch_size=4), "breaking", "rows of a request: up to 8 became up to 4"),
        (replace(STABLE, max_batch_size=16), "compatible", ""),
        (replace(STABLE, max_batch_size=0), "compatible", ""),
        (replace(STABLE, labels=["cat"]), "additive", "labels are new"),
        (replace(STABLE, platform=generation.PLATFORM), "breaking", "language model"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_differences_are_named(candidate: Signature, kind: str, words: str) -> None:
    found = compare_signatures(STABLE, candidate)
    assert found.kind == kind
    assert any(words in said for said in found.differences) if words else not found.differences


def test_an_input_that_may_no_longer_be_left_out_breaks() -> None:
    asked = replace(STABLE, inputs=[X, TensorSpec("mask", "BOOL", [-1])])
    may = replace(STABLE, inputs=[X, TensorSpec("mask", "BOOL", [-1], optional=True)])
    assert compare_signatures(may, asked).differences == ("input 'mask' may no longer be left out",)
    assert compare_signatures(may, asked).kind == "breaking"
    assert compare_signatures(asked, may).kind == "compatible"


def test_the_gravest_difference_comes_first_and_gives_the_kind() -> None:
    candidate = replace(STABLE, outputs=[Y, TensorSpec("z", "FP32", [-1])], inputs=[])
    found = compare_signatures(STABLE, candidate)
    assert found.is_breaking
    assert found.differences[0].startswith("input 'x' is gone")
    assert found.differences[-1] == "output 'z' is new"


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        (["cat", "dog"], ["cat", "dog", "owl"], "additive"),
        (["cat", "dog"], ["dog", "cat"], "breaking"),
        (["cat", "dog"], ["cat"], "breaking"),
        (["cat"], [], "breaking"),
    ],
)
def test_a_class_keeps_its_meaning(before: list[str], after: list[str], kind: str) -> None:
    assert compare_signatures(replace(STABLE, labels=before), replace(STABLE, labels=after)).kind == kind


def test_a_rule_about_rows_that_was_not_there_breaks_unless_all_requests_keep_it() -> None:
    whole = Signature([TensorSpec("x", "FP32", [4, 64])], [Y])
    assert compare_signatures(whole, replace(STABLE, inputs=[X])).kind == "compatible"
    assert compare_signatures(whole, replace(STABLE, inputs=[X], max_batch_size=2)).kind == "breaking"
    free = Signature([X], [Y])
    assert compare_signatures(free, STABLE).kind == "breaking"


@pytest.mark.parametrize(
    ("stable", "candidate", "words"),
    [
        (RuntimeSettings(sequence=SequenceSettings()), RuntimeSettings(), "only the stable version keeps state"),
        (RuntimeSettings(), RuntimeSettings(decoupled=True), "only the candidate answers one request by a stream"),
        (
            RuntimeSettings(generation=GenerationSettings(max_model_len=4096)),
            RuntimeSettings(generation=GenerationSettings(max_model_len=1024)),
            "4096 tokens became 1024",
        ),
    ],
    ids=["sequence", "decoupled", "context"],
)
def test_settings_that_clients_notice_break(stable: RuntimeSettings, candidate: RuntimeSettings, words: str) -> None:
    found = compare_versions(STABLE, stable, STABLE, candidate)
    assert found.is_breaking
    assert words in found.differences[0]


def test_an_input_that_the_server_fills_in_is_no_difference() -> None:
    candidate = replace(STABLE, inputs=[X, TensorSpec("training", "BOOL", [])])
    found = compare_versions(STABLE, RuntimeSettings(), candidate, RuntimeSettings(constants={"training": False}))
    assert found.kind == "compatible"


SIZES = st.sampled_from([-1, 1, 2, 3])
SHAPES = st.lists(SIZES, min_size=0, max_size=3)
NAMES = st.sampled_from(["a", "b", "c"])


def specs(*, least: int) -> st.SearchStrategy[list[TensorSpec]]:
    one = st.builds(TensorSpec, name=NAMES, datatype=st.sampled_from(["FP32", "INT32"]), shape=SHAPES)
    return st.lists(one, min_size=least, max_size=2, unique_by=lambda spec: spec.name)


SIGNATURES = st.builds(
    Signature, inputs=specs(least=1), outputs=specs(least=1), max_batch_size=st.sampled_from([0, 1, 2, 4])
)


@st.composite
def changed(draw: st.DrawFn) -> tuple[Signature, Signature]:
    """A signature and one that differs from it in a few places, so that compatible pairs are not rare."""
    stable = draw(SIGNATURES)

    def bend(spec: TensorSpec) -> TensorSpec:
        shape = [draw(SIZES) if draw(st.integers(0, 3)) == 0 else size for size in spec.shape]
        if shape and draw(st.integers(0, 5)) == 0:
            shape = shape[:-1]
        return replace(spec, shape=shape)

    outputs = [bend(spec) for spec in stable.outputs]
    if draw(st.booleans()):
        outputs = [*outputs, TensorSpec("extra", "FP32", [-1])]
    rows = draw(st.sampled_from([0, 1, 2, 4])) if draw(st.booleans()) else stable.max_batch_size
    return stable, Signature([bend(spec) for spec in stable.inputs], outputs, max_batch_size=rows)


@dataclass(frozen=True)
class Request:
    arrays: dict[str, np.ndarray]


def takes(signature: Signature, request: Request) -> bool:
    """As inference.replica.checks reads a request: each array fitted to its spec, then the rows counted."""
    given = {spec.name: spec for spec in signature.inputs}
    if given.keys() != request.arrays.keys():
        return False
    try:
        fitted = {name: tensors.fit(array, given[name]) for name, array in request.arrays.items()}
        tensors.rows_of(signature, fitted)
    except InvalidInput:
        return False
    return True


@st.composite
def request_for(draw: st.DrawFn, signature: Signature) -> Request:
    rows = draw(st.integers(1, 5))
    arrays = {}
    for spec in signature.inputs:
        shape = [draw(st.integers(1, 4)) if size < 0 else size for size in spec.shape]
        if shape and spec.shape[0] < 0 and draw(st.booleans()):
            shape[0] = rows
        shape += [1] * draw(st.integers(0, 1))
        arrays[spec.name] = np.zeros(shape)
    return Request(arrays)


@given(SIGNATURES)
def test_every_signature_is_compatible_with_itself(signature: Signature) -> None:
    assert compare_signatures(signature, signature).kind == "compatible"
    assert not compare_signatures(signature, signature).differences


@settings(max_examples=100)
@given(st.data())
def test_what_is_not_breaking_takes_every_request_and_keeps_every_promise(data: st.DataObject) -> None:
    stable, candidate = data.draw(changed())
    assume(not compare_signatures(stable, candidate).is_breaking)
    request = data.draw(request_for(stable))
    assert not takes(stable, request) or takes(candidate, request)
    promised, given_back = ({spec.name: spec for spec in one.outputs} for one in (stable, candidate))
    for name, spec in promised.items():
        now = given_back[name]
        assert now.datatype == spec.datatype
        assert len(now.shape) == len(spec.shape)
        assert all(old in (-1, new) for old, new in zip(spec.shape, now.shape, strict=True))


@settings(max_examples=100)
@given(st.data())
def test_widening_inputs_never_breaks_and_the_way_back_always_does(data: st.DataObject) -> None:
    stable = data.draw(SIGNATURES)
    fixed = [(i, j) for i, spec in enumerate(stable.inputs) for j, size in enumerate(spec.shape) if size >= 0]
    assume(fixed)
    at, dimension = data.draw(st.sampled_from(fixed))
    inputs = list(stable.inputs)
    shape = list(inputs[at].shape)
    shape[dimension] = -1
    inputs[at] = replace(inputs[at], shape=shape)
    wider = replace(stable, inputs=inputs)
    assert compare_signatures(stable, wider).kind == "compatible"
    assert compare_signatures(wider, stable).is_breaking


@settings(max_examples=100)
@given(st.data())
def test_narrowing_outputs_never_breaks_and_the_way_back_always_does(data: st.DataObject) -> None:
    stable = data.draw(SIGNATURES)
    free = [(i, j) for i, spec in enumerate(stable.outputs) for j, size in enumerate(spec.shape) if size < 0]
    assume(free)
    at, dimension = data.draw(st.sampled_from(free))
    outputs = list(stable.outputs)
    shape = list(outputs[at].shape)
    shape[dimension] = 7
    outputs[at] = replace(outputs[at], shape=shape)
    narrower = replace(stable, outputs=outputs)
    assert compare_signatures(stable, narrower).kind == "compatible"
    assert compare_signatures(narrower, stable).is_breaking
