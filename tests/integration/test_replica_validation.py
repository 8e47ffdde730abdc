"""Validation for real: forked from a warm standby, hashes, parse stage, sandbox, load, warm-up, verdict in words."""

import hashlib
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from inference.protocol.child import ChildPaths, FromChild, StartValidation, ValidationReport
from inference.protocol.frames import Decoder
from inference.protocol.supervision import FileRef, ValidationSeen, ValidationSpec
from tests.support import artifacts, hostile
from tests.support.standby import standby

ALL = ["files", "parse", "convert", "load", "signature", "warm-up", "latency"]


class Validator:
    def __init__(self, root: Path) -> None:
        self.root, self.count = root, 0

    def validate(self, folder: Path, *, tier="", change=False, purpose="validate", **settings) -> list[ValidationSeen]:
        """Every report of one run; the last is the verdict."""
        self.count += 1
        store, work = self.root / f"store{self.count}", self.root / f"work{self.count}"
        work.mkdir()
        files = [_stored(store, folder, path) for path in sorted(folder.rglob("*")) if path.is_file()]
        if change:
            blob = store / "blobs" / files[0].sha256[:2] / files[0].sha256
            blob.write_bytes(blob.read_bytes()[:-1] + b"?")
        spec = ValidationSpec("run", 4, "m", 1, "d", tier, files, settings, purpose=purpose)
        message = StartValidation(spec, ChildPaths(str(store), str(work)))
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                child = standby().fork(message, [theirs.fileno()], work / "log")
            decoder, seen = Decoder(FromChild, max_body_bytes=0), []
            while data := ours.recv(1 << 16):
                seen += [m.seen for m, _ in decoder.feed(data) if isinstance(m, ValidationReport)]
        self.status = child.wait()
        self.work = work
        return seen


def _stored(store: Path, folder: Path, path: Path) -> FileRef:
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    blob = store / "blobs" / digest[:2] / digest
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(data)
    return FileRef(path.relative_to(folder).as_posix(), len(data), digest)


@pytest.fixture(scope="module")
def validator(tmp_path_factory):
    return Validator(tmp_path_factory.mktemp("validations"))


def made_folder(path):
    path.mkdir()
    return path


def checks(seen):
    return {check.name: check for check in seen.checks}


@pytest.mark.parametrize("maker", [artifacts.torch_export, artifacts.jax_export, artifacts.onnx_matmul])
def test_a_good_model_becomes_ready_with_its_signature_and_measurements(validator, tmp_path, maker):
    maker(tmp_path / "m")
    seen = validator.validate(tmp_path / "m")
    verdict = seen[-1]
    assert verdict.state == "ready", verdict
    assert [check.name for check in verdict.checks] == ALL
    assert {name: check.state for name, check in checks(verdict).items()} == dict.fromkeys(ALL, "passed") | {
        "convert": "skipped"
    }
    assert verdict.signature.max_batch_size == verdict.settings["max_batch_size"] >= 1
    assert all(ms >= 0 for ms in verdict.measurements.latency_ms.values())
    assert "1" in verdict.measurements.latency_ms
    assert verdict.measurements.load_ms > 0
    assert "sandboxed: Landlock" in checks(verdict)["load"].message
    assert (verdict.run, verdict.lease, verdict.tier) == ("run", 4, "checked")
    assert [one.state for one in seen[:-1]] == ["running"] * (len(seen) - 1)
    assert {check.state for one in seen[:-1] for check in one.checks} >= {"running", "passed"}


