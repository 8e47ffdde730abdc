import contextlib
import json
import struct
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference.artifacts import safetensors
from inference.errors import Rejected
from tests.support import goodfiles, hostile


def test_a_good_file_gives_its_table(tmp_path):
    path = goodfiles.safetensors(tmp_path / "m.safetensors", {"a.weight": [2, 3], "b": [], "c": [0]})
    table = safetensors.read(path)
    assert table["a.weight"].dtype == "F32"
    assert table["a.weight"].shape == (2, 3)
    assert table["a.weight"].end - table["a.weight"].begin == 24
    assert max(tensor.end for tensor in table.values()) == path.stat().st_size


def test_what_the_library_writes_is_read_the_same(tmp_path):
    import numpy as np
    from safetensors.numpy import load_file, save_file

    arrays = {"x": np.arange(6, dtype=np.float16).reshape(2, 3), "y": np.array([True, False]), "z": np.zeros((0, 4))}
    save_file(arrays, tmp_path / "m.safetensors", metadata={"format": "np"})
    data = (tmp_path / "m.safetensors").read_bytes()
    table = safetensors.read(tmp_path / "m.safetensors")
    for name, array in load_file(tmp_path / "m.safetensors").items():
        assert table[name].shape == array.shape
        assert data[table[name].begin : table[name].end] == array.tobytes()


@pytest.mark.parametrize("name", hostile.SAFETENSORS)
def test_a_hostile_header_is_refused(tmp_path, name):
    hostile.SAFETENSORS[name](tmp_path, tmp_path / "marker")
    start = time.monotonic()
    with pytest.raises(Rejected) as caught:
        safetensors.read(tmp_path / "model.safetensors")
    assert time.monotonic() - start < 5
    assert caught.value.remedy
    assert caught.value.check == "weights"


def test_a_huge_header_is_not_read(tmp_path):
    hostile.safetensors_huge_header(tmp_path, tmp_path / "marker")
    with pytest.raises(Rejected, match="cut short"):
        safetensors.read(tmp_path / "model.safetensors")


def test_the_size_of_the_header_is_bounded_exactly(tmp_path):
    path, header = tmp_path / "m.safetensors", b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    for size in (10 << 20, (10 << 20) + 1):
        path.write_bytes(struct.pack("<Q", size) + header.ljust(size))
        if size == 10 << 20:
            assert list(safetensors.read(path)) == ["a"]
    with pytest.raises(Rejected, match="header of more than"):
        safetensors.read(path)


@pytest.mark.parametrize("size", range(0, 40, 3))
def test_a_truncated_file_is_refused(tmp_path, size):
    path = goodfiles.safetensors(tmp_path / "m.safetensors")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(Rejected):
        safetensors.read(path)


def test_the_number_of_tensors_is_bounded_exactly(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors, "MAX_TENSORS", 3)
    path = goodfiles.safetensors(tmp_path / "m.safetensors", {f"t{i}": [0] for i in range(3)})
    assert len(safetensors.read(path)) == 3
    goodfiles.safetensors(path, {f"t{i}": [0] for i in range(4)})
    with pytest.raises(Rejected, match="more than 3"):
        safetensors.read(path)


def sharded(folder, weight_map):
    goodfiles.safetensors(folder / "model-1.safetensors", {"a": [2]})
    goodfiles.safetensors(folder / "model-2.safetensors", {"b": [3]})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards_are_read_by_their_index(tmp_path):
    sharded(tmp_path, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    assert {name: list(table) for name, table in safetensors.read_folder(tmp_path).items()} == {
        "model-1.safetensors": ["a"],
        "model-2.safetensors": ["b"],
    }


@pytest.mark.parametrize(
    "weight_map",
    [
        {"a": "model-1.safetensors"} | {"b": "model-1.safetensors"},
        {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"},
        {"a": "../model-1.safetensors"},
        {"a": "model-3.safetensors"},
        {"a": 1},
        [],
        None,
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(tmp_path, weight_map):
    sharded(tmp_path, weight_map)
    with pytest.raises(Rejected):
        safetensors.read_folder(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "I4", 3]) | JSON,
        "shape": st.lists(st.integers(-2, 1 << 65), max_size=4) | JSON,
        "data_offsets": st.lists(st.integers(-2, 40), min_size=1, max_size=3) | JSON,
    }
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=JSON | st.dictionaries(st.text(max_size=6), ENTRY | JSON, max_size=4), data=st.binary(max_size=40))
def test_any_header_is_read_or_refused_and_nothing_else(tmp_path, table, data):
    header = json.dumps(table).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    try:
        found = safetensors.read(path)
    except Rejected:
        return
    assert sum(tensor.end - tensor.begin for tensor in found.values()) == len(data)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_damage_is_read_or_refused_and_nothing_else(tmp_path, edits):
    path = goodfiles.safetensors(tmp_path / "m.safetensors", {"a": [2, 3], "b": [4]})
    data = bytearray(path.read_bytes())
    for at, value in edits:
        data[at % len(data)] = value
    path.write_bytes(data)
    with contextlib.suppress(Rejected):
        safetensors.read(path)
