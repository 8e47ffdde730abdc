"""The loaders themselves refuse what the parse stage refuses: a file that got past it still runs nothing."""

import pytest

from inference.artifacts.manifest import RuntimeSettings
from inference.errors import InvalidInput, PoisonInput, Rejected
from inference.models import LoadContext, load
from inference.runtime import warmup
from inference.runtime.runner import Runner
from tests.support import artifacts, hostile

DISARMED = {"pt2_guards"}  # what the sanitised copy simply leaves out
PT2 = sorted(name for name in dir(hostile) if name.startswith("pt2_") and name not in DISARMED)


def refuse(name, maker, tmp_path):
    folder, marker = tmp_path / "artifact", tmp_path / "marker"
    folder.mkdir()
    getattr(hostile, maker)(folder, marker)
    with pytest.raises(Rejected) as caught:
        load(name, LoadContext(folder, RuntimeSettings()))
    assert not marker.exists()
    assert caught.value.remedy


def test_every_way_that_torch_export_load_runs_code_is_among_them():
    assert {"pt2_shape_expression", "pt2_sample_inputs", "pt2_pickled_weight", "pt2_native_code"} <= set(PT2)


@pytest.mark.parametrize("maker", PT2)
def test_hostile_torch_programs_run_nothing(tmp_path, maker):
    refuse("torch_export", maker, tmp_path)


@pytest.mark.parametrize("maker", sorted(DISARMED))
def test_what_the_sanitised_copy_leaves_out_never_runs(tmp_path, maker):
    getattr(hostile, maker)(tmp_path, tmp_path / "marker")
    warmup.warm_up(Runner(load("torch_export", LoadContext(tmp_path, RuntimeSettings()))), repeats=1)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("maker", ["stablehlo_callback", "stablehlo_unchecked"])
def test_hostile_jax_programs_run_nothing(tmp_path, maker):
    refuse("jax_export", maker, tmp_path)


@pytest.mark.parametrize("maker", ["auto_map", "auto_map_of_tokenizer"])
def test_encoders_with_code_of_their_own_run_nothing(tmp_path, maker):
    refuse("hf_encoder", maker, tmp_path)


def test_a_tokenizer_that_panics_fails_one_request_and_no_other(tmp_path):
    folder = tmp_path / "artifact"
    artifacts.bert_classifier(folder)
    tokenizer = hostile.panicking_tokenizer(tmp_path / "evil", tmp_path / "marker")
    found = next(path for path in [tokenizer, *tokenizer.rglob("tokenizer.json")] if path.name == "tokenizer.json")
    (folder / "tokenizer.json").write_bytes(found.read_bytes())
    runner = Runner(load("hf_encoder", LoadContext(folder, RuntimeSettings())))
    answers = runner.run_isolated([{"text": artifacts.texts(text)} for text in ("a", hostile.PANICS, "a")])
    assert isinstance(answers[1], InvalidInput | PoisonInput)
    assert answers[0]["scores"].shape == answers[2]["scores"].shape == (1, 3)
