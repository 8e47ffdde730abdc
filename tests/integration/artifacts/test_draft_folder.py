"""A draft model lies in the folder draft/ of its model's upload, and is read as strictly."""

import json

import pytest

from inference.artifacts.inspect import inspect
from inference.artifacts.manifest import Format
from inference.errors import Rejected
from inference.models.on_torch.gguf_weights import GgufWeights
from inference.models.on_torch.language import source_of
from inference.models.on_torch.language.weights import SafetensorsWeights
from tests.support import gguf_files, goodfiles, language


@pytest.fixture
def model(tmp_path):
    language.folder(tmp_path)
    return tmp_path


def test_a_folder_with_a_draft_model_is_one_model_with_a_note(model):
    language.folder(model / "draft", seed=8, num_hidden_layers=1)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / "draft" / name).unlink()
    found = inspect(model)
    assert (found.format, found.entry) == (Format.HF_DECODER, "config.json")
    assert found.language.shape.layers == 2
    assert found.draft.shape.layers == 1
    assert any(f"{found.draft.parameters:,} parameters" in note for note in found.notes)


def test_a_gguf_file_in_it_is_not_taken_for_the_model(model):
    (model / "draft").mkdir()
    (model / "draft" / "small.gguf").symlink_to(gguf_files.smollm2())
    with pytest.raises(Rejected) as refused:
        inspect(model)
    assert "a vocabulary of 49152 tokens, the model one of 320" in refused.value.reason
    assert isinstance(source_of(model), SafetensorsWeights)


def test_two_gguf_files_are_model_and_draft_model(tmp_path):
    (tmp_path / "draft").mkdir()
    for path in (tmp_path / "model.gguf", tmp_path / "draft" / "small.gguf"):
        path.symlink_to(gguf_files.smollm2())
    found = inspect(tmp_path)
    assert (found.format, found.entry) == (Format.GGUF, "model.gguf")
    assert found.draft.parameters == 134_515_008
    assert isinstance(source_of(tmp_path), GgufWeights)
    (tmp_path / "draft" / "another.gguf").symlink_to(gguf_files.smollm2())
    with pytest.raises(Rejected, match="2 GGUF files"):
        inspect(tmp_path)


def test_another_vocabulary_is_refused_with_both_sizes(model):
    language.folder(model / "draft", vocab_size=300)
    with pytest.raises(Rejected) as refused:
        inspect(model)
    assert "a vocabulary of 300 tokens, the model one of 320" in refused.value.reason
    assert "same tokenizer" in refused.value.remedy


def with_code(draft):
    language.folder(draft)
    config = json.loads((draft / "config.json").read_text())
    (draft / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Evil"}}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda draft: language.folder(draft, pickled=True), "pickles"),
        (goodfiles.encoder, "holds no language model"),
        (lambda draft: (language.folder(draft), (draft / "model.safetensors").unlink()), "no weights"),
        (with_code, "code of its own"),
    ],
    ids=["pickled", "encoder", "no weights", "code"],
)
def test_what_could_not_be_served_alone_is_refused(model, change, says):
    (model / "draft").mkdir()
    change(model / "draft")
    with pytest.raises(Rejected) as refused:
        inspect(model)
    assert says in refused.value.reason


def test_the_folder_means_nothing_beside_other_models(tmp_path):
    goodfiles.pt2(tmp_path / "m.pt2")
    (tmp_path / "draft").mkdir()
    (tmp_path / "draft" / "config.json").write_text("{}")
    assert inspect(tmp_path).format is Format.TORCH_EXPORT
