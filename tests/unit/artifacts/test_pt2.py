import copy
import json
import time
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference.artifacts import pt2
from inference.artifacts.pt2_operators import is_allowed
from inference.artifacts.pt2_tree import is_name, parse, write
from inference.errors import Rejected
from inference.protocol.oip import TensorSpec
from tests.support import goodfiles, hostile


def test_a_good_program_tells_its_signature(tmp_path):
    found = pt2.lint(goodfiles.pt2(tmp_path / "m.pt2"))
    assert found.signature.inputs == [TensorSpec("x", "FP32", [-1, 3])]
    assert found.signature.outputs == [TensorSpec("output_0", "FP32", [-1, 3])]
    assert found.signature.max_batch_size == 32
    assert found.notes == []


def test_a_fixed_first_dimension_is_no_batch_and_is_noted(tmp_path):
    document = json.loads(json.dumps(goodfiles.program()).replace(json.dumps(goodfiles.SYMBOL), '{"as_int": 2}'))
    found = pt2.lint(goodfiles.pt2(tmp_path / "m.pt2", document=document))
    assert found.signature.inputs == [TensorSpec("x", "FP32", [2, 3])]
    assert found.signature.max_batch_size == 0
    assert "dynamic_shapes" in found.notes[0]


@pytest.mark.parametrize("name", hostile.PT2)
def test_a_hostile_program_is_refused(tmp_path, name):
    marker = tmp_path / "marker"
    path = hostile.PT2[name](tmp_path, marker)
    for attempt in (lambda: pt2.lint(path), lambda: pt2.sanitised(path, tmp_path / "out.pt2")):
        with pytest.raises(Rejected) as caught:
            attempt()
        assert caught.value.reason
        assert caught.value.remedy
    assert not marker.exists()
    assert not (tmp_path / "out.pt2").exists()


def test_the_sanitised_copy_holds_nothing_that_torch_could_run(tmp_path):
    def dirty(members):
        document = json.loads(members["models/model.json"])
        document["guards_code"] = ["evil()"]
        document["graph_module"]["metadata"] = {"custom": "evil()"}
        document["graph_module"]["graph"]["nodes"][0]["metadata"] = {"stack_trace": "evil()"}
        document["graph_module"]["module_call_graph"].append({"fqn": "evil()", "signature": None})
        members["models/model.json"] = json.dumps(document).encode()
        members["extra/evil()"] = b"evil()"
        members["data/sample_inputs/model.pt"] = b"\x80\x02N."

    pt2.sanitised(goodfiles.pt2(tmp_path / "m.pt2", edit=dirty), tmp_path / "out.pt2")
    with zipfile.ZipFile(tmp_path / "out.pt2") as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    assert contents["model/data/sample_inputs/model.pt"] == b""
    assert contents["model/data/weights/weight_0"] == bytes.fromhex("0000803f0000004000004040")
    assert not any(b"evil" in data or "evil" in name for name, data in contents.items())
    assert pt2.lint(tmp_path / "out.pt2").signature == pt2.lint(tmp_path / "m.pt2").signature


def test_a_program_of_a_gpu_is_written_for_the_cpu(tmp_path):
    document = json.loads(
        json.dumps(goodfiles.program()).replace('"type": "cpu", "index": null', '"type": "cuda", "index": 0')
    )
    pt2.sanitised(goodfiles.pt2(tmp_path / "m.pt2", document=document), tmp_path / "out.pt2")
    with zipfile.ZipFile(tmp_path / "out.pt2") as archive:
        assert b"cuda" not in archive.read("model/models/model.json")


def edited(path, keys, value):
    document = goodfiles.program()
    place = document
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return goodfiles.pt2(path, document=document)


GRAPH = ["graph_module", "graph"]
NODE = [*GRAPH, "nodes", 0]


