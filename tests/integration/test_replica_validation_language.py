"""Validation of language models for real: the same warm standby and walls, and what their report says."""

import shutil

import pytest

from tests.integration.test_replica_validation import ALL, Validator, checks
from tests.support import causal_models, gguf_files, language


@pytest.fixture(scope="module")
def validator(tmp_path_factory):
    return Validator(tmp_path_factory.mktemp("validations"))


@pytest.fixture(scope="module")
def plain(validator, tmp_path_factory):
    """What is said of the tiny model as it is."""
    folder = tmp_path_factory.mktemp("plain") / "m"
    language.folder(folder)
    return validator.validate(folder)[-1].measurements.language


def test_the_real_smollm2_becomes_ready_with_its_report(validator, tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "model.gguf").symlink_to(gguf_files.smollm2())
    verdict = validator.validate(folder)[-1]
    assert verdict.state == "ready", verdict
    assert (verdict.format, verdict.tier, verdict.task) == ("gguf", "data", "text-generation")
    states = {name: check.state for name, check in checks(verdict).items()}
    assert states == dict.fromkeys(ALL, "passed") | {"convert": "skipped"}
    seen = verdict.measurements.language
    assert (seen.parameters, seen.layers, seen.context, seen.vocabulary) == (134_515_008, 30, 8192, 49_152)
    assert (seen.stored, seen.dtype, seen.path, seen.has_chat_template) == ("Q4_1", "float32", "decoder", True)
    assert seen.weight_bytes == 4 * 134_515_008
    assert seen.cache_bytes_per_1000 == 1000 * 2 * 30 * 3 * 64 * 4
    assert seen.perplexity == pytest.approx(18.768, abs=0.01)  # transformers' loss on the same text gives 18.7682
    assert [spec.name for spec in verdict.signature.inputs] == ["text_input"]
    assert set(verdict.measurements.latency_ms) == {"1", "4", "16"}
    assert verdict.measurements.peak_memory_bytes > seen.weight_bytes


def test_a_hugging_face_folder_becomes_ready(validator, tmp_path):
    language.folder(tmp_path / "m")
    verdict = validator.validate(tmp_path / "m")[-1]
    assert verdict.state == "ready", verdict
    assert verdict.format == "hf_decoder"
    assert "LlamaForCausalLM by our own decoder" in checks(verdict)["load"].message
    assert verdict.measurements.language.stored == "F32"


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("quantization", "most"), [("int8", 0.02), ("int4", 0.4)])
def test_a_quantised_model_reports_its_perplexity_before_and_after(validator, plain, tmp_path, quantization, most):
    language.folder(tmp_path / "m")
    verdict = validator.validate(tmp_path / "m", generation={"quantization": quantization})[-1]
    assert verdict.state == "ready", verdict
    seen = verdict.measurements.language
    assert (plain.quantization, seen.quantization) == ("none", quantization)
    assert plain.perplexity_plain == 0
    assert seen.perplexity_plain == pytest.approx(plain.perplexity, rel=1e-3)
    assert 0 < abs(seen.perplexity / plain.perplexity - 1) < most
    assert seen.weight_bytes < plain.weight_bytes
    said = " ".join(check.message for check in checks(verdict).values())
    assert f"{quantization} weights change perplexity {seen.perplexity_plain:.2f} to {seen.perplexity:.2f}" in said


def test_another_architecture_is_served_through_transformers_and_the_report_says_so(validator, tmp_path):
    shutil.copytree(causal_models.made("stablelm")[0], tmp_path / "m")
    verdict = validator.validate(tmp_path / "m")[-1]
    assert verdict.state == "ready", verdict
    assert verdict.measurements.language.path == "transformers"
    said = checks(verdict)["load"].message
    assert "StableLmForCausalLM by its class of transformers" in said
    assert "served through transformers: slower" in said
    assert "sequences run one after another" in said


def test_state_outside_attention_is_rejected_by_name(validator, tmp_path):
    from transformers import MambaConfig, MambaForCausalLM

    sizes = {"vocab_size": language.VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    MambaForCausalLM(MambaConfig(**sizes)).save_pretrained(tmp_path / "m")
    language.write_tokenizer(tmp_path / "m")
    verdict = validator.validate(tmp_path / "m")[-1]
    assert verdict.state == "rejected"
    assert "MambaForCausalLM keeps state outside attention" in verdict.reason
    assert "keys and values of attention" in verdict.remedy


def test_pickled_weights_are_converted_first(validator, tmp_path):
    language.folder(tmp_path / "m", pickled=True)
    verdict = validator.validate(tmp_path / "m")[-1]
    assert verdict.state == "ready", verdict
    assert [file.path for file in verdict.converted] == ["model.safetensors"]
    assert verdict.measurements.language.parameters > 0


def test_an_adapter_is_bound_to_a_version(validator, tmp_path):
    language.adapter(tmp_path / "a")
    verdict = validator.validate(tmp_path / "a")[-1]
    assert verdict.state == "rejected"
    assert '"base": "NAME:NUMBER"' in verdict.remedy
    verdict = validator.validate(tmp_path / "a", parameters={"base": "tiny:1"})[-1]
    assert verdict.state == "ready", verdict
    assert verdict.format == "lora"
    assert "rank 4, scale 2, 4 layers; it changes tiny:1" in checks(verdict)["load"].message
    assert checks(verdict)["latency"].state == "skipped"


def test_weights_that_hold_no_numbers_are_rejected(validator, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    language.folder(tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    save_file(weights, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    verdict = validator.validate(tmp_path / "m")[-1]
    assert verdict.state == "rejected"
    assert "NaN" in verdict.reason