def test_a_hugging_face_folder_with_a_pickle_is_converted_and_served_without_it(validator, tmp_path):
    artifacts.bert_classifier(tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    verdict = validator.validate(tmp_path / "m")[-1]
    assert verdict.state == "ready", verdict
    assert checks(verdict)["convert"].state == "passed"
    (converted,) = verdict.converted
    made = validator.work / "out" / "model.safetensors"
    assert converted == FileRef("model.safetensors", made.stat().st_size, hashlib.sha256(made.read_bytes()).hexdigest())


OLD_AND_NEW = {"zip": True, "legacy": False}


@pytest.mark.parametrize("form", sorted(OLD_AND_NEW))
def test_a_lone_torch_pickle_is_refused_and_converted_when_asked(validator, tmp_path, form):
    import torch
    from safetensors.torch import load_file

    saved = {"epoch": 3, "state_dict": torch.nn.Linear(3, 2).state_dict()}
    file = made_folder(tmp_path / "m") / "weights.pth"
    torch.save(saved, file, _use_new_zipfile_serialization=OLD_AND_NEW[form])
    refused = validator.validate(tmp_path / "m")[-1]
    assert (refused.state, refused.format, refused.converted) == ("rejected", "torch_pickle", [])
    assert "serinus convert" in refused.remedy
    seen = validator.validate(tmp_path / "m", purpose="convert")[-1]
    assert seen.state == "ready", seen
    assert [(check.name, check.state) for check in seen.checks] == [(name, "passed") for name in ALL[:3]]
    assert [(t.name, t.dtype, t.shape) for t in seen.tensors] == [("bias", "F32", [2]), ("weight", "F32", [2, 3])]
    assert seen.tensor_count == 2
    (converted,) = seen.converted
    made = validator.work / "out" / "model.safetensors"
    assert converted == FileRef("model.safetensors", made.stat().st_size, hashlib.sha256(made.read_bytes()).hexdigest())
    found = load_file(made)
    assert found.keys() == saved["state_dict"].keys()
    assert all(torch.equal(found[name], weight) for name, weight in saved["state_dict"].items())


@pytest.mark.parametrize("kind", sorted(hostile.CONVERSIONS))
def test_a_hostile_pickle_is_not_converted(validator, tmp_path, kind):
    marker = tmp_path / "MARKER"
    hostile.CONVERSIONS[kind](made_folder(tmp_path / "m"), marker)
    seen = validator.validate(tmp_path / "m", purpose="convert")[-1]
    assert (seen.state, seen.converted, seen.tensors) == ("rejected", [], [])
    assert seen.reason
    assert seen.remedy
    assert not marker.exists()
    assert validator.status == 0


def test_what_is_no_pickle_is_not_converted(validator, tmp_path):
    artifacts.echo(tmp_path / "m")
    seen = validator.validate(tmp_path / "m", purpose="convert")[-1]
    assert (seen.state, seen.converted) == ("rejected", [])
    assert "no torch pickle" in seen.reason


def test_one_changed_bit_is_rejected_before_anything_looks_at_it(validator, tmp_path):
    artifacts.echo(tmp_path / "m")
    verdict = validator.validate(tmp_path / "m", change=True)[-1]
    assert verdict.state == "rejected"
    assert "artifact changed" in verdict.reason
    assert verdict.remedy
    assert checks(verdict)["files"].state == "failed"
    assert checks(verdict)["load"].state == "skipped"


def test_code_that_nobody_approved_is_held_and_nothing_of_it_runs(validator, tmp_path):
    marker = tmp_path / "MARKER"
    hostile.python_package(made_folder(tmp_path / "m"), marker)
    verdict = validator.validate(tmp_path / "m")[-1]
    assert (verdict.state, verdict.tier, verdict.format) == ("rejected", "code", "python")
    assert "approve" in verdict.remedy
    assert not any(check.state == "failed" for check in verdict.checks)
    assert checks(verdict)["load"].state == "skipped"
    assert not marker.exists()


def test_approved_code_runs_behind_the_walls(validator, tmp_path):
    artifacts.python_package(tmp_path / "m")
    assert validator.validate(tmp_path / "m", tier="code")[-1].state == "ready"
    marker = tmp_path / "MARKER"
    hostile.python_package(made_folder(tmp_path / "h"), marker)
    validator.validate(tmp_path / "h", tier="code")
    assert not marker.exists()


@pytest.mark.parametrize(
    "maker",
    [
        hostile.torch_pickle,
        hostile.pt2_shape_expression,
        hostile.pt2_sample_inputs,
        hostile.pt2_pickled_weight,
        hostile.stablehlo_callback,
        hostile.safetensors_huge_header,
        hostile.auto_map,
    ],
)
def test_hostile_files_are_rejected_with_a_cause_and_a_way_out(validator, tmp_path, maker):
    marker = tmp_path / "MARKER"
    made = maker(made_folder(tmp_path / "m"), marker)
    folder = made if made.is_dir() else made.parent
    verdict = validator.validate(folder)[-1]
    assert verdict.state == "rejected"
    assert verdict.reason
    assert verdict.remedy
    assert not marker.exists()
    assert validator.status == 0


def test_a_model_that_takes_memory_without_end_is_a_rejection(validator, tmp_path):
    artifacts.echo(tmp_path / "m", at_load="allocate")
    verdict = validator.validate(tmp_path / "m")[-1]
    assert verdict.state == "rejected"
    assert "memory" in verdict.reason
    assert checks(verdict)["load"].state == "failed"


def test_a_crash_leaves_the_standby_alive_and_no_verdict(validator, tmp_path):
    artifacts.echo(tmp_path / "m", at_load="abort")
    seen = validator.validate(tmp_path / "m")
    assert validator.status == -6
    assert seen[-1].state == "running"
    artifacts.echo(tmp_path / "good")
    assert validator.validate(tmp_path / "good")[-1].state == "ready"


def test_wrong_settings_are_named(validator, tmp_path):
    artifacts.echo(tmp_path / "m")
    verdict = validator.validate(tmp_path / "m", window_ms=99)[-1]
    assert verdict.state == "rejected"
    assert "window_ms" in verdict.reason


def test_the_parse_stage_is_a_command_without_a_framework(tmp_path):
    artifacts.echo(tmp_path / "m")
    command = [sys.executable, "-X", "importtime", "-m", "inference", "validate", "--stage", "parse", tmp_path / "m"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    verdict = json.loads(done.stdout)
    assert (verdict["format"], verdict["reason"]) == ("echo", "")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "jax", "numpy", "transformers", "onnxruntime"}
