from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer.testing
from hypothesis import given
from hypothesis import strategies as st

from inference.artifacts.triton import config as configs
from inference.config import BadSetting
from inference.errors import Rejected
from inference.protocol.pipelines import decode, encode
from serinus.__main__ import app
from serinus.paths import up_config
from serinus.processes import repository_programs
from serinus.repository import folder, planning
from tests.support import triton

ENSEMBLE = """
platform: "ensemble" max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: 4 } output { name: "y" data_type: TYPE_FP32 dims: 4 }
ensemble_scheduling { step [
  { model_name: "one" model_version: -1 input_map { key: "x" value: "x" } output_map { key: "y" value: "t" } },
  { model_name: "two" model_version: 1 input_map { key: "x" value: "t" } output_map { key: "y" value: "y" } } ] }
"""


def repository(root: Path, *names: str) -> Path:
    for name in names:
        triton.put(root, name, triton.ONNX_CONFIG, {"1/model.onnx": triton.onnx_bytes()})
    return root


def test_steps_come_before_their_ensemble(tmp_path: Path) -> None:
    triton.put(tmp_path, "all", ENSEMBLE, {})
    found = planning.plan(repository(tmp_path, "one", "two"))
    assert [model.name for model in found.models] == ["one", "two", "all"]
    assert found.refusals == []
    wanted = planning.plan(tmp_path, ["all"])
    assert [model.name for model in wanted.models] == ["one", "two", "all"], "its steps come along"
    assert [model.name for model in planning.plan(tmp_path, ["two"]).models] == ["two"]


def test_an_ensemble_of_what_cannot_be_imported_is_refused_too(tmp_path: Path) -> None:
    triton.put(tmp_path, "all", ENSEMBLE, {})
    found = planning.plan(repository(tmp_path, "one"))
    assert [model.name for model in found.models] == ["one"]
    assert {one.name: one.reason for one in found.refusals}.keys() == {"all", "two"}
    assert "its step 'two' cannot be imported" in found.refusals[0].reason


def test_ensembles_in_a_circle_are_refused(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        config = ENSEMBLE.replace('"one"', f'"{other}"').replace('"two"', f'"{other}"')
        triton.put(tmp_path, name, config, {})
    found = planning.plan(tmp_path)
    assert found.models == []
    assert {one.name: one.reason for one in found.refusals} == {
        "a": "it waits for ensembles in a circle: a <- b <- a",
        "b": "it waits for ensembles in a circle: b <- a <- b",
    }


def test_an_ensemble_of_an_ensemble_is_made_flat_after_it(tmp_path: Path) -> None:
    triton.put(tmp_path, "all", ENSEMBLE, {})
    triton.put(
        tmp_path, "above", ENSEMBLE.replace('"two"', '"all"').replace("model_version: 1", "model_version: -1"), {}
    )
    found = planning.plan(repository(tmp_path, "one", "two"), ["above"])
    assert [model.name for model in found.models] == ["one", "two", "all", "above"]
    newest = {"one": 7, "all": 2}
    inner = decode(planning.pipeline(found.models[2], newest, {("two", 1): 3}))
    data = planning.pipeline(found.models[3], newest, {}, {("all", 2): inner})
    steps = [(step.name, step.model, step.version, step.input_map, step.output_map) for step in decode(data).steps]
    assert steps == [
        ("one", "one", 7, {"x": "x"}, {"y": "t"}),
        ("all.one", "one", 7, {"x": "t"}, {"y": "all.t"}),
        ("all.two", "two", 3, {"x": "all.t"}, {"y": "y"}),
    ]
    assert encode(decode(data)) == data


def test_a_pipeline_names_every_version(tmp_path: Path) -> None:
    triton.put(tmp_path, "all", ENSEMBLE, {})
    model = planning.plan(repository(tmp_path, "one", "two")).models[-1]
    made = msgspec.json.decode(planning.pipeline(model, {"one": 7}, {("two", 1): 3}))
    assert [(step["model"], step["version"]) for step in made["steps"]] == [("one", 7), ("two", 3)]
    assert made["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert made["max_batch_size"] == 8
    assert made["steps"][0]["input_map"] == {"x": "x"}
    with pytest.raises(Rejected, match="'two' has no version 1"):
        planning.pipeline(model, {"one": 7, "two": 9}, {})


def test_a_config_given_with_a_load_takes_the_place_of_the_folders(tmp_path: Path) -> None:
    """As Triton's client sends it, JSON whose whole numbers may be texts; a Python model finds it among its files."""
    repository(tmp_path, "one")
    triton.put(tmp_path, "code", triton.ADD_SUB_CONFIG, {"1/model.py": triton.ADD_SUB, "1/w.bin": b"w"})
    given = {
        "one": {"backend": "onnxruntime", "max_batch_size": "16", "version_policy": {"specific": {"versions": ["1"]}},
                "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": ["4"]}],
                "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [4]}]},
        "code": {"backend": "python", "parameters": {"scale": {"string_value": "3"}}},
    }  # fmt: skip
    overrides = {name: tmp_path / f"{name}.pbtxt" for name in given}
    for name, path in overrides.items():
        path.write_text(configs.text_of(json.dumps(given[name])))
    code, one = planning.plan(tmp_path, ["code", "one"], overrides).models
    assert one.translated.settings.max_batch_size == 16
    assert [part.path for part in one.versions[0].parts] == ["model.onnx"]
    assert code.translated.settings.parameters == {"scale": "3"}
    parts = {part.path: part.file for part in code.versions[0].parts}
    assert set(parts) == {"1/model.py", "1/w.bin", "config.pbtxt"}
    assert parts["config.pbtxt"] == overrides["code"]
    assert planning.plan(tmp_path, ["one"]).models[0].translated.settings.max_batch_size == 8


@pytest.mark.parametrize(
    ("words", "told"),
    [("{", "no JSON of a ModelConfig"), ('{"nope": 1}', 'no field named "nope"'), ('{"max_batch_size": "many"}', "max"),
     ("[" * 5000, "no JSON"), ('{"input": 5}', "input")],
    ids=["broken", "unknown", "no number", "deep", "no list"],
)  # fmt: skip
def test_a_config_that_is_none_is_refused_in_words(words: str, told: str) -> None:
    with pytest.raises(Rejected, match=told):
        configs.text_of(words)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Rejected):
        planning.plan(tmp_path / "nowhere")


