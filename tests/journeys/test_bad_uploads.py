"""What hostile, broken and misbehaving uploads come to: a rejection with a cause and a remedy, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.conftest import ECHO_BODY, write_echo
from tests.support import artifacts, goodfiles, hostile
from tests.support.house import House, until

pytestmark = pytest.mark.timeout(150)


def torch_file(folder: Path, marker: Path) -> Path:
    """A whole state dict, as torch.save writes it: honest, and still no servable format."""
    import torch

    torch.save(torch.nn.Linear(2, 2).state_dict(), folder / "weights.pth")
    return folder / "weights.pth"


def truncated_onnx(folder: Path, marker: Path) -> Path:
    artifacts.onnx_matmul(folder)
    (file,) = folder.glob("*.onnx")
    return hostile.truncated(file)


def web_page(folder: Path, marker: Path) -> Path:
    (folder / "model.onnx").write_text("<html><body>404 Not Found</body></html>")
    return folder / "model.onnx"


REFUSED: dict[str, Callable[[Path, Path], Path]] = {
    **hostile.PT2,
    **hostile.PICKLES,
    "zip slip": hostile.zip_slip,
    "zip bomb": hostile.zip_bomb,
    "zip link": hostile.zip_link,
    "tar symlink": hostile.tar_symlink,
    "tar hard link": hostile.tar_hardlink,
    "python callback in StableHLO": hostile.stablehlo_callback,
    "switched-off checks in StableHLO": hostile.stablehlo_unchecked,
    "auto_map": hostile.auto_map,
    "safetensors with a huge header": hostile.safetensors_huge_header,
    "a truncated file": truncated_onnx,
    "a web page": web_page,
    "an honest torch file": torch_file,
}


def uploaded(house: House, name: str, path: Path) -> dict[str, Any]:
    """The version, or what the API refused it with, in the shape of a version."""
    from serinus.control import ControlError

    try:
        return house.upload(name, path)
    except ControlError as error:
        return {"status": "rejected", "reason": str(error), "remedy": error.remedy}


@pytest.mark.parametrize("kind", REFUSED)
def test_it_is_rejected_with_cause_and_remedy(house: House, tmp_path: Path, kind: str) -> None:
    folder, marker = tmp_path / "artifact", tmp_path / "MARKER"
    folder.mkdir()
    made = REFUSED[kind](folder, marker)
    version = uploaded(house, "hostile", made if len(list(folder.iterdir())) == 1 else folder)
    assert version["status"] == "rejected", version
    assert len(version["reason"]) > 10
    assert len(version["remedy"]) > 10, version["reason"]
    assert str(house.data_dir) not in version["reason"] + version["remedy"]
    assert not marker.exists(), "it ran"


MISBEHAVING = {
    "eats memory": ({"at_load": "allocate"}, ("memory",)),
    "aborts": ({"at_load": "abort"}, ("SIGABRT", "crash", "abort", "killed")),
    "exits": ({"at_load": "exit"}, ("exit", "ended", "SystemExit")),
}


@pytest.mark.parametrize("kind", MISBEHAVING)
def test_a_child_that_misbehaves_is_a_rejection_and_not_an_outage(
    house: House, echo: str, tmp_path: Path, kind: str
) -> None:
    plan, words = MISBEHAVING[kind]
    version = house.upload("misbehaving", write_echo(tmp_path / "model", **plan))
    assert version["status"] == "rejected"
    assert any(word.lower() in version["reason"].lower() for word in words), version["reason"]
    assert version["remedy"]
    assert house.infer(echo, ECHO_BODY).status_code == 200


def test_a_model_that_segfaults_is_a_rejection(house: House, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    body = "import ctypes\n\n\ndef load(folder):\n    ctypes.string_at(0)\n"
    (tmp_path / "m" / "serinus_model.py").write_text(body)
    version = approve(house, house.upload("segfault", tmp_path / "m"))
    assert version["status"] == "rejected"
    assert "SIGSEGV" in version["reason"] or "segmentation" in version["reason"].lower(), version["reason"]


def approve(house: House, version: dict[str, Any]) -> dict[str, Any]:
    assert version["status"] == "awaiting_approval"
    house.ok("POST", f"/api/models/{version['model']}/versions/{version['number']}/approve/", {})
    found: dict[str, Any] = house.control.wait_version(version["model"], version["number"], lambda _: None, 60)
    return found


def test_torchscript_that_writes_a_file_is_held_until_a_person_approves_and_then_walled_in(
    house: House, tmp_path: Path
) -> None:
    """Stock operators alone; nothing but the sandbox keeps its forward pass from the file."""
    (tmp_path / "m").mkdir()
    marker = tmp_path / "MARKER"
    written = hostile.torchscript_writer(tmp_path / "m", marker)
    row = {"datatype": "FP32", "shape": [-1, 1]}
    signature = {"inputs": [{"name": "x", **row}], "outputs": [{"name": "y", **row}], "max_batch_size": 4}
    (tmp_path / "m" / "signature.json").write_text(json.dumps(signature))
    waiting = house.upload("writer", tmp_path / "m")
    assert (waiting["tier"], marker.exists()) == ("code", False), "nothing of it runs before"
    version = approve(house, waiting)
    assert version["status"] == "rejected"
    assert version["remedy"]
    assert not marker.exists(), "it reached a file outside of its walls"
    torch_loads(written)
    assert marker.exists(), "outside of the walls it does write"


def torch_loads(file: Path) -> None:
    """What the sandbox is there for, once, outside of it: the attack is real."""
    import torch

    torch.jit.load(str(file))(torch.zeros(1, 1))


PROBE = """
import json, os, socket
import numpy as np

