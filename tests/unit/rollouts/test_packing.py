"""JSON values to wire bytes: as numpy lays them out, and nothing that does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.protocol.compare import Output
from inference.protocol.oip import DATATYPES, Signature, TensorSpec
from inference.protocol.values import numbers, texts
from inference.runtime import tensors
from rollouts.packing import broken_values, example, packed


def tensor(datatype: str, data: list[Any]) -> dict[str, Any]:
    return {"name": "x", "datatype": datatype, "shape": [len(data)], "data": data}


@pytest.mark.parametrize("datatype", [name for name, (_, numpy) in DATATYPES.items() if numpy])
def test_numbers_lie_as_numpy_lays_them(datatype: str) -> None:
    data = [True, False] if datatype == "BOOL" else [0, 1, 2, 100]
    expected = np.array(data, dtype=tensors.numpy_dtype(datatype)).tobytes()
    assert packed(tensor(datatype, data)).data == expected


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20))
def test_brain_floats_are_the_nearest(values: list[float]) -> None:
    near = [value for value in values if abs(value) < 3e38]
    back = numbers("BF16", packed(tensor("BF16", near)).data, slice(None), 1)
    for value, found in zip(near, back, strict=True):
        assert abs(found - value) <= max(abs(value) / 256, 1e-38)


@given(st.lists(st.text(max_size=20), max_size=10))
def test_texts_come_back(values: list[str]) -> None:
    plain = [value.encode("utf-8", "replace").decode() for value in values]
    assert texts(packed(tensor("BYTES", plain)).data, len(plain), 10_000) == (plain, True)


@pytest.mark.parametrize(
    ("datatype", "value"), [("INT8", 300), ("UINT8", -1), ("FP16", 1e9), ("BYTES", 3), ("FP32", "x")]
)
def test_what_does_not_fit_is_a_value_error(datatype: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"'x' has a value that is no {datatype}"):
        packed(tensor(datatype, [value]))


def test_an_example_is_one_row_of_valid_values() -> None:
    signature = Signature(
        [TensorSpec("a", "FP32", [-1, 3, -1]), TensorSpec("b", "BYTES", [-1]), TensorSpec("c", "BOOL", [-1, 1])],
        [],
        max_batch_size=4,
    )
    a, b, c = example(signature, 16)
    assert (a.shape, np.frombuffer(bytes(a.data), "<f4").tolist()) == ([1, 3, 16], [1.0] * 48)
    assert texts(b.data, 1, 100) == (["A short sentence."], True)
    assert (c.shape, bytes(c.data)) == ([1, 1], b"\x01")


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_broken_values_are_counted_wherever_they_stand(datatype: str) -> None:
    values = np.zeros(200_000, dtype=tensors.numpy_dtype(datatype))
    values[[3, 65_536, 199_999]] = [np.nan, np.inf, -np.inf]
    assert broken_values(Output("y", datatype, [200_000], values.tobytes())) == 3
    assert broken_values(Output("y", "INT32", [1], b"\xff\xff\xff\xff")) == 0
