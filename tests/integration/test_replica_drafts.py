"""Draft models for real: what validation says of them, and a replica that answers as if there were none."""

import pytest

from inference.protocol.generation import language_signature
from inference.protocol.routes import ReplicaRoute, VariantRoute
from tests.integration.test_replica_validation import Validator, checks
from tests.support import gguf_files, language
from tests.support.gateway_house import House, until
from tests.support.openai_house import post, say
from tests.support.replica_process import Replica

LOADING_S = 120  # two models on a busy machine
DRAFT = {"method": "draft", "tokens": 3}


@pytest.fixture(scope="module")
def validator(tmp_path_factory):
    return Validator(tmp_path_factory.mktemp("validations"))


@pytest.fixture
def folder(tmp_path):
    language.folder(tmp_path / "m")
    language.folder(tmp_path / "m" / "draft", seed=8, num_hidden_layers=1)
    return tmp_path / "m"


def test_the_report_tells_of_the_draft_model(validator, folder):
    verdict = validator.validate(folder, generation={"speculation": DRAFT})[-1]
    assert verdict.state == "ready", verdict
    assert "with a draft model in draft/" in checks(verdict)["parse"].message
    assert "draft model in draft/: LlamaForCausalLM" in checks(verdict)["load"].message
    seen = verdict.measurements.language
    assert (seen.draft, seen.layers) == ("LlamaForCausalLM", 2)
    assert 0 < seen.draft_parameters < seen.parameters
    assert seen.draft_agreement < 0.5
    assert f"guesses {seen.draft_agreement:.0%}" in checks(verdict)["warm-up"].message


def test_a_draft_model_of_the_same_weights_agrees(validator, folder):
    speculation = DRAFT | {"draft": "self", "quantization": "int8"}
    verdict = validator.validate(folder, generation={"speculation": speculation})[-1]
    assert verdict.state == "ready", verdict
    assert "of the same weights" in checks(verdict)["load"].message
    assert "quantised to int8" in checks(verdict)["load"].message
    assert verdict.measurements.language.draft_agreement > 0.8


def test_a_draft_model_that_nobody_asked_for_is_not_used(validator, folder):
    verdict = validator.validate(folder)[-1]
    assert verdict.state == "ready", verdict
    assert "is not used" in checks(verdict)["load"].message
    assert not verdict.measurements.language.draft


def test_a_draft_model_that_is_not_there_is_asked_for(validator, tmp_path):
    language.folder(tmp_path / "m")
    verdict = validator.validate(tmp_path / "m", generation={"speculation": DRAFT})[-1]
    assert verdict.state == "rejected"
    assert "no folder draft/" in verdict.reason


def test_a_draft_model_with_other_tokens_is_refused(validator, folder):
    tokenizer = folder / "draft" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("<|im_start|>", "<|other|>"))
    config = folder / "draft" / "tokenizer_config.json"
    config.write_text("{}")
    verdict = validator.validate(folder, generation={"speculation": DRAFT})[-1]
    assert verdict.state == "rejected"
    assert "1 of the model's" in verdict.reason


def served(root, folder, kind, generation):
    replica = Replica(root / "r", folder, kind, {"generation": generation})
    replica.control.sock.settimeout(LOADING_S)
    replica.ready()
    house = House()
    route = ReplicaRoute("r1", 1, f"unix:{replica.path}")
    house.publish(house.table([VariantRoute(1, "primary", 10_000, language_signature(), [route])]))
    house.gateway().wait_live().wait_ready()
    return replica, house


def counted(gateway, name):
    """A counter's value; -1 until the replica was asked."""
    lines = [one for one in gateway.get("/metrics").text.splitlines() if one.startswith(name + "{")]
    return float(lines[0].rsplit(" ", 1)[1]) if lines else -1


@pytest.mark.timeout(300)
def test_smollm2_guesses_for_itself_and_answers_the_same(tmp_path):
    """A second copy guesses; the answer is the one that transformers gives for the same file."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.gguf").symlink_to(gguf_files.smollm2())
    speculation = DRAFT | {"draft": "self"}
    generation = {"max_num_seqs": 2, "max_model_len": 256, "speculation": speculation}
    replica, house = served(tmp_path, tmp_path / "m", "gguf", generation)
    try:
        gateway = house.gateways[0]
        asked = {"model": "mlp", "messages": say("What is the capital of France?"), "temperature": 0}
        found = post(gateway, **asked, max_tokens=24).json()["choices"][0]
        assert (found["message"]["content"], found["finish_reason"]) == ("The capital of France is Paris.", "stop")
        until(lambda: counted(gateway, "vllm:spec_decode_num_accepted_tokens_total") >= 4, 5)
        drafted = counted(gateway, "vllm:spec_decode_num_draft_tokens_total")
        assert counted(gateway, "vllm:spec_decode_num_accepted_tokens_total") >= 0.8 * drafted
    finally:
        house.close()
        replica.close()
