"""Distances by hand, and what holds for any pair of answers."""

import math
import struct
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.protocol.compare import KINDS, MAX_DETAIL_CHARS, Output, compare
from inference.protocol.oip import DATATYPES
from inference.protocol.routes import Comparison

CODES = {"BOOL": "B", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h",
         "INT32": "i", "INT64": "q", "FP16": "e", "BF16": "H", "FP32": "f", "FP64": "d"}  # fmt: skip


def tensor(values, shape=None, datatype="FP32", name="y"):
    shape = [len(values)] if shape is None else shape
    return Output(name, datatype, shape, struct.pack(f"<{len(values)}{CODES[datatype]}", *values))


def texts(*values, name="y"):
    packed = b"".join(struct.pack("<I", len(raw)) + raw for raw in (value.encode() for value in values))
    return Output(name, "BYTES", [len(values)], packed)


def one(a, b, kind="auto", **how):
    """The comparison of one output: (kind, distance rounded, detail, whether it is drift)."""
    found = compare([a], [b], Comparison(kind=kind, **how))
    (output,) = found.outputs
    assert output.distance == found.distance
    return output.kind, round(output.distance, 4), output.detail, found.is_drift


def test_whole_numbers_are_compared_exactly():
    kind, distance, detail, is_drift = one(
        tensor([1, 2, 3, 4], datatype="INT64"), tensor([1, 2, 9, 4], datatype="INT64")
    )
    assert (kind, distance, is_drift) == ("exact", 0.25, True)
    assert detail == "1 of 4 differ, first 2: 3 against 9"


def test_single_words_are_labels_and_sentences_are_texts():
    assert one(texts("cat", "dog"), texts("cat", "cow"))[:2] == ("exact", 0.5)
    assert one(texts("the cat sat"), texts("the cat sits"))[:2] == ("text", round(2 / 12, 4))
    assert one(texts("kitten"), texts("sitting"), "text")[:2] == ("text", round(3 / 7, 4))


def test_floats_are_compared_by_their_relative_difference():
    kind, distance, detail, is_drift = one(tensor([3.0, 4.0]), tensor([3.0, 4.0 + 1e-3]))
    assert (kind, is_drift) == ("close", False)
    assert distance == round(1e-3 / 10.001, 4)
    assert "widest at 1: 4 against 4.001" in detail
    assert one(tensor([1.0]), tensor([-1.0]))[1] == 1.0
    assert one(tensor([0.0]), tensor([0.0]))[1] == 0.0


def test_sizes_at_the_edge_of_what_a_double_holds_neither_overflow_nor_vanish():
    assert one(tensor([1e308], datatype="FP64"), tensor([-1e308], datatype="FP64"))[1] == 1.0
    assert one(tensor([5e-324], datatype="FP64"), tensor([0.0], datatype="FP64"))[1] == 1.0


def test_half_precision_is_decoded_by_hand():
    bfloat = Output("y", "BF16", [2], struct.pack("<2H", 0x3FC0, 0xC000))  # 1.5, -2
    assert one(bfloat, tensor([1.5, -2.0]))[1] == 0.0
    assert one(tensor([1.5, -2.0], datatype="FP16"), tensor([1.5, -2.0]))[1] == 0.0


def test_scores_are_compared_by_the_order_of_the_largest():
    stable = tensor([0.6, 0.3, 0.1, 0.0], [1, 4])
    kind, distance, _, is_drift = one(stable, tensor([0.5, 0.4, 0.06, 0.04], [1, 4]))
    assert (kind, distance, is_drift) == ("top_k", 0.0, False)
    kind, distance, detail, is_drift = one(stable, tensor([0.3, 0.6, 0.1, 0.0], [1, 4]), k=3)
    assert (distance, is_drift) == (round(1 - (0 + 1 + 1) / 3, 4), True)
    assert "first 0 against 1" in detail


def test_scores_that_are_as_good_as_equal_may_stand_in_any_order():
    stable = tensor([0.9, 0.05, 0.0001, 0.0002], [1, 4])
    assert one(stable, tensor([0.9, 0.05, 0.0002, 0.0001], [1, 4]))[1] == 0.0


def test_embeddings_are_compared_by_their_angle():
    a, b = tensor([0.6, -0.8, 0.0], [1, 3]), tensor([0.8, -0.6, 0.0], [1, 3])
    assert one(a, b)[:2] == ("cosine", round(1 - 0.96, 4))
    named = tensor([3.0, 4.0], [1, 2], name="sentence_embedding")
    assert one(named, tensor([6.0, 8.0], [1, 2], name="sentence_embedding"))[:2] == ("cosine", 0.0)
    assert one(tensor([0.0, 0.0], [1, 2]), tensor([1.0, 0.0], [1, 2]), "cosine")[1] == 1.0


def test_token_ids_agree_by_position_and_may_end_at_different_places():
    a = tensor([5, 6, 7, 8], [1, 4], "INT64", "token_ids")
    kind, distance, detail, _ = one(a, tensor([5, 6, 9, 8], [1, 4], "INT64", "token_ids"))
    assert (kind, distance) == ("tokens", 0.25)
    assert detail == "3 of 4 tokens agree, the first 2 in every row"
    assert one(a, tensor([5, 6], [1, 2], "INT64", "token_ids"))[1] == 0.5


def test_nan_or_infinity_on_one_side_is_as_far_as_can_be():
    sound, broken = tensor([1.0, 2.0, 3.0]), tensor([1.0, math.nan, 3.0])
    for kind in ("auto", "exact", "close", "cosine", "top_k"):
        assert one(sound, broken, kind)[1] == 1.0
        assert one(broken, sound, kind)[1] == 1.0
        assert one(broken, broken, kind)[1] == 0.0
    assert one(sound, tensor([1.0, math.inf, 3.0]))[2] == "value 1: 2 against inf"


