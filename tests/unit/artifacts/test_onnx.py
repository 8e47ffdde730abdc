import os
import time
import tracemalloc

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from inference.artifacts import onnx as reader
from inference.errors import Rejected
from inference.protocol.oip import TensorSpec
from tests.support import hostile

FLOAT = TensorProto.FLOAT


def model(nodes=None, *, inputs=None, outputs=None, opsets=(("", 17),), initializers=None):
    import numpy as np

    weight = numpy_helper.from_array(np.ones((4, 3), np.float32), "W")
    graph = helper.make_graph(
        nodes or [helper.make_node("MatMul", ["x", "W"], ["m"]), helper.make_node("Relu", ["m"], ["y"])],
        "graph",
        inputs or [helper.make_tensor_value_info("x", FLOAT, ["batch", 4])],
        outputs or [helper.make_tensor_value_info("y", FLOAT, ["batch", 3])],
        initializers or [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(*opset) for opset in opsets])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model"


def save(path, proto):
    path.write_bytes(proto.SerializeToString())
    return path


def test_a_standard_model_tells_its_signature(path):
    save(path, model())
    assert reader.looks_like(path)
    signature = reader.read(path).signature
    assert signature.inputs == [TensorSpec("x", "FP32", [-1, 4])]
    assert signature.outputs == [TensorSpec("y", "FP32", [-1, 3])]
    assert signature.max_batch_size > 0


def test_initializers_are_no_inputs_and_fixed_shapes_no_batch(path):
    info = [helper.make_tensor_value_info("x", FLOAT, [2, 4]), helper.make_tensor_value_info("W", FLOAT, [4, 3])]
    signature = reader.read(save(path, model(inputs=info))).signature
    assert [spec.name for spec in signature.inputs] == ["x"]
    assert signature.max_batch_size == 0


def branch(node):
    return helper.make_graph([node], "inner", [], [helper.make_tensor_value_info("o", FLOAT, [1])])


def evil():
    return helper.make_node("Evil", ["x"], ["o"], domain="evil.ops")


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("Evil", ["x"], ["y"], domain="evil.ops")],
        [helper.make_node("If", ["x"], ["y"], then_branch=branch(evil()), else_branch=branch(evil()))],
        [helper.make_node("PyOp", ["x"], ["y"], domain="com.microsoft")],
        [helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft")],
    ],
)
def test_foreign_operators_are_refused_wherever_they_hide(path, nodes):
    with pytest.raises(Rejected, match=r"evil\.ops|not allowed") as caught:
        reader.read(save(path, model(nodes)))
    assert caught.value.remedy


def test_a_foreign_operator_set_is_refused(path):
    with pytest.raises(Rejected, match=r"evil\.ops"):
        reader.read(save(path, model(opsets=[("", 17), ("evil.ops", 1)])))


def test_a_foreign_operator_in_a_function_is_refused(path):
    proto = model()
    proto.functions.append(helper.make_function("local", "f", ["x"], ["o"], [evil()], [helper.make_opsetid("", 17)]))
    with pytest.raises(Rejected, match=r"evil\.ops"):
        reader.read(save(path, proto))


def outside(**said):
    found = TensorProto(name="W", data_type=FLOAT, dims=[4, 3], data_location=TensorProto.EXTERNAL)
    for key, value in said.items():
        found.external_data.add(key=key, value=value)
    return found


@pytest.mark.parametrize("location", ["weights.bin", "deep/er/w.bin"])
def test_external_data_beside_the_model_is_told(path, location):
    save(path, model(initializers=[outside(location=location, offset="8", length="48")]))
    with pytest.raises(Rejected, match=r"\(external data\), which is not there") as caught:
        reader.read(path)
    assert "one file" in caught.value.remedy
    place = path.parent / location
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(bytes(55))
    with pytest.raises(Rejected, match="has fewer than the 56 bytes"):
        reader.read(path)
    place.write_bytes(bytes(56))
    assert reader.read(path).outside == [location]


@pytest.mark.parametrize(
    "location",
    ["../w", "a/../../w", "/etc/passwd", "", ".", "a//w", "a\\w", "C:w", "w\n", "*/_ORT_MEM_ADDR_/*", "x/*"],
)
def test_external_data_never_leaves_the_folder(path, location):
    save(path, model(initializers=[outside(location=location)]))
    with pytest.raises(Rejected, match="external data, and the path"):
        reader.read(path)


@pytest.mark.parametrize("said", [{"offset": "-1"}, {"length": "1e9"}, {"offset": "9" * 19}, {"length": ""}])
def test_impossible_places_in_external_data_are_refused(path, said):
    (path.parent / "w").write_bytes(bytes(100))
    save(path, model(initializers=[outside(location="w", **said)]))
    with pytest.raises(Rejected, match="is no number"):
        reader.read(path)


def test_only_initializers_may_lie_elsewhere(path):
    (path.parent / "w").write_bytes(bytes(100))
    constant = helper.make_node("Constant", [], ["W"], value=outside(location="w"))
    with pytest.raises(Rejected, match="the constant 'W' keeps its values in another file"):
        reader.read(save(path, model([constant, helper.make_node("MatMul", ["x", "W"], ["y"])])))


def test_sequences_and_unknown_ranks_are_refused(path):
    sequence = helper.make_tensor_sequence_value_info("y", FLOAT, None)
    with pytest.raises(Rejected, match="no tensor"):
        reader.read(save(path, model(outputs=[sequence])))
    with pytest.raises(Rejected, match="rank"):
        reader.read(save(path, model(outputs=[helper.make_tensor_value_info("y", FLOAT, None)])))


@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
def test_a_truncated_model_is_refused(path, part):
    hostile.truncated(save(path, model()), part)
    with pytest.raises(Rejected):
        reader.read(path)


def test_deep_nesting_is_refused_quickly(path):
    inner = helper.make_node("Relu", ["x"], ["o"])
    for _ in range(20):
        inner = helper.make_node(
            "If", ["x"], ["o"], then_branch=branch(inner), else_branch=branch(helper.make_node("Relu", ["x"], ["o"]))
        )
    start = time.monotonic()
    with pytest.raises(Rejected, match="nested too deep"):
        reader.read(save(path, model([inner])))
    assert time.monotonic() - start < 5


def test_a_large_model_is_not_read_into_memory(path):
    size = 1 << 30
    weight = TensorProto(name="W", data_type=FLOAT, dims=[size // 4]).SerializeToString()
    weight = weight + b"\x4a" + varint(size)
    graph = model().graph
    graph.ClearField("initializer")
    head = graph.SerializeToString() + b"\x2a" + varint(len(weight) + size) + weight
    start = b"\x08\x0a" + b"\x42\x02\x10\x11" + b"\x3a" + varint(len(head) + size) + head
    path.write_bytes(start)
    os.truncate(path, len(start) + size)
    tracemalloc.start()
    assert reader.looks_like(path)
    assert [spec.name for spec in reader.read(path).signature.inputs] == ["x"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def varint(value):
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes([*data, value])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=5), noise=st.none() | st.binary(max_size=60)
)
def test_any_bytes_are_read_or_refused_and_nothing_else(path, edits, noise):
    data = bytearray(model().SerializeToString() if noise is None else noise or b"\0")
    for at, value in edits:
        data[at % len(data)] = value
    path.write_bytes(data)
    reader.looks_like(path)
    try:
        found = reader.read(path)
    except Rejected:
        return
    assert found.signature.inputs


def test_the_maker_is_sound(path):
    onnx.checker.check_model(model())
