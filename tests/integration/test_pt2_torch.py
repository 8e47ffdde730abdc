"""Against the real torch.export: what it writes passes, and the sanitised copy computes the same without unpickling."""

import contextlib
import warnings

import pytest
import torch
from torch import nn
from torch.export import Dim, export

from inference.artifacts import pt2
from inference.artifacts.aten import OPERATORS
from inference.artifacts.inspect import inspect
from inference.errors import Rejected
from tests.support import goodfiles, hostile

pytestmark = pytest.mark.filterwarnings("ignore")
BATCH = Dim("batch", min=1, max=64)


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))

    def forward(self, x):
        return self.layers(x)


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0]))
        self.register_buffer("shift", torch.ones(3), persistent=False)
        self.constant = torch.arange(3.0)

    def forward(self, a, b):
        return {"sum": a + b * self.scale + self.constant, "product": a * b + self.shift}


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

    def forward(self, ids, mask):
        hidden = self.layer(self.embedding(ids)) * mask[..., None]
        return hidden.sum(1) / mask.sum(1, keepdim=True), hidden.reshape(hidden.shape[0], -1)


class Encoder(nn.Module):
    """A Hugging Face encoder as one exports it: tensors in, one tensor out."""

    def __init__(self):
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=32
        )
        self.model = BertModel(config, add_pooling_layer=False)

    def forward(self, ids, mask):
        return self.model(input_ids=ids, attention_mask=mask).last_hidden_state


class Branches(nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))


SEQUENCE = {0: BATCH, 1: Dim("sequence", min=2, max=32)}
WORDS = torch.zeros(2, 6, dtype=torch.long)
CASES = {
    "encoder": (Encoder(), (WORDS, torch.ones_like(WORDS)), ({0: BATCH}, {0: BATCH})),
    "recurrent": (nn.GRU(3, 4, batch_first=True), (torch.randn(2, 5, 3),), ({0: BATCH},)),
    "mlp": (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), (torch.randn(2, 4),), ({0: BATCH},)),
    "convolution": (Convolution(), (torch.randn(2, 1, 8, 8),), ({0: BATCH},)),
    "fixed": (Convolution(), (torch.randn(3, 1, 8, 8),), None),
    "several": (Several(), (torch.randn(2, 3), torch.randn(2, 3)), ({0: BATCH}, {0: BATCH})),
    "attention": (Attention(), (torch.zeros(2, 5, dtype=torch.long), torch.ones(2, 5)), (SEQUENCE, SEQUENCE)),
    "branches": (Branches(), (torch.randn(2, 3),), None),
}


@pytest.fixture
def saved(tmp_path):
    def save(name, *, decomposed=False):
        model, args, shapes = CASES[name]
        program = export(model.eval(), args, dynamic_shapes=shapes)
        if decomposed:
            program = program.run_decompositions()
        path = tmp_path / "model.pt2"
        torch.export.save(program, path)
        return path, args

    return save


def no_unpickling(*args, **kwargs):
    raise SystemError("torch.load was called")


@pytest.mark.parametrize(("name", "decomposed"), [*((name, False) for name in CASES), ("several", True)])
def test_a_real_program_passes_and_its_clean_copy_computes_the_same(saved, tmp_path, monkeypatch, name, decomposed):
    path, args = saved(name, decomposed=decomposed)
    wanted = torch.export.load(path).module()(*args)
    assert inspect_alone(path).signature is not None
    monkeypatch.setattr(torch, "load", no_unpickling)
    linted = pt2.sanitised(path, tmp_path / "clean.pt2")
    program = torch.export.load(tmp_path / "clean.pt2")
    assert program.example_inputs is None
    found = program.module()(*args)
    leaves, expected = (torch.utils._pytree.tree_leaves(value) for value in (found, wanted))
    assert type(found) is type(wanted)
    assert all(torch.equal(left, right) for left, right in zip(leaves, expected, strict=True))
    for spec, tensor in zip(linted.signature.outputs, leaves, strict=True):
        assert len(spec.shape) == tensor.dim()
        assert all(size in {-1, real} for size, real in zip(spec.shape, tensor.shape, strict=True))


