"""bytes <-> numpy: exact lengths, exact values, no copies; requests <-> batches."""

import math
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from inference.errors import InvalidInput
from inference.protocol.oip import DATATYPES, Signature, TensorSpec
from inference.runtime import tensors

FIXED = sorted(set(DATATYPES) - {"BYTES", "BOOL"})
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
SIGNATURE = Signature(
    inputs=[TensorSpec("x", "FP32", [-1, 2])], outputs=[TensorSpec("y", "FP32", [-1, 2])], max_batch_size=8
)


@given(st.sampled_from(FIXED), shapes, st.data())
def test_fixed_size_datatypes_come_back_as_the_bytes_they_were(datatype, shape, data):
    size = math.prod(shape) * DATATYPES[datatype][0]
    raw = data.draw(st.binary(min_size=size, max_size=size))
    array = tensors.from_bytes(datatype, shape, raw)
    assert array.shape == shape
    assert bytes(tensors.to_bytes(datatype, array)) == raw


@given(hnp.arrays(np.bool_, shapes))
def test_bool_is_one_byte_of_0_or_1(array):
    raw = bytes(tensors.to_bytes("BOOL", array))
    assert set(raw) <= {0, 1}
    assert np.array_equal(tensors.from_bytes("BOOL", array.shape, raw), array)


def test_a_bool_of_another_byte_is_refused():
    with pytest.raises(InvalidInput, match="0 or 1"):
        tensors.from_bytes("BOOL", [2], b"\x01\x02")


@given(st.lists(st.binary(max_size=20), max_size=9))
def test_bytes_tensors_come_back_as_they_were(items):
    raw = b"".join(struct.pack("<I", len(item)) + item for item in items)
    array = tensors.from_bytes("BYTES", [len(items)], raw)
    assert array.tolist() == items
    assert tensors.to_bytes("BYTES", array) == raw


@given(st.sampled_from(["BYTES", *FIXED]), st.integers(0, 6), st.binary(max_size=64))
def test_any_bytes_are_a_tensor_or_a_typed_error(datatype, count, raw):
    try:
        array = tensors.from_bytes(datatype, [count], raw)
    except InvalidInput:
        return
    assert bytes(tensors.to_bytes(datatype, array)) == raw


@given(hnp.arrays(np.float32, st.integers(0, 30), elements=st.floats(width=32, allow_nan=False)))
def test_bf16_travels_as_the_upper_half_of_float32(values):
    halves = values.astype(ml_dtypes.bfloat16)
    array = tensors.from_bytes("BF16", values.shape, halves.tobytes())
    assert array.dtype == np.uint16
    assert np.array_equal(array.view(ml_dtypes.bfloat16), halves)


@pytest.mark.parametrize("delta", [-1, 1])
@pytest.mark.parametrize("datatype", FIXED)
def test_a_length_off_by_one_is_refused(datatype, delta):
    with pytest.raises(InvalidInput, match="needs"):
        tensors.from_bytes(datatype, [3, 2], bytes(6 * DATATYPES[datatype][0] + delta))


@pytest.mark.parametrize(
    ("datatype", "shape", "raw"),
    [
        ("FP32", [-1, 4], b""),
        ("COMPLEX", [1], b"1234"),
        ("FP32", [1] * 17, b"1234"),
        ("FP32", [1 << 62, 1 << 62], b"1234"),
        ("BYTES", [1 << 60], b"1234"),
        ("BYTES", [1], struct.pack("<I", 5) + b"four"),
        ("BYTES", [1], struct.pack("<I", 3) + b"four"),
        ("BYTES", [2], struct.pack("<I", 4) + b"four"),
    ],
)
def test_lying_headers_are_refused_before_anything_is_allocated(datatype, shape, raw):
    with pytest.raises(InvalidInput):
        tensors.from_bytes(datatype, shape, raw)


def test_a_view_of_the_frame_is_taken_not_a_copy():
    raw = bytearray(16)
    array = tensors.from_bytes("FP32", [4], memoryview(raw))
    raw[0:4] = struct.pack("<f", 2.5)
    assert array[0] == 2.5