TARGETS = {targets!r}


def attempt(action):
    try:
        action()
    except BaseException as error:
        return type(error).__name__
    return "DONE"


def connect(path):
    socket.socket(socket.AF_UNIX).connect(path)


def tcp(port):
    socket.create_connection(("127.0.0.1", port), 1)


class Model:
    signature = {{
        "inputs": [{{"name": "x", "datatype": "FP32", "shape": [-1, 1]}}],
        "outputs": [{{"name": "found", "datatype": "BYTES", "shape": [-1]}}],
        "max_batch_size": 4,
    }}

    def predict(self, inputs):
        tried = {{path: attempt(lambda: connect(path)) for path in TARGETS["sockets"]}}
        tried |= {{str(port): attempt(lambda: tcp(port)) for port in TARGETS["ports"]}}
        tried |= {{path: attempt(lambda: open(path, "rb").read()) for path in TARGETS["files"]}}
        tried["write"] = attempt(lambda: open(TARGETS["marker"], "w"))
        tried["kill"] = attempt(lambda: os.kill(os.getppid(), 9))
        tried["fork bomb's parent"] = attempt(lambda: open("/proc/%d/environ" % os.getppid(), "rb").read())
        fds = [os.readlink("/proc/self/fd/" + fd) for fd in os.listdir("/proc/self/fd") if os.path.islink("/proc/self/fd/" + fd)]
        answer = json.dumps({{"tried": tried, "environment": dict(os.environ), "fds": fds}}).encode()
        out = np.empty(len(inputs["x"]), dtype=object)
        out[:] = [answer] * len(out)
        return {{"found": out}}


def load(folder):
    return Model()
"""


def test_a_model_reaches_no_socket_no_file_and_no_secret(house: House, echo: str, tmp_path: Path) -> None:
    """It tries the database, the broker, the supervisor, another replica, the console, files and its parent."""
    import urllib.parse

    database = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(house.services["DATABASE_URL"]).query))["host"]
    broker = house.services["REDIS_URL"].rsplit("@", 1)[1]
    replica = next(seen.address for seen in house.seen() if seen.phase == "ready").removeprefix("unix:")
    targets = {
        "sockets": [f"{database}/.s.PGSQL.5432", broker, str(house.runtime_dir / "supervisor.sock"), replica],
        "ports": [house.console_port, house.http_port],
        "files": ["/etc/shadow", str(house.data_dir / "credentials.json"), str(house.data_dir / "secret_key")],
        "marker": str(tmp_path / "MARKER"),
    }
    assert all(Path(path).exists() for path in targets["sockets"])
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "serinus_model.py").write_text(PROBE.format(targets=targets))
    version = approve(house, house.upload("probe", tmp_path / "m"))
    assert version["status"] == "ready", version
    house.deploy("probe", version["number"])
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [0]}]}
    house.serves("probe", body)
    found = json.loads(house.infer("probe", body).json()["outputs"][0]["data"][0])
    assert "DONE" not in found["tried"].values(), found["tried"]
    secrets = [
        house.key,
        *(p.read_text() for p in (house.data_dir / "secret_key", house.data_dir / "postgres/password")),
    ]
    environment = json.dumps(found["environment"])
    assert not any(secret in environment for secret in secrets)
    assert not {"DATABASE_URL", "REDIS_URL", "SERINUS_ADMIN_PASSWORD"} & set(found["environment"])
    assert not [fd for fd in found["fds"] if "credentials" in fd or "postgres" in fd or "valkey" in fd], found["fds"]
    house.scale("probe", version["number"], 0)


def test_a_tokenizer_that_panics_costs_only_its_own_request(house: House, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    hostile.panicking_tokenizer(tmp_path / "m", tmp_path / "MARKER")
    version = house.upload("panics", tmp_path / "m")
    assert version["status"] == "ready", version["reason"]
    house.deploy("panics", version["number"])

    def body(text: str) -> dict[str, Any]:
        return {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}]}

    house.serves("panics", body("a calm text"))
    (row,) = house.ready_replicas("panics")
    answer = house.infer("panics", body(hostile.PANICS))
    assert answer.status_code in {400, 422, 500}, answer.text
    assert "error" in answer.json()
    assert house.infer("panics", body("a calm text")).status_code == 200
    assert house.ready_replicas("panics")[0]["pid"] == row["pid"]
    house.scale("panics", version["number"], 0)


def flip(blob: Path) -> None:
    blob.write_bytes(blob.read_bytes().replace(b"3.0", b"4.0"))


def truncate(blob: Path) -> None:
    blob.write_bytes(blob.read_bytes()[:-1])


def swap(blob: Path) -> None:
    """The content of another, honest model of the same store."""
    blob.write_text(json.dumps({"sleep_ms": 5, "factor": 9.0}))


@pytest.mark.parametrize("change", [flip, truncate, swap])
def test_row_26_a_changed_artifact_is_refused_at_load(
    house: House, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """The store is changed behind Serinus's back: the next process that loads it says so and serves nothing."""
    name = f"changed-{change.__name__}"
    version = house.upload(name, write_echo(tmp_path / "m", factor=3.0, offset=len(name) / 8))
    house.deploy(name, version["number"])
    house.serves(name, ECHO_BODY)
    (blob,) = list((house.data_dir / "artifacts").rglob(version["files"][0]["sha256"]))
    good = blob.read_bytes()
    blob.chmod(0o644)
    change(blob)
    assert blob.read_bytes() != good
    try:
        (row,) = house.ready_replicas(name)
        os.kill(row["pid"], 9)
        until(
            "it says why", lambda: [s for s in house.seen() if s.id == row["id"] and "changed" in s.message.lower()], 20
        )
        assert house.infer(name, ECHO_BODY, **{"X-Request-Timeout-Ms": "1500"}).status_code in {503, 504}
    finally:
        blob.write_bytes(good)
        blob.chmod(0o444)
        house.scale(name, version["number"], 0)


