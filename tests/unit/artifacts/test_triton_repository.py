from __future__ import annotations

from pathlib import Path

import pytest

from inference.artifacts.triton import repository
from inference.errors import Rejected
from tests.support import triton

PYTHON = 'backend: "python"\n'


def put(root: Path, config: str | None, files: dict[str, str | bytes], name: str = "m") -> Path:
    return triton.put(root, name, config, files)


def test_names_are_the_folders(tmp_path: Path) -> None:
    for name in ("b", "a", ".git", "__pycache__"):
        (tmp_path / name).mkdir()
    (tmp_path / "README.md").write_text("x")
    assert repository.names(tmp_path) == ["a", "b"]
    with pytest.raises(Rejected, match="no folder"):
        repository.names(tmp_path / "nowhere")


def test_only_the_models_own_file_is_taken(tmp_path: Path) -> None:
    put(
        tmp_path,
        triton.ONNX_CONFIG,
        {"1/model.onnx": b"a", "1/notes.txt": "n", "2/model.onnx": b"b", "x/model.onnx": b"c"},
    )
    found = repository.model(tmp_path, "m")
    assert [(one.number, [part.path for part in one.parts]) for one in found.versions] == [(2, ["model.onnx"])]
    assert found.versions[0].parts[0].file.read_bytes() == b"b"


def test_a_file_by_another_name(tmp_path: Path) -> None:
    put(tmp_path, triton.ONNX_CONFIG + 'default_model_filename: "net.onnx"', {"1/net.onnx": b"a"})
    assert [part.path for part in repository.model(tmp_path, "m").versions[0].parts] == ["net.onnx"]


def test_a_python_model_brings_its_folder_but_no_other_version(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "1/model.py": triton.ADD_SUB, "2/model.py": triton.ADD_SUB, "2/weights/w.bin": b"w", "shared.json": "{}",
        "2/__pycache__/x.pyc": b"", ".git/config": "",
    }  # fmt: skip
    put(tmp_path, triton.ADD_SUB_CONFIG, files)
    (version,) = repository.model(tmp_path, "m").versions
    assert [part.path for part in version.parts] == ["2/model.py", "2/weights/w.bin", "config.pbtxt", "shared.json"]


def test_labels_become_settings(tmp_path: Path) -> None:
    config = triton.ONNX_CONFIG.replace('name: "y"', 'name: "y" label_filename: "l.txt"')
    put(tmp_path, config, {"1/model.onnx": b"a", "l.txt": "cat\ndog\nbird\n\n"})
    assert repository.model(tmp_path, "m").translated.settings.labels == ["cat", "dog", "bird"]


def test_warm_up_and_state_files_come_along(tmp_path: Path) -> None:
    more = """
    model_warmup { name: "w" inputs { key: "x" value { data_type: TYPE_FP32 dims: 4 input_data_file: "raw" } } }
    """
    put(tmp_path, triton.ONNX_CONFIG + more, {"1/model.onnx": b"a", "warmup/raw": b"0" * 16})
    parts = repository.model(tmp_path, "m").versions[0].parts
    assert [part.path for part in parts] == ["model.onnx", "warmup/raw"]


def test_an_ensemble_has_no_files(tmp_path: Path) -> None:
    config = """
    platform: "ensemble" input { name: "x" data_type: TYPE_FP32 dims: 4 } output { name: "y" data_type: TYPE_FP32 dims: 4 }
    ensemble_scheduling { step { model_name: "a" model_version: -1
      input_map { key: "x" value: "x" } output_map { key: "y" value: "y" } } }
    """
    put(tmp_path, config, {})
    assert [(one.number, one.parts) for one in repository.model(tmp_path, "m").versions] == [(1, ())]


@pytest.mark.parametrize("at", ["1", "1/model.onnx"])
def test_weights_beside_a_graph_come_along_and_nothing_else(tmp_path: Path, at: str) -> None:
    folder = put(tmp_path, triton.ONNX_CONFIG, {f"{at}/notes.txt": "n"})
    triton.onnx_outside(folder / at / "model.onnx", "w/f.data")
    (version,) = repository.model(tmp_path, "m").versions
    assert [part.path for part in version.parts] == ["model.onnx", "w/f.data"]
    (folder / at / "w" / "f.data").unlink()
    with pytest.raises(Rejected, match=r"keeps weights in 'w/f.data' \(external data\), which is not there"):
        repository.model(tmp_path, "m")
    (tmp_path / "secret").write_bytes(bytes(64))
    (folder / at / "w" / "f.data").symlink_to(tmp_path / "secret")
    with pytest.raises(Rejected, match="leads out of the folder"):
        repository.model(tmp_path, "m")


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", "1/../../secret"])
def test_no_file_outside_of_the_model_is_ever_taken(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("s")
    put(
        tmp_path / "r",
        triton.ONNX_CONFIG.replace('name: "y"', f'name: "y" label_filename: "{name}"'),
        {"1/model.onnx": b""},
    )
    with pytest.raises(Rejected):
        repository.model(tmp_path / "r", "m")


def test_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    folder = put(tmp_path / "r", triton.ADD_SUB_CONFIG, {"1/model.py": triton.ADD_SUB})
    (folder / "1" / "data").symlink_to(tmp_path / "secret")
    with pytest.raises(Rejected, match="leads out"):
        repository.model(tmp_path / "r", "m")


@pytest.mark.parametrize(
    ("config", "files", "words"),
    [
        (triton.ONNX_CONFIG, {}, "no version"),
        (triton.ONNX_CONFIG, {"1/other.onnx": b""}, "model.onnx is missing"),
        (triton.ONNX_CONFIG, {"1/model.onnx/other.onnx": b""}, "model.onnx is missing"),
        (triton.TORCH_CONFIG, {"1/model.pt/model.pt": b""}, "save it as one file"),
        (triton.ONNX_CONFIG + "version_policy { specific { versions: 4 } }", {"1/model.onnx": b""}, "no version"),
        (None, {"1/model.bin": b""}, "'backend'"),
        (triton.ONNX_CONFIG.replace('name: "y"', 'name: "y" label_filename: "l"'), {"1/model.onnx": b""}, "is missing"),
    ],
    ids=["no version", "no file", "not in its folder", "in a folder", "policy", "unknown", "labels"],
)
def test_what_is_missing_is_named(
    tmp_path: Path, config: str | None, files: dict[str, str | bytes], words: str
) -> None:
    put(tmp_path, config, files)
    with pytest.raises(Rejected, match=words):
        repository.model(tmp_path, "m")


def test_a_name_that_we_cannot_take_is_refused(tmp_path: Path) -> None:
    put(tmp_path, triton.ONNX_CONFIG, {"1/model.onnx": b""}, name="a.b")
    with pytest.raises(Rejected, match="cannot be a model's name"):
        repository.model(tmp_path, "a.b")