@pytest.mark.parametrize(
    ("keys", "value", "says"),
    [
        (["schema_version", "major"], 9, "generation"),
        (["verifiers"], ["EVIL"], "dialect"),
        (["unknown"], 1, "as torch.export writes it"),
        (["range_constraints"], {"s0; evil": {"min_val": 1, "max_val": 2}}, "unusual name"),
        ([*NODE, "target"], "torch.os.system", "not allowed"),
        ([*NODE, "target"], "_operator.attrgetter", "not allowed"),
        ([*NODE, "target"], "torch.ops.aten.set_.source_Storage", "not allowed"),
        ([*NODE, "target"], "#evil:op", "not allowed"),
        ([*NODE, "name"], "__class__", "no plain name"),
        ([*NODE, "name"], "a\nimport os", "no plain name"),
        ([*NODE, "name"], "lambda", "no plain name"),
        ([*NODE, "inputs", 0, "name"], "x=evil()", "no plain name"),
        ([*NODE, "inputs", 0, "arg"], {}, "of two kinds, or of none"),
        ([*NODE, "inputs", 0, "arg"], {"as_int": 1, "as_float": 1.0}, "of two kinds"),
        ([*NODE, "inputs", 0, "arg"], {"as_operator": "torch.os.system"}, "custom"),
        ([*NODE, "inputs", 0, "arg"], {"as_custom_obj": {"name": "x", "class_fqn": "y"}}, "custom"),
        ([*NODE, "inputs", 0, "arg"], {"as_layout": 1}, "sparse"),
        ([*NODE, "inputs", 0, "arg"], {"as_device": {"type": "evil"}}, "device"),
        ([*GRAPH, "custom_obj_values"], {"x": {"name": "x", "class_fqn": "y"}}, "custom object"),
        ([*GRAPH, "sym_int_values"], {"x": {"as_expr": {"expr_str": "evil()"}}}, "shape expression"),
        ([*GRAPH, "sym_bool_values"], {"x y": {"as_bool": True}}, "no plain name"),
        ([*GRAPH, "tensor_values", "x", "layout"], 2, "sparse"),
        ([*GRAPH, "tensor_values", "x", "dtype"], 99, "sparse or unknown"),
        ([*GRAPH, "tensor_values", "x", "dtype"], 9, "cannot carry"),
        (["graph_module", "module_call_graph"], [], "how it is called"),
        (["graph_module", "module_call_graph", 0, "signature", "forward_arg_names"], ["x=1"], "no plain name"),
        (["graph_module", "module_call_graph", 0, "signature", "out_spec"], "[1, 2]", "malformed"),
        (["graph_module", "module_call_graph", 0, "signature", "out_spec"], "[2, null]", "unknown version"),
        (["graph_module", "signature", "input_specs", 0, "parameter", "parameter_name"], "absent", "not in the file"),
        (["graph_module", "signature", "input_specs", 0, "parameter", "parameter_name"], "a.__b", "unusual name"),
        (["graph_module", "signature", "output_specs", 0], {"buffer_mutation": {}}, "requests would see each other"),
        (["graph_module", "signature", "output_specs", 0], {"loss_output": {}}, "training"),
        (["graph_module", "signature", "input_specs", 1], {"constant_input": {"name": "x", "value": {"as_int": 1}}}, "no tensor"),
    ],
)  # fmt: skip
def test_each_rule_of_the_lint_says_what_it_found(tmp_path, keys, value, says):
    with pytest.raises(Rejected, match=says):
        pt2.lint(edited(tmp_path / "m.pt2", keys, value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("path_name", "../weight_0"),
        ("path_name", "weight_1"),
        ("path_name", "model.pt"),
        ("tensor_meta", None),
        ("use_pickle", True),
        ("tensor_meta", goodfiles.meta([4], [1])),
        ("tensor_meta", goodfiles.meta([3], [2])),
        ("tensor_meta", goodfiles.meta([3], [-1])),
        ("tensor_meta", goodfiles.meta([3, 1], [1])),
        ("tensor_meta", goodfiles.meta([goodfiles.SYMBOL], [1])),
        ("tensor_meta", goodfiles.meta([3], [1]) | {"storage_offset": {"as_int": 1}}),
        ("tensor_meta", goodfiles.meta([1], [1]) | {"dtype": 8}),
    ],
)
def test_a_weight_lies_in_its_own_data(tmp_path, key, value):
    config = goodfiles.weights()
    config["config"]["w"][key] = value
    with pytest.raises(Rejected) as caught:
        pt2.lint(goodfiles.pt2(tmp_path / "m.pt2", config=config))
    assert caught.value.check == "weights"


