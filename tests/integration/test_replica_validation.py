"""Validation for real: forked from a warm standby, hashes, parse stage, sandbox, load, warm-up, verdict in words."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from inference.protocol.child import ChildPaths, StartValidation
from inference.protocol.supervision import FileRef, ValidationSeen, ValidationSpec
from tests.support import artifacts, hostile

STANDBY = """
import json, os, socket, sys, msgspec
import numpy, torch, torch.export, jax, jax.export, onnxruntime, safetensors.torch, tokenizers, transformers
from inference.protocol.child import FromChild, StartValidation, ValidationReport
from inference.protocol.frames import Decoder
from inference.replica.entry import run_validation
for line in sys.stdin:
    message = msgspec.msgpack.decode(bytes.fromhex(line), type=StartValidation)
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        os._exit(run_validation(message, theirs.fileno()))
    theirs.close()
    decoder, seen = Decoder(FromChild, max_body_bytes=0), []
    while data := ours.recv(1 << 16):
        seen += [m.seen for m, _ in decoder.feed(data) if isinstance(m, ValidationReport)]
    ours.close()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(json.dumps([status, msgspec.to_builtins(seen)]), flush=True)
"""
ALL = ["files", "parse", "convert", "load", "signature", "warm-up", "latency"]


class Standby:
    def __init__(self, root: Path) -> None:
        self.root, self.count = root, 0
        fixed = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
        quiet = {"ORT_TELEMETRY_DISABLED": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment = {"PYTHONPATH": str(Path.cwd()), "JAX_PLATFORMS": "cpu", **fixed, **quiet}
        self.log = (root / "log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-c", STANDBY], env=environment, text=True, stderr=self.log,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

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
        self.process.stdin.write(msgspec.msgpack.encode(message).hex() + "\n")
        self.process.stdin.flush()
        self.status, seen = json.loads(self.process.stdout.readline())
        self.work = work
        return [msgspec.convert(one, ValidationSeen) for one in seen]

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.log.close()


def _stored(store: Path, folder: Path, path: Path) -> FileRef:
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    blob = store / "blobs" / digest[:2] / digest
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(data)
    return FileRef(path.relative_to(folder).as_posix(), len(data), digest)


@pytest.fixture(scope="module")
def standby(tmp_path_factory):
    made = Standby(tmp_path_factory.mktemp("standby"))
    yield made
    made.close()


def made_folder(path):
    path.mkdir()
    return path


def checks(seen):
    return {check.name: check for check in seen.checks}


@pytest.mark.parametrize("maker", [artifacts.torch_export, artifacts.jax_export, artifacts.onnx_matmul])
def test_a_good_model_becomes_ready_with_its_signature_and_measurements(standby, tmp_path, maker):
    maker(tmp_path / "m")
    seen = standby.validate(tmp_path / "m")
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


def test_a_hugging_face_folder_with_a_pickle_is_converted_and_served_without_it(standby, tmp_path):
    artifacts.bert_classifier(tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    script = "import sys, torch, safetensors.torch as s; torch.save(s.load_file(sys.argv[1]), sys.argv[2])"  # in its own process: this one must not have torch compute before others fork
    subprocess.run([sys.executable, "-c", script, weights, weights.with_name("pytorch_model.bin")], check=True)
    weights.unlink()
    verdict = standby.validate(tmp_path / "m")[-1]
    assert verdict.state == "ready", verdict
    assert checks(verdict)["convert"].state == "passed"
    (converted,) = verdict.converted
    made = standby.work / "out" / "model.safetensors"
    assert converted == FileRef("model.safetensors", made.stat().st_size, hashlib.sha256(made.read_bytes()).hexdigest())


def elsewhere(code: str, *arguments: Path) -> None:
    """Runs torch in a process of its own: this one must not have it compute before others fork."""
    subprocess.run([sys.executable, "-c", f"import sys, torch; {code}", *arguments], check=True)


SAVE = "torch.save({'epoch': 3, 'state_dict': torch.nn.Linear(3, 2).state_dict()}, sys.argv[1], "
OLD_AND_NEW = {"zip": "_use_new_zipfile_serialization=True)", "legacy": "_use_new_zipfile_serialization=False)"}


@pytest.mark.parametrize("form", sorted(OLD_AND_NEW))
def test_a_lone_torch_pickle_is_refused_and_converted_when_asked(standby, tmp_path, form):
    elsewhere(SAVE + OLD_AND_NEW[form], made_folder(tmp_path / "m") / "weights.pth")
    refused = standby.validate(tmp_path / "m")[-1]
    assert (refused.state, refused.format, refused.converted) == ("rejected", "torch_pickle", [])
    assert "serinus convert" in refused.remedy
    seen = standby.validate(tmp_path / "m", purpose="convert")[-1]
    assert seen.state == "ready", seen
    assert [(check.name, check.state) for check in seen.checks] == [(name, "passed") for name in ALL[:3]]
    assert [(t.name, t.dtype, t.shape) for t in seen.tensors] == [("bias", "F32", [2]), ("weight", "F32", [2, 3])]
    assert seen.tensor_count == 2
    (converted,) = seen.converted
    made = standby.work / "out" / "model.safetensors"
    assert converted == FileRef("model.safetensors", made.stat().st_size, hashlib.sha256(made.read_bytes()).hexdigest())
    same = (
        "from safetensors.torch import load_file as f; a = torch.load(sys.argv[1], weights_only=True)['state_dict']; "
    )
    same += "b = f(sys.argv[2]); assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)"
    elsewhere(same, tmp_path / "m" / "weights.pth", made)


MAKE = "from pathlib import Path; from tests.support import hostile; "
MAKE += "hostile.CONVERSIONS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))"


@pytest.mark.parametrize("kind", sorted(hostile.CONVERSIONS))
def test_a_hostile_pickle_is_not_converted(standby, tmp_path, kind):
    marker = tmp_path / "MARKER"
    elsewhere(MAKE, kind, made_folder(tmp_path / "m"), marker)
    seen = standby.validate(tmp_path / "m", purpose="convert")[-1]
    assert (seen.state, seen.converted, seen.tensors) == ("rejected", [], [])
    assert seen.reason
    assert seen.remedy
    assert not marker.exists()
    assert standby.status == 0


def test_what_is_no_pickle_is_not_converted(standby, tmp_path):
    artifacts.echo(tmp_path / "m")
    seen = standby.validate(tmp_path / "m", purpose="convert")[-1]
    assert (seen.state, seen.converted) == ("rejected", [])
    assert "no torch pickle" in seen.reason


def test_one_changed_bit_is_rejected_before_anything_looks_at_it(standby, tmp_path):
    artifacts.echo(tmp_path / "m")
    verdict = standby.validate(tmp_path / "m", change=True)[-1]
    assert verdict.state == "rejected"
    assert "artifact changed" in verdict.reason
    assert verdict.remedy
    assert checks(verdict)["files"].state == "failed"
    assert checks(verdict)["load"].state == "skipped"


def test_code_that_nobody_approved_is_held_and_nothing_of_it_runs(standby, tmp_path):
    marker = tmp_path / "MARKER"
    hostile.python_package(made_folder(tmp_path / "m"), marker)
    verdict = standby.validate(tmp_path / "m")[-1]
    assert (verdict.state, verdict.tier, verdict.format) == ("rejected", "code", "python")
    assert "approve" in verdict.remedy
    assert not any(check.state == "failed" for check in verdict.checks)
    assert checks(verdict)["load"].state == "skipped"
    assert not marker.exists()


def test_approved_code_runs_behind_the_walls(standby, tmp_path):
    artifacts.python_package(tmp_path / "m")
    assert standby.validate(tmp_path / "m", tier="code")[-1].state == "ready"
    marker = tmp_path / "MARKER"
    hostile.python_package(made_folder(tmp_path / "h"), marker)
    standby.validate(tmp_path / "h", tier="code")
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
def test_hostile_files_are_rejected_with_a_cause_and_a_way_out(standby, tmp_path, maker):
    marker = tmp_path / "MARKER"
    made = maker(made_folder(tmp_path / "m"), marker)
    folder = made if made.is_dir() else made.parent
    verdict = standby.validate(folder)[-1]
    assert verdict.state == "rejected"
    assert verdict.reason
    assert verdict.remedy
    assert not marker.exists()
    assert standby.status == 0


def test_a_model_that_takes_memory_without_end_is_a_rejection(standby, tmp_path):
    artifacts.echo(tmp_path / "m", at_load="allocate")
    verdict = standby.validate(tmp_path / "m")[-1]
    assert verdict.state == "rejected"
    assert "memory" in verdict.reason
    assert checks(verdict)["load"].state == "failed"


def test_a_crash_leaves_the_standby_alive_and_no_verdict(standby, tmp_path):
    artifacts.echo(tmp_path / "m", at_load="abort")
    seen = standby.validate(tmp_path / "m")
    assert standby.status == -6
    assert seen[-1].state == "running"
    artifacts.echo(tmp_path / "good")
    assert standby.validate(tmp_path / "good")[-1].state == "ready"


def test_wrong_settings_are_named(standby, tmp_path):
    artifacts.echo(tmp_path / "m")
    verdict = standby.validate(tmp_path / "m", window_ms=99)[-1]
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