def test_other_shapes_and_types_and_missing_outputs_are_as_far_as_can_be():
    assert one(tensor([1.0, 2.0]), tensor([1.0]))[:3] == ("close", 1.0, "shape 2 against 1")
    assert one(tensor([1.0]), texts("1"))[:2] == ("unlike", 1.0)
    found = compare([tensor([1.0])], [], Comparison())
    assert (found.distance, found.outputs[0].kind) == (1.0, "missing")
    found = compare([], [tensor([1.0])], Comparison())
    assert (found.distance, found.outputs[0].kind) == (0.0, "new")


def test_the_worst_output_counts():
    same, other = tensor([1.0], name="a"), tensor([1, 2], datatype="INT32", name="b")
    found = compare([same, other], [same, tensor([1, 3], datatype="INT32", name="b")], Comparison())
    assert (found.distance, found.is_drift) == (0.5, True)
    assert [(output.name, output.distance) for output in found.outputs] == [("a", 0.0), ("b", 0.5)]


def test_the_tolerance_itself_is_no_drift():
    a, b = tensor([1, 1, 1, 1], datatype="INT8"), tensor([1, 1, 1, 2], datatype="INT8")
    assert not one(a, b, tolerance=0.25)[3]
    assert one(a, b, tolerance=0.249)[3]


@pytest.mark.parametrize(
    "made",  # by the test, or every process that collects would make them all
    [
        lambda: (Output("y", "FP32", [1, 1024, 4096], bytes(4 << 22)), Output("y", "FP32", [1, 1024, 4096], b"\0\0\x80?" * (1 << 22))),
        lambda: (Output("y", "FP32", [1, 2, 2_000_000], bytes(4 * 4_000_000)), tensor([1.0] * 4_000_000, [1, 2, 2_000_000])),
        lambda: (tensor(range(1_000_000), [1, 1_000_000], "INT32", "token_ids"), tensor([0] * 500_000, [1, 500_000], "INT32", "token_ids")),
        lambda: (texts("ab " * 400_000), texts("ba " * 500_000)),
        lambda: (texts(*["a b"] * 200_000), texts(*["b a"] * 200_000)),
    ],
    ids=["rows", "wide", "tokens", "long", "many"],
)  # fmt: skip
def test_the_work_is_bounded_and_what_was_left_out_is_said(made):
    a, b = made()
    began = process_time()
    _, distance, detail, _ = one(a, b)
    assert process_time() - began < 3.0, "of work: a busy machine counts for nothing"
    assert distance > 0.3
    assert "compared" in detail


def test_outputs_share_the_limits():
    many = [Output(f"y{index}", "FP32", [65_536], bytes(4 * 65_536)) for index in range(64)]
    found = compare(many, many[:-1], Comparison())
    assert all("every 64th value" in output.detail for output in found.outputs[:-1])


# -- what holds for any pair ---------------------------------------------------------------------------------------

shapes = st.lists(st.integers(0, 5), max_size=3)


@st.composite
def outputs(draw, name="y", shape=None):
    """Any well-formed tensor of few elements: any bytes are numbers of every datatype."""
    datatype = draw(st.sampled_from(sorted(DATATYPES)))
    shape = draw(shapes) if shape is None else shape
    count = math.prod(shape)
    if datatype == "BYTES":
        parts = draw(st.lists(st.binary(max_size=12), min_size=count, max_size=count))
        return Output(name, datatype, shape, b"".join(struct.pack("<I", len(part)) + part for part in parts))
    size = DATATYPES[datatype][0] * count
    return Output(name, datatype, shape, draw(st.binary(min_size=size, max_size=size)))


@st.composite
def pairs(draw):
    """(stable, candidate): one output each, of one name; often of one shape."""
    name = draw(st.sampled_from(["y", "token_ids", "embedding"]))
    shape = draw(st.none() | shapes)
    return draw(outputs(name, shape)), draw(outputs(name, shape))


hows = st.builds(
    Comparison, kind=st.sampled_from([*KINDS, "unheard of"]), tolerance=st.floats(0, 1), k=st.integers(-1, 9)
)


@given(outputs(), hows)
def test_an_answer_is_no_distance_from_itself(output, how):
    found = compare([output], [output], how)
    assert (found.distance, found.is_drift) == (0.0, False)


@given(pairs(), hows, st.integers(1, 64), st.integers(1, 64))
def test_any_pair_has_a_distance_the_same_both_ways(pair, how, most_elements, most_bytes):
    a, b = pair
    found = compare([a], [b], how, most_elements=most_elements, most_bytes=most_bytes)
    back = compare([b], [a], how, most_elements=most_elements, most_bytes=most_bytes)
    assert 0.0 <= found.distance <= 1.0
    assert found.distance == pytest.approx(back.distance, abs=1e-12)
    assert found.outputs[0].kind == back.outputs[0].kind
    assert len(found.outputs[0].detail) <= MAX_DETAIL_CHARS


@given(st.binary(max_size=40), st.sampled_from(sorted(DATATYPES)), shapes)
def test_bytes_that_do_not_fit_raise_nothing(data, datatype, shape):
    broken = Output("y", datatype, shape, data)
    for pair in ((broken, tensor([1.0])), (texts("a"), broken), (broken, broken)):
        assert 0.0 <= compare([pair[0]], [pair[1]], Comparison()).distance <= 1.0
