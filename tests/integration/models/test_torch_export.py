"""torch.export programs answer as torch does, at every batch size their signature names."""

import numpy as np
import pytest

from inference.artifacts.manifest import RuntimeSettings, settings_from
from inference.errors import Rejected
from inference.models import LoadContext, load
from inference.protocol.settings import GenerationSettings
from inference.runtime import warmup
from inference.runtime.runner import Runner
from tests.support import artifacts


def loaded(folder, **settings):
    return load("torch_export", LoadContext(folder, RuntimeSettings(**settings)))


def x(rows):
    return {"x": np.random.default_rng(rows).standard_normal((rows, 6)).astype(np.float32)}


def saved(folder, module, args, **kwargs):
    import torch

    torch.export.save(torch.export.export(module.eval(), args, **kwargs), folder / "model.pt2")
    return loaded(folder)


@pytest.mark.parametrize("rows", [1, 2, 7, 16])
def test_it_answers_as_torch_does(tmp_path, rows):
    reference = artifacts.torch_export(tmp_path)
    assert np.allclose(loaded(tmp_path).run(x(rows))["y"], reference(x(rows))["y"], atol=1e-5)


def test_the_signature_is_read_from_the_graph(tmp_path):
    artifacts.torch_export(tmp_path, largest=16)
    signature = loaded(tmp_path).signature
    assert [(s.name, s.datatype, s.shape) for s in signature.inputs] == [("x", "FP32", [-1, 6])]
    assert [(s.name, s.datatype, s.shape) for s in signature.outputs] == [("y", "FP32", [-1, 3])]
    assert (signature.max_batch_size, signature.buckets) == (16, [])


def test_the_settings_bound_the_batch_within_the_programs_own_bound(tmp_path):
    artifacts.torch_export(tmp_path, largest=16)
    assert loaded(tmp_path, max_batch_size=8).signature.max_batch_size == 8
    assert loaded(tmp_path, max_batch_size=100).signature.max_batch_size == 16


def test_an_unbounded_batch_gets_64(tmp_path):
    artifacts.torch_export(tmp_path, largest=None)
    assert loaded(tmp_path).signature.max_batch_size == 64


def test_a_fixed_batch_is_padded_to_and_answers_the_same(tmp_path):
    reference = artifacts.torch_export(tmp_path, batch=4)
    model = loaded(tmp_path)
    assert (model.signature.max_batch_size, model.signature.buckets) == (4, [4])
    assert model.signature.inputs[0].shape == [-1, 6]
    for rows in (1, 3, 4):
        assert np.allclose(Runner(model).run(x(rows))["y"], reference(x(rows))["y"], atol=1e-5)


def test_a_fixed_first_dimension_that_mixes_rows_is_no_batch(tmp_path):
    import torch

    class Square(torch.nn.Module):
        def forward(self, a, b):
            return a @ b

    model = saved(tmp_path, Square(), (torch.zeros(4, 4), torch.zeros(4, 4)))
    assert (model.signature.max_batch_size, model.signature.buckets) == (0, [])
    assert [spec.name for spec in model.signature.inputs] == ["a", "b"]
    assert model.signature.outputs[0].name == "output_0"
    given = {"a": np.eye(4, dtype=np.float32) * 2, "b": np.ones((4, 4), np.float32)}
    assert (model.run(given)["output_0"] == 2).all()
    warmup.warm_up(Runner(model))


def test_keywords_tuples_and_bfloat16(tmp_path):
    import ml_dtypes
    import torch

    class Two(torch.nn.Module):
        def forward(self, left, *, right):
            return left + right, (left * 2).to(torch.bfloat16), left > right

    batch = torch.export.Dim("b", min=1, max=8)
    shapes = {"left": {0: batch}, "right": {0: batch}}
    args, kwargs = (torch.zeros(2, 3),), {"right": torch.zeros(2, 3, dtype=torch.bfloat16)}
    model = saved(tmp_path, Two(), args, kwargs=kwargs, dynamic_shapes=shapes)
    right = np.array([[3, 0, 1]]).astype(ml_dtypes.bfloat16)
    found = model.run({"left": np.array([[1, 2, 3]], np.float32), "right": right.view(np.uint16)})
    assert [(s.name, s.datatype) for s in model.signature.outputs] == [
        ("output_0", "FP32"), ("output_1", "BF16"), ("output_2", "BOOL"),
    ]  # fmt: skip
    assert found["output_0"].tolist() == [[4, 2, 4]]
    assert found["output_1"].view(ml_dtypes.bfloat16).astype(float).tolist() == [[2, 4, 6]]
    assert found["output_2"].tolist() == [[False, True, True]]


def test_a_free_dimension_that_is_no_batch(tmp_path):
    import torch

    class Sum(torch.nn.Module):
        def forward(self, x):
            return x.sum(dim=1)

    dims = {"x": {0: torch.export.Dim("b", min=1, max=8), 1: torch.export.Dim("length", min=4, max=40)}}
    model = saved(tmp_path, Sum(), (torch.zeros(2, 5),), dynamic_shapes=dims)
    assert model.signature.inputs[0].shape == [-1, -1]
    assert warmup.warm_up(Runner(model)).latency_ms.keys() == {1, 8}


def test_a_read_only_view_of_a_frame_is_taken(tmp_path):
    reference = artifacts.torch_export(tmp_path)
    raw = np.frombuffer(b"\0" + x(2)["x"].tobytes(), dtype=np.uint8)[1:].view(np.float32).reshape(2, 6)
    raw.flags.writeable = False
    assert np.allclose(loaded(tmp_path).run({"x": raw})["y"], reference({"x": raw})["y"], atol=1e-5)


def test_a_truncated_file_is_rejected(tmp_path):
    artifacts.torch_export(tmp_path)
    path = tmp_path / "model.pt2"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(Rejected):
        loaded(tmp_path)


def test_a_batch_without_a_real_bound_is_one_that_settings_can_say(tmp_path):
    import torch

    class Same(torch.nn.Module):
        def forward(self, x):
            return x.clone()

    shapes = ({0: torch.export.Dim("rows", min=1, max=1 << 23)},)
    model = saved(tmp_path, Same(), (torch.zeros(2, 3),), dynamic_shapes=shapes)
    assert model.signature.max_batch_size == 4096
    settings_from({"max_batch_size": model.signature.max_batch_size})


def test_settings_of_language_models_are_refused_not_ignored(tmp_path):
    artifacts.torch_export(tmp_path)
    with pytest.raises(Rejected, match="`generation` are for language models, and this is torch_export"):
        loaded(tmp_path, generation=GenerationSettings())