def test_a_compressed_or_incomplete_file_is_refused(tmp_path):
    path = goodfiles.pt2(tmp_path / "m.pt2", edit=lambda members: members.pop("byteorder"))
    with pytest.raises(Rejected, match="byteorder"):
        pt2.lint(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/models/model.json", b"{}")
    with pytest.raises(Rejected, match="compressed"):
        pt2.lint(path)
    with zipfile.ZipFile(path, "w"):
        pass
    with pytest.raises(Rejected):
        pt2.lint(path)


@pytest.mark.parametrize("part", [0.05, 0.4, 0.8, 0.99])
def test_a_truncated_program_is_refused(tmp_path, part):
    with pytest.raises(Rejected):
        pt2.lint(hostile.truncated(goodfiles.pt2(tmp_path / "m.pt2"), part))


def test_damaged_weights_are_found_when_they_are_copied(tmp_path):
    path = goodfiles.pt2(tmp_path / "m.pt2")
    data = bytearray(path.read_bytes())
    data[data.index(bytes.fromhex("0000803f"))] ^= 1
    path.write_bytes(data)
    with pytest.raises(Rejected, match="damaged"):
        pt2.sanitised(path, tmp_path / "out.pt2")


def test_deep_nesting_is_refused_quickly(tmp_path):
    deep = b'{"graph_module":' * 50_000
    start = time.monotonic()
    with pytest.raises(Rejected):
        pt2.lint(goodfiles.pt2(tmp_path / "m.pt2", edit=lambda members: members.update({"models/model.json": deep})))
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.linear.default", "torch.ops.aten.add_.Tensor", "torch.ops.aten._softmax.default",
        "torch.ops.aten.sym_size.int", "_operator.getitem", "_operator.mul", "torch.sym_max", "math.ceil",
        "torch.ops.higher_order.cond", "torch.ops.aten.__and__.Tensor",
        "torch.ops.aten.to.dtype_layout", "torch.ops.aten.scaled_dot_product_attention.default",
    ],
)  # fmt: skip
def test_what_models_call_is_allowed(target):
    assert is_allowed(target)


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.from_file.default", "torch.ops.aten.add.out", "torch.ops.aten.max.dim_out", "torch.ops.aten._sparse_coo_tensor_unsafe.default",
        "torch.ops.aten.sparse_coo_tensor.size", "torch.ops.aten.resize_.default", "torch.ops.aten.set_.default",
        "torch.ops.aten.__class__.default", "torch.ops.aten.add", "torch.ops.aten.add.Tensor.x", "torch.ops.evil.op.default",
        "torch.ops.load_library", "torch.load", "torch.hub.load", "_operator.call", "_operator.methodcaller", "math.os",
        "torch.ops.aten._nested_view_from_buffer.default", "os.system", "", "torch.ops.aten.linear_backward.default",
        "torch.ops.higher_order.triton_kernel_wrapper_functional", "torch.ops.aten.add.Tensor\n",
    ],
)  # fmt: skip
def test_what_reaches_elsewhere_is_not(target):
    assert not is_allowed(target)


def test_a_tree_is_written_as_it_was_read():
    text = goodfiles.in_spec()
    assert parse(write(parse(text))) == parse(text)
    assert not is_name("__x")
    assert not is_name("a b")
    assert is_name("x_1")


def paths_of(value, prefix=()):
    yield prefix
    if isinstance(value, dict):
        for key in value:
            yield from paths_of(value[key], (*prefix, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from paths_of(item, (*prefix, index))


PLACES = [path for path in paths_of(goodfiles.program()) if path]
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.just([]), st.just({}),
    st.lists(st.integers(-3, 3), max_size=2), st.just({"as_int": 1}), st.just(goodfiles.SYMBOL),
    st.sampled_from([10**30, -(10**18), "s0", "x", "add", "p_w", "w", "torch.ops.aten.mul.Tensor"]),
)  # fmt: skip


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.sampled_from(PLACES), VALUES, st.booleans()), min_size=1, max_size=3))
def test_any_change_of_the_json_is_accepted_or_refused_and_nothing_else(tmp_path, edits):
    document = copy.deepcopy(goodfiles.program())
    for path, value, remove in edits:
        place = document
        try:
            for key in path[:-1]:
                place = place[key]
            if remove:
                del place[path[-1]]
            else:
                place[path[-1]] = value
        except (KeyError, IndexError, TypeError):
            continue
    file = goodfiles.pt2(tmp_path / "m.pt2", document=document)
    try:
        found = pt2.lint(file)
    except Rejected:
        return
    assert found.signature.inputs
