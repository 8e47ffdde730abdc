"""The demo models are what they promise: two versions of one model, right on unseen digits, in seconds."""

import json
from pathlib import Path

import numpy as np
import pytest

from inference.artifacts.manifest import RuntimeSettings, settings_from
from inference.models import LoadContext, load
from inference.protocol.signatures import public_signature
from inference.runtime import tensors, warmup
from inference.runtime.runner import Runner
from serinus.demo import __main__ as demo
from serinus.demo.digits import digits, sample_input
from tests.support import artifacts


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    return folder, artifacts.digits(folder)


def runner(folder, name):
    settings = RuntimeSettings(max_batch_size=16)
    return Runner(load(f"{name}_export", LoadContext(folder / name, settings)))


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_it_reads_unseen_digits(made, name):
    folder, accuracy = made
    data = digits()
    model = runner(folder, name)
    warmup.warm_up(model, repeats=1)
    parts = [data.test_x[start : start + 16] for start in range(0, len(data.test_x), 16)]
    found = np.concatenate([model.run({"image": part})["logits"].argmax(1) for part in parts])
    assert (found == data.test_y).mean() == pytest.approx(accuracy[name], abs=0.006)
    assert accuracy[name] > 0.93


def test_both_have_the_same_inputs_and_outputs(made):
    torch, jax = (runner(made[0], name).signature for name in ("torch", "jax"))
    assert (torch.inputs, torch.outputs) == (jax.inputs, jax.outputs)
    assert (torch.inputs[0].name, torch.inputs[0].shape) == ("image", [-1, 64])
    assert jax.platforms == ["cpu", "cuda", "tpu"]


def test_the_sample_input_is_a_request_that_both_answer_with_the_right_digit(made):
    tensor = sample_input()["inputs"][0]
    array = np.array(tensor["data"], dtype=tensors.numpy_dtype(tensor["datatype"])).reshape(tensor["shape"])
    for name in ("torch", "jax"):
        assert runner(made[0], name).run({tensor["name"]: array})["logits"].argmax() == digits().test_y[0]


def test_the_command_writes_folders_and_a_sample_and_says_what_it_made(tmp_path, capsys):
    assert demo.main(["minilm", str(tmp_path)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (tmp_path / "minilm" / "config.json").is_file()
    assert said["made"][0]["folder"] == str(tmp_path / "minilm")
    assert json.loads((tmp_path / "sample_input.json").read_text())["inputs"][0]["datatype"] == "BYTES"


def test_the_language_model_is_one_file_out_of_its_package(tmp_path, capsys):
    assert demo.main(["smollm2", str(tmp_path)]) == 0
    made = json.loads(capsys.readouterr().out)["made"][0]
    assert Path(made["file"]).read_bytes()[:4] == b"GGUF"
    assert json.loads((tmp_path / "sample_input.json").read_text())["messages"]


def test_the_stateful_demo_brings_its_settings(tmp_path, capsys):
    assert demo.main(["vad", str(tmp_path)]) == 0
    made = json.loads(capsys.readouterr().out)["made"][0]
    settings = json.loads(Path(made["settings"]).read_text())
    model = load("onnx", LoadContext(tmp_path / "vad", settings_from(settings)))
    sample = json.loads((tmp_path / "sample_input.json").read_text())
    assert [spec.name for spec in public_signature(model.signature, settings_from(settings)).inputs] == [
        tensor["name"] for tensor in sample["inputs"]
    ]
    assert sample["parameters"] == {"sequence_id": 1, "sequence_start": True}


@pytest.mark.parametrize("arguments", [[], ["digits"], ["no-such", "out"]])
def test_a_wrong_command_says_how(capsys, arguments):
    assert demo.main(arguments) == 2
    assert "usage" in capsys.readouterr().err