@pytest.mark.parametrize("rows", [1, 7])
def test_a_clean_copy_keeps_its_free_batch(saved, tmp_path, rows):
    path, args = saved("several")
    assert pt2.sanitised(path, tmp_path / "clean.pt2").signature.max_batch_size == 64
    module = torch.export.load(tmp_path / "clean.pt2").module()
    found = module(*[torch.cat([arg[:1]] * rows) for arg in args])
    assert found["sum"].shape == (rows, 3)


def test_the_programs_written_by_hand_are_real(tmp_path):
    path = goodfiles.pt2(tmp_path / "m.pt2")
    assert torch.export.load(path).module()(torch.zeros(2, 3)).tolist() == [[1, 2, 3]] * 2
    pt2.sanitised(path, tmp_path / "clean.pt2")
    assert torch.export.load(tmp_path / "clean.pt2").module()(torch.zeros(5, 3)).tolist() == [[1, 2, 3]] * 5


@pytest.mark.parametrize("name", hostile.PT2_DISARMED)
def test_a_disarmed_program_computes_and_leaves_no_mark(tmp_path, name):
    marker = tmp_path / "marker"
    path = hostile.PT2_DISARMED[name](tmp_path, marker)
    pt2.sanitised(path, tmp_path / "clean.pt2")
    module = torch.export.load(tmp_path / "clean.pt2").module()
    assert module(torch.zeros(2, 3)).tolist() == [[1, 2, 3]] * 2
    assert not marker.exists()


@pytest.mark.parametrize("name", ["shape expression", "sample inputs", "pickled weight", "names", "file operator"])
def test_the_attacks_are_real(tmp_path, name):
    """Without the lint each of them works on this torch: the tests above would prove nothing else."""
    marker = tmp_path / "marker"
    path = hostile.PT2[name](tmp_path, marker)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(Exception):
            torch.export.load(path).module()(torch.zeros(2, 3))
    assert marker.exists()


def inspect_alone(path):
    folder = path.parent / "alone"
    folder.mkdir()
    (folder / "upload.bin").symlink_to(path)
    return inspect(folder)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count.add_(1)
        return x + self.count


@pytest.mark.parametrize("model", [nn.BatchNorm1d(3).train(), Counting()])
@pytest.mark.parametrize("decomposed", [False, True])
def test_a_model_that_keeps_state_is_refused(tmp_path, model, decomposed):
    program = export(model, (torch.randn(4, 3),))
    torch.export.save(program.run_decompositions() if decomposed else program, tmp_path / "state.pt2")
    with pytest.raises(Rejected, match=r"see each other|training") as caught:
        pt2.lint(tmp_path / "state.pt2")
    assert "eval()" in caught.value.remedy


def test_dropout_that_is_on_is_noted(tmp_path):
    torch.export.save(export(nn.Dropout().train(), (torch.randn(4, 3),)), tmp_path / "dropout.pt2")
    assert any("dropout" in note for note in pt2.lint(tmp_path / "dropout.pt2").notes)


def test_every_operator_of_the_list_is_one_of_torch_s_dispatcher():
    known = {name.removeprefix("aten::").split(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    assert sorted(OPERATORS - known) == []


def test_no_operator_of_the_list_names_files_or_raw_memory():
    words = {
        "file",
        "sparse",
        "nested",
        "quantize",
        "backward",
        "mkldnn",
        "save",
        "load",
        "print",
        "import",
        "resize",
        "blob",
    }
    assert sorted(name for name in OPERATORS for word in words if word in name) == []
    assert not OPERATORS & {"set_", "set", "set_data", "from_file", "data", "manual_seed", "seed", "record_stream"}
