"""ONNX, TorchScript, Python packages and the conversion of torch pickles: each answers as its own framework does."""

import json

import numpy as np
import pytest

from inference.artifacts.manifest import RuntimeSettings
from inference.errors import Rejected
from inference.models import LoadContext, convert, load
from inference.runtime import warmup
from inference.runtime.runner import Runner
from tests.support import artifacts


def loaded(name, folder, **settings):
    return load(name, LoadContext(folder, RuntimeSettings(**settings)))


def x(rows):
    return {"x": np.random.default_rng(rows).standard_normal((rows, 6)).astype(np.float32)}


MAKERS = {
    "onnx": artifacts.onnx_matmul,
    "torchscript": artifacts.torchscript,
    "python": artifacts.python_package,
}


@pytest.mark.parametrize("rows", [1, 5, 16])
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_it_answers_as_its_framework_does(tmp_path, name, rows):
    reference = MAKERS[name](tmp_path)
    model = loaded(name, tmp_path)
    found = model.run(x(rows))
    assert np.allclose(found["y"], reference(x(rows))["y"], atol=1e-5)
    warmup.verify(model.signature, found, rows)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_the_settings_bound_the_batch(tmp_path, name):
    MAKERS[name](tmp_path)
    assert loaded(name, tmp_path, max_batch_size=5).signature.max_batch_size == 5


def test_onnx_with_a_fixed_batch_is_padded_to(tmp_path):
    reference = artifacts.onnx_matmul(tmp_path, batch=4)
    model = loaded("onnx", tmp_path)
    assert (model.signature.max_batch_size, model.signature.buckets) == (4, [4])
    assert np.allclose(Runner(model).run(x(3))["y"], reference({"x": np.resize(x(3)["x"], (4, 6))})["y"][:3], atol=1e-5)


def test_onnx_strings_come_and_go_as_bytes(tmp_path):
    from onnx import TensorProto, helper, save

    t = helper.make_tensor_value_info("t", TensorProto.STRING, ["n"])
    u = helper.make_tensor_value_info("u", TensorProto.STRING, ["n"])
    node = helper.make_node("Identity", ["t"], ["u"])
    graph = helper.make_graph([node], "g", [t], [u])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(tmp_path / "m.onnx"))
    found = loaded("onnx", tmp_path).run({"t": artifacts.texts("a", "ö")})["u"]
    assert found.tolist() == [b"a", "ö".encode()]


def test_onnx_that_is_broken_is_rejected(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\x08\x09nonsense")
    with pytest.raises(Rejected):
        loaded("onnx", tmp_path)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_torchscript_without_a_signature_is_rejected_with_an_example(tmp_path):
    artifacts.torchscript(tmp_path, signature=None)
    with pytest.raises(Rejected) as caught:
        loaded("torchscript", tmp_path)
    assert "signature.json" in caught.value.remedy
    json.loads(caught.value.remedy.split(": ", 1)[1])


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize(
    "wrong",
    [
        {"inputs": []},
        {"inputs": [{"name": "x", "datatype": "FLOAT", "shape": [-1, 6]}]},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [6]}]},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, -2]}]},
        {"surprise": 1},
    ],
)
def test_an_unsound_signature_is_rejected(tmp_path, wrong):
    artifacts.torchscript(tmp_path, signature=artifacts.SMALL_SIGNATURE | wrong)
    with pytest.raises(Rejected) as caught:
        loaded("torchscript", tmp_path)
    assert caught.value.check == "signature"


@pytest.mark.parametrize(
    "source",
    ["", "def load(folder): return 3", "def load(", "raise ValueError('no')",
     "class M:\n  def predict(self, i): return i\ndef load(folder): return M()"],
)  # fmt: skip
def test_a_package_that_does_not_keep_the_agreement_is_rejected(tmp_path, source):
    (tmp_path / "serinus_model.py").write_text(source)
    with pytest.raises(Rejected):
        loaded("python", tmp_path)


def torch_file(path, value, **how):
    import torch

    torch.save(value, path, **how)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_of_weights_becomes_safetensors(tmp_path, zipped):
    import torch
    from safetensors.torch import load_file

    shared = torch.arange(6.0).reshape(2, 3)
    state = {"a": shared, "b": shared.t(), "c": shared[1], "half": torch.ones(3, dtype=torch.bfloat16)}
    source = torch_file(tmp_path / "m.bin", state, _use_new_zipfile_serialization=zipped)
    convert.to_safetensors(source, tmp_path / "m.safetensors")
    found = load_file(tmp_path / "m.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in state.items())


def test_wrapped_state_dicts_are_unwrapped(tmp_path):
    import torch

    source = torch_file(tmp_path / "m.pt", {"epoch": 3, "state_dict": {"a": torch.ones(2)}})
    convert.to_safetensors(source, tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").is_file()


class Evil:
    def __reduce__(self):
        return (open, ("/tmp/serinus-marker", "w"))


def hostile():
    import torch

    indices, values = torch.tensor([[99], [99]]), torch.ones(1)
    return {
        "code": {"a": Evil()},
        "sparse": {"a": torch.sparse_coo_tensor(indices, values, (100, 100))},
        "expanded": {"a": torch.ones(1).expand(1 << 40)},
        "no_tensor": {"a": [1, 2]},
        "no_mapping": torch.ones(3),
        "empty": {},
        "numbers_as_names": {1: torch.ones(1)},
    }


@pytest.mark.filterwarnings("ignore:.*parse.*")
@pytest.mark.parametrize("kind", ["code", "sparse", "expanded", "no_tensor", "no_mapping", "empty", "numbers_as_names"])
def test_pickles_of_anything_but_dense_named_tensors_are_rejected(tmp_path, kind):
    source = torch_file(tmp_path / "m.bin", hostile()[kind])
    with pytest.raises(Rejected) as caught:
        convert.to_safetensors(source, tmp_path / "m.safetensors")
    assert caught.value.check == "convert"
    assert not (tmp_path / "m.safetensors").exists()


def test_garbage_is_rejected(tmp_path):
    (tmp_path / "m.bin").write_bytes(b"PK\x03\x04garbage")
    with pytest.raises(Rejected):
        convert.to_safetensors(tmp_path / "m.bin", tmp_path / "m.safetensors")
