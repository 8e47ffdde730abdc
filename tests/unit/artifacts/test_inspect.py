import gzip
import io
import json
import resource
import subprocess
import sys
import time
import zipfile

import pytest

from inference.artifacts.inspect import inspect
from inference.artifacts.manifest import Format, Tier
from inference.errors import Rejected
from tests.support import goodfiles, hostile

HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"


def alone(folder, data):
    folder.mkdir(exist_ok=True)
    (folder / "upload").write_bytes(data)
    return folder


def zipped(names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), b"x")  # a fixed date: the bytes become the test's name
    return buffer.getvalue()


def test_a_program_is_known_by_its_content_whatever_its_name(tmp_path):
    goodfiles.pt2(tmp_path / "photo.jpg")
    (tmp_path / "README.md").write_text("hello")
    (tmp_path / "training.json").write_text("{}")
    found = inspect(tmp_path)
    assert (found.format, found.tier, found.entry) == (Format.TORCH_EXPORT, Tier.CHECKED, "photo.jpg")
    assert found.signature
    assert found.signature.inputs[0].name == "x"


def test_an_encoder_folder_is_data(tmp_path):
    found = inspect(goodfiles.encoder(tmp_path, labels=["a", "b"]))
    assert (found.format, found.tier, found.entry) == (Format.HF_ENCODER, Tier.DATA, "config.json")
    assert (found.task, found.labels, found.needs_conversion) == ("text-classification", ["a", "b"], False)


def test_an_encoder_folder_with_another_export_is_the_encoder(tmp_path):
    goodfiles.encoder(tmp_path)
    (tmp_path / "exports").mkdir()
    goodfiles.pt2(tmp_path / "exports" / "m.pt2")
    found = inspect(tmp_path)
    assert found.format is Format.HF_ENCODER
    assert any("m.pt2" in note for note in found.notes)


def test_torchscript_and_python_packages_are_code(tmp_path):
    hostile.torchscript_writer(tmp_path, tmp_path / "marker")
    found = inspect(tmp_path)
    assert (found.format, found.tier) == (Format.TORCHSCRIPT, Tier.CODE)
    package = tmp_path / "package"
    package.mkdir()
    hostile.python_package(package, tmp_path / "marker")
    found = inspect(package)
    assert (found.format, found.tier, found.entry) == (Format.PYTHON, Tier.CODE, "serinus_model.py")
    assert not (tmp_path / "marker").exists()


def test_the_echo_model_is_data(tmp_path):
    (tmp_path / "echo.json").write_text("{}")
    assert (inspect(tmp_path).format, inspect(tmp_path).tier) == (Format.ECHO, Tier.DATA)
    (tmp_path / "echo.json").write_text("[]")
    with pytest.raises(Rejected):
        inspect(tmp_path)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (HTML, "web page"),
        (b"hello\n", "no model"),
        (b"{}", "no model"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (b"GGUF" + bytes(100), "GGUF"),
        (b"\x93NUMPY" + bytes(100), "NumPy"),
        (b"\x7fELF" + bytes(100), "machine code"),
        (bytes(4) + b"TFL3" + bytes(100), "TensorFlow Lite"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (gzip.compress(b"x" * 100, mtime=0), "packed archive"),
        (zipped(["a.txt", "b.txt"]), "packed archive"),
        (zipped(["metadata.json", "config.json", "model.weights.h5"]), "Keras"),
        (zipped(["a.npy", "b.npy"]), "NumPy"),
        (zipped(["data/aotinductor/model/x.so"]), "AOTInductor"),
        (zipped(["m/archive_format", "m/data/aotinductor/model/x.so"]), "AOTInductor"),
        (zipped(["a"])[:-10], "cut short"),
        (bytes(range(256)) * 4, "no format that Serinus knows"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_told_with_the_way_out(tmp_path, data, says):
    with pytest.raises(Rejected, match=says) as caught:
        inspect(alone(tmp_path / "in", data))
    assert len(caught.value.remedy) > 20


def test_weights_alone_are_no_model(tmp_path):
    goodfiles.safetensors(tmp_path / "upload")
    with pytest.raises(Rejected, match=r"no config\.json") as caught:
        inspect(tmp_path)
    assert "folder" in caught.value.remedy


@pytest.mark.parametrize("name", hostile.PICKLES)
def test_a_pickle_is_refused_with_the_way_out(tmp_path, name):
    folder, marker = tmp_path / "in", tmp_path / "marker"
    folder.mkdir()
    hostile.PICKLES[name](folder, marker)
    with pytest.raises(Rejected, match="pickle") as caught:
        inspect(folder)
    assert "xport" in caught.value.remedy
    assert not marker.exists()


@pytest.mark.parametrize("name", [*hostile.PT2, *hostile.ENCODERS])
def test_a_hostile_artifact_is_refused(tmp_path, name):
    folder, marker = tmp_path / "in", tmp_path / "marker"
    folder.mkdir()
    (hostile.PT2 | hostile.ENCODERS)[name](folder, marker)
    start = time.monotonic()
    with pytest.raises(Rejected) as caught:
        inspect(folder)
    assert time.monotonic() - start < 5
    assert caught.value.reason
    assert caught.value.remedy
    assert not marker.exists()


def test_two_models_are_one_too_many(tmp_path):
    goodfiles.pt2(tmp_path / "a")
    goodfiles.pt2(tmp_path / "b")
    with pytest.raises(Rejected, match="more than one model"):
        inspect(tmp_path)


def test_an_empty_folder_and_too_many_files_are_refused(tmp_path):
    with pytest.raises(Rejected, match="nothing"):
        inspect(tmp_path)
    for index in range(2000):
        (tmp_path / f"{index}.txt").touch()
    with pytest.raises(Rejected, match=r"no model|not a model|nothing") as at_the_limit:
        inspect(tmp_path)
    assert "more than" not in str(at_the_limit.value)
    (tmp_path / "one.txt").touch()
    with pytest.raises(Rejected, match="more than 2000"):
        inspect(tmp_path)


@pytest.mark.parametrize("text", ["def load(", "def other(folder): pass", "\0", "x" * (1 << 20 | 1), "(" * 100_000])
def test_a_broken_python_package_is_refused(tmp_path, text):
    (tmp_path / "serinus_model.py").write_text(text)
    with pytest.raises(Rejected) as caught:
        inspect(tmp_path)
    assert "def load(folder)" in caught.value.remedy


def test_the_parse_stage_keeps_within_its_limits_and_imports_no_framework(tmp_path):
    """The whole stage as a process of its own under 10 s of CPU and 512 MiB, on a large but honest program."""
    document = goodfiles.program()
    graph = document["graph_module"]["graph"]
    values = graph["tensor_values"]
    for index in range(5_000):
        node = json.loads(json.dumps(graph["nodes"][0]).replace('"add"', f'"add_{index}"'))
        graph["nodes"].append(node)
        values[f"add_{index}"] = values["add"]
    goodfiles.pt2(tmp_path / "large.pt2", document=document)
    text = (
        "import sys, pathlib; from inference.artifacts.inspect import inspect; print(inspect(pathlib.Path(sys.argv[1])).format);"
        "print([name for name in ('torch', 'jax', 'numpy', 'transformers', 'django') if name in sys.modules])"
    )

    def limit():
        resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
        resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))

    done = subprocess.run(
        [sys.executable, "-c", text, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["torch_export", "[]"]