def test_row_23_a_forward_pass_that_hangs_ends_at_the_deadline_and_the_service_is_back(
    house: House, tmp_path: Path
) -> None:
    import time

    plan = {"faults": [{"value": 666.0, "kind": "hang"}]}
    version = house.upload("hanging", write_echo(tmp_path / "m", **plan), hang_timeout_s=3.0)
    house.deploy("hanging", version["number"])
    house.serves("hanging", ECHO_BODY)
    bad = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 4], "data": [666, 0, 0, 0]}]}
    started = time.monotonic()
    answer = house.infer("hanging", bad, **{"X-Request-Timeout-Ms": "2000"})
    assert answer.status_code in {503, 504}, answer.text
    assert time.monotonic() - started < 4
    house.serves("hanging", ECHO_BODY, 30)
    house.scale("hanging", version["number"], 0)


def test_row_23_a_compiled_program_that_one_request_makes_endless_is_killed_and_back(
    house: House, tmp_path: Path
) -> None:
    import time

    version = house.upload("spinning", artifacts.endless_program(tmp_path / "m", at="above 600"), hang_timeout_s=3.0)
    assert version["status"] == "ready", version["reason"]
    house.deploy("spinning", version["number"])

    def body(value: float) -> dict[str, Any]:
        return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [value, 0, 0, 0]}]}

    house.serves("spinning", body(1))
    (before,) = house.ready_replicas("spinning")
    started = time.monotonic()
    answer = house.infer("spinning", body(666), **{"X-Request-Timeout-Ms": "2000"})
    assert answer.status_code in {503, 504}, answer.text
    assert time.monotonic() - started < 4
    house.serves("spinning", body(1), 40)
    after = until("rows show it", lambda: house.ready_replicas("spinning"), 20)[0]
    assert (after["id"], after["pid"] != before["pid"]) == (before["id"], True)
    house.scale("spinning", version["number"], 0)


def test_row_24_a_request_that_eats_all_memory_costs_one_replica_for_a_moment(
    house: House, echo: str, tmp_path: Path
) -> None:
    plan = {"faults": [{"value": 666.0, "kind": "allocate"}]}
    version = house.upload("hungry", write_echo(tmp_path / "m", **plan))
    house.deploy("hungry", version["number"])
    house.serves("hungry", ECHO_BODY)
    bad = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 4], "data": [666, 0, 0, 0]}]}
    answer = house.infer("hungry", bad, **{"X-Request-Timeout-Ms": "20000"})
    assert answer.status_code in {503, 507}, answer.text
    assert house.infer(echo, ECHO_BODY).status_code == 200
    house.serves("hungry", ECHO_BODY, 30)
    house.scale("hungry", version["number"], 0)


def test_an_upload_over_the_limit_cannot_even_begin(house: House, tmp_path: Path) -> None:
    """The full disk itself (row 28) is injected in tests/integration/test_tus.py, on a real small tmpfs."""
    answer = house.api("POST", "/api/uploads/")
    assert answer.status_code in {400, 412}
    before = shutil.disk_usage(house.data_dir).used
    import httpx

    headers = {
        "Authorization": f"Bearer {house.key}",
        "Tus-Resumable": "1.0.0",
        "Upload-Length": str(1 << 50),
        "Upload-Metadata": "filename YQ==",
    }
    refused = httpx.post(house.console_url + "/api/uploads/", headers=headers)
    assert refused.status_code in {413, 507}, refused.text
    assert shutil.disk_usage(house.data_dir).used - before < 50 << 20


def test_good_files_are_not_refused_by_mistake(house: House, tmp_path: Path) -> None:
    assert goodfiles
    artifacts.onnx_matmul(tmp_path / "m")
    assert house.upload("honest", tmp_path / "m")["status"] == "ready"
