"""The echo model answers what one calculates by hand, and does on a magic value exactly what its file says."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.artifacts.manifest import RuntimeSettings
from inference.errors import Rejected
from inference.models import LoadContext, load
from inference.models.echo import STRIKES
from tests.support import artifacts


def made(folder, **plan):
    artifacts.echo(folder, **plan)
    return load("echo", LoadContext(folder, RuntimeSettings()))


def test_an_empty_file_is_enough(tmp_path):
    model = made(tmp_path)
    assert model.signature.inputs[0].shape == [-1, 4]
    assert model.signature.max_batch_size == 32
    assert (model.run({"input": np.full((2, 4), 3, np.float32)})["output"] == 3).all()


@given(st.floats(-100, 100, width=32), st.floats(-10, 10, width=16), st.floats(-10, 10, width=16))
def test_output_is_input_times_factor_plus_offset(tmp_path_factory, value, factor, offset):
    model = made(tmp_path_factory.getbasetemp() / "hand", factor=factor, offset=offset)
    found = model.run({"input": np.full((1, 4), value, np.float32)})["output"]
    assert found.dtype == np.float32
    assert np.allclose(found, value * factor + offset, rtol=1e-5, atol=1e-5)


def test_several_tensors_of_several_datatypes(tmp_path):
    kinds = {"a": "INT32", "b": "BYTES", "c": "FP16"}
    signature = {
        "inputs": [{"name": name, "datatype": kind, "shape": [-1]} for name, kind in kinds.items()],
        "outputs": [{"name": name.upper(), "datatype": kind, "shape": [-1]} for name, kind in kinds.items()],
        "max_batch_size": 4,
    }
    model = made(tmp_path, signature=signature, factor=2)
    given = {"a": np.array([3], np.int32), "b": artifacts.texts("hi"), "c": np.array([1.5], np.float16)}
    found = model.run(given)
    assert found["A"].dtype == np.int32
    assert (found["A"][0], found["B"][0], found["C"][0]) == (6, b"hi", 3.0)


def test_the_settings_bound_the_batch(tmp_path):
    artifacts.echo(tmp_path)
    assert load("echo", LoadContext(tmp_path, RuntimeSettings(max_batch_size=5))).signature.max_batch_size == 5
    assert load("echo", LoadContext(tmp_path, RuntimeSettings(max_batch_size=500))).signature.max_batch_size == 32


def test_it_insists_on_its_buckets(tmp_path):
    tensor = {"datatype": "FP32", "shape": [-1, 4]}
    signature = {
        "inputs": [{"name": "input", **tensor}],
        "outputs": [{"name": "output", **tensor}],
        "max_batch_size": 4,
        "buckets": [2, 4],
    }
    model = made(tmp_path, signature=signature)
    model.run({"input": np.ones((2, 4), np.float32)})
    with pytest.raises(ValueError, match="a batch of 3"):
        model.run({"input": np.ones((3, 4), np.float32)})


def test_it_sleeps_as_long_as_told(tmp_path):
    model = made(tmp_path, sleep_ms=20, sleep_ms_per_row=10)
    started = time.perf_counter()
    model.run({"input": np.ones((3, 4), np.float32)})
    assert time.perf_counter() - started >= 0.05


@pytest.mark.parametrize(
    ("kind", "error"), [("raise", RuntimeError), ("exit", SystemExit), ("interrupt", KeyboardInterrupt)]
)
def test_magic_values_raise(tmp_path, kind, error):
    model = made(tmp_path, faults=[{"value": 7, "kind": kind}])
    model.run({"input": np.ones((1, 4), np.float32)})
    with pytest.raises(error):
        model.run({"input": np.array([[1, 2, 7, 3]], np.float32)})


def test_magic_words_in_text_raise(tmp_path):
    tensor = {"datatype": "BYTES", "shape": [-1]}
    signature = {"inputs": [{"name": "t", **tensor}], "outputs": [{"name": "u", **tensor}], "max_batch_size": 4}
    model = made(tmp_path, signature=signature, faults=[{"value": 7, "kind": "raise"}])
    model.run({"t": artifacts.texts("77")})
    with pytest.raises(RuntimeError):
        model.run({"t": artifacts.texts("7")})


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"faktor": 1}', '{"faults": [{"value": 1, "kind": "explode"}]}', '{"signature": {"inputs": []}}'],
)
def test_a_file_that_says_anything_else_is_rejected(tmp_path, text):
    (tmp_path / "echo.json").write_text(text)
    with pytest.raises(Rejected):
        load("echo", LoadContext(tmp_path, RuntimeSettings()))


def test_every_kind_of_fault_has_a_strike():
    from typing import get_args

    from inference.models.echo import FaultKind

    assert set(get_args(FaultKind)) == set(STRIKES)


@pytest.mark.parametrize("name", ["torch_pickle", "keras", ""])
def test_a_format_that_is_not_served_is_rejected_with_the_way_out(tmp_path, name):
    with pytest.raises(Rejected) as caught:
        load(name, LoadContext(tmp_path, RuntimeSettings()))
    assert "safetensors" in caught.value.remedy