def test_to_bytes_is_a_view_where_a_large_array_already_lies_that_way():
    array = np.arange(4096, dtype=np.float32)
    view = tensors.to_bytes("FP32", array)
    array[0] = 9
    assert np.frombuffer(view, dtype=np.float32)[0] == 9


def test_to_bytes_straightens_strides_and_byte_order():
    array = np.arange(6, dtype=">f4").reshape(2, 3).T
    assert bytes(tensors.to_bytes("FP32", array)) == np.array([0, 3, 1, 4, 2, 5], "<f4").tobytes()


@given(st.lists(st.integers(1, 3), min_size=1, max_size=6))
def test_splitting_undoes_stacking(sizes):
    generator = np.random.default_rng(0)
    requests = [{"x": generator.standard_normal((size, 2))} for size in sizes]
    parts = tensors.split(tensors.stack(requests), sizes)
    assert all(np.array_equal(one["x"], other["x"]) for one, other in zip(parts, requests, strict=True))


@given(st.integers(1, 5), st.integers(1, 9))
def test_padding_repeats_the_last_row_and_leaves_the_others(rows, size):
    array = np.arange(rows * 2.0).reshape(rows, 2)
    padded = tensors.pad({"x": array}, size)["x"]
    assert len(padded) == max(rows, size)
    assert np.array_equal(padded[:rows], array)
    assert (padded[rows:] == array[-1]).all()


def test_a_dimension_of_one_that_clients_append_is_dropped():
    spec = TensorSpec("text", "BYTES", [-1])
    assert tensors.fit(np.zeros((3, 1)), spec).shape == (3,)
    assert tensors.fit(np.zeros(3), spec).shape == (3,)


@pytest.mark.parametrize("shape", [(3,), (3, 5), (2, 3, 4), ()])
def test_other_shapes_are_refused_in_the_protocols_words(shape):
    with pytest.raises(InvalidInput, match="unexpected shape for input 'x'"):
        tensors.fit(np.zeros(shape), TensorSpec("x", "FP32", [-1, 4]))


def test_rows_must_agree_and_fit_the_largest_batch():
    assert tensors.rows_of(SIGNATURE, {"x": np.zeros((8, 2))}) == 8
    for bad in ({"x": np.zeros((9, 2))}, {"x": np.zeros((0, 2))}, {"x": np.zeros((1, 2)), "z": np.zeros((2, 2))}, {}):
        with pytest.raises(InvalidInput):
            tensors.rows_of(SIGNATURE, bad)


def test_nonfinite_rows_are_counted_once_each():
    one = np.array([[1, np.nan], [1, 1], [np.inf, 1]], np.float32)
    other = np.array([[np.nan], [0], [0]], np.float32)
    assert tensors.nonfinite_rows({"a": one, "b": other, "c": np.arange(3)}) == 2


FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(
    st.lists(st.lists(FINITE, min_size=3, max_size=3), min_size=1, max_size=6),
    st.sampled_from(["f2", "f4", "f8", "bf16"]),
    st.data(),
)
def test_exactly_the_rows_that_are_not_finite_are_found(values, kind, data):
    """Also beside numbers whose squares overflow, and in memory that is not laid out row by row."""
    bad = data.draw(st.sets(st.integers(0, len(values) - 1)))
    array = np.array(values, np.float32)
    for row in bad:
        array[row, data.draw(st.integers(0, 2))] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    wanted, names = len(bad), ()
    if kind == "bf16":
        array, names = (array.view("u4") >> 16).astype("<u2"), ("y",)
        wanted = int(((array & 0x7F80) == 0x7F80).any(axis=1).sum())
    elif kind == "f2":
        with np.errstate(over="ignore"):
            array = array.astype("f2")
        wanted = int((~np.isfinite(array)).any(axis=1).sum())
    else:
        array = array.astype(kind)
    for laid in (array, np.asfortranarray(array), array[::-1]):
        assert tensors.nonfinite_rows({"y": laid}, names) == wanted
    if kind == "bf16":
        assert tensors.nonfinite_rows({"y": array}) == 0


def test_every_datatype_of_the_protocol_has_a_numpy_dtype_and_back():
    for name, (size, kind) in DATATYPES.items():
        dtype = tensors.numpy_dtype(name)
        assert name == "BYTES" or dtype.itemsize == size
        assert kind is None or tensors.datatype_of(dtype.name) == name