# Following a folder


def test_a_mark_changes_with_any_file(tmp_path: Path) -> None:
    repository(tmp_path, "one", "two")
    before = folder.marks_of(tmp_path)
    assert folder.marks_of(tmp_path) == before
    triton.put(tmp_path, "one", None, {"2/model.onnx": triton.onnx_bytes(3.0)})
    after = folder.marks_of(tmp_path)
    assert after["one"] != before["one"]
    assert after["two"] == before["two"]


NAMES = st.sampled_from("abcdef")
MARKS = st.dictionaries(NAMES, st.sampled_from("xyz"))


@given(MARKS, MARKS, st.sets(NAMES), st.dictionaries(NAMES, st.sets(NAMES)))
def test_what_is_new_changed_or_pending_is_imported_with_what_uses_it(
    before: dict[str, str], now: dict[str, str], pending: set[str], uses: dict[str, set[str]]
) -> None:
    found = folder.to_import(before, now, pending, uses)
    assert found == sorted(set(found) & set(now))
    assert {name for name in now if before.get(name) != now[name] or name in pending} <= set(found)
    for name, steps in uses.items():
        assert name not in now or not steps & set(found) or name in found
    if before == now and not pending:
        assert found == []


def test_the_process_is_started_only_with_a_folder(tmp_path: Path) -> None:
    config = up_config({"SERINUS_DATA_DIR": str(tmp_path)})
    assert repository_programs(config) == []
    (program,) = repository_programs(replace(config, model_repository=tmp_path, model_control_mode="poll"))
    assert program.name == "repository"
    assert "DATABASE_URL" in program.unset


def test_its_settings_come_from_the_environment(tmp_path: Path) -> None:
    env = {
        "SERINUS_MODEL_REPOSITORY": "/models", "SERINUS_MODEL_CONTROL_MODE": "explicit", "SERINUS_LOAD_MODELS": "a,b",
        "SERINUS_REPOSITORY_POLL_S": "3", "SERINUS_DATA_DIR": str(tmp_path),
    }  # fmt: skip
    config = folder.folder_config(env)
    assert (config.root, config.mode, config.load, config.poll_s) == (Path("/models"), "explicit", ("a", "b"), 3)
    with pytest.raises(BadSetting, match="SERINUS_MODEL_CONTROL_MODE"):
        folder.folder_config(env | {"SERINUS_MODEL_CONTROL_MODE": "often"})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model-control-mode", "often"], "must be one of none, poll, explicit"),
        (["--model-control-mode", "poll"], "needs --model-repository"),
        (["--load-model", "a"], "--load-model needs"),
    ],
    ids=["mode", "no folder", "load"],
)
def test_options_that_would_be_passed_over_are_refused(
    options: list[str], words: str, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("SERINUS_DATA_DIR", str(tmp_path))
    done = typer.testing.CliRunner().invoke(app, ["up", *options])
    assert done.exit_code == 1
    assert words in " ".join(done.output.split())
