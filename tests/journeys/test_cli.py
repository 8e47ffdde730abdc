"""Every command of the command line against the real platform: its JSON, its exit status, its patience."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import artifacts, hostile
from tests.support.house import REPO, House, until

pytestmark = [pytest.mark.timeout(180), pytest.mark.xdist_group("house")]
ROW = [0.5, -1.0, 0.25, 2.0, 0.0, 1.0]


def said(house: House, *words: str) -> Any:
    """What the command printed, as JSON; it must end with status 0."""
    return json.loads(house.cli(*words, "--json").stdout)


def refused(house: House, *words: str) -> dict[str, Any]:
    """The error that the command printed, as JSON; it must end with status 1 and no traceback."""
    done = house.cli(*words, "--json", check=False)
    assert done.returncode == 1, f"{words}: {done.stdout} {done.stderr}"
    assert "Traceback" not in done.stderr
    error: dict[str, Any] = json.loads(done.stdout)["error"]
    assert error["code"]
    assert error["message"]
    return error


def test_a_model_from_upload_to_undeploy(house: House, tmp_path: Path) -> None:
    reference = artifacts.onnx_matmul(tmp_path / "onnx")
    artifacts.torch_export(tmp_path / "torch")
    first = said(house, "upload", "typed", str(tmp_path / "onnx"), "--alias", "champion", "--max-batch-size", "8")
    assert (first["number"], first["status"], first["settings"]["max_batch_size"]) == (1, "ready", 8)
    second = said(house, "upload", "typed", str(tmp_path / "torch" / "model.pt2"))
    assert (second["number"], second["status"]) == (2, "ready")
    assert [row["number"] for row in said(house, "versions", "typed")] == [2, 1]
    assert "typed" in {row["name"] for row in said(house, "models")}
    said(house, "alias", "typed", "next", "2", "--reason", "try it")

    assert said(house, "deploy", "typed@champion")["name"] == "typed"
    variants = said(house, "deploy", "typed@next", "--endpoint", "typed")["variants"]
    assert {v["version"]: v["weight_bp"] for v in variants} == {1: 10_000, 2: 0}
    assert "typed" in {row["name"] for row in said(house, "endpoints")}
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 6], "data": ROW}]}
    house.serves("typed", body)
    answer = said(house, "predict", "typed", "--data", json.dumps(ROW), "--version", "1")
    wanted = reference({"x": np.array([ROW], np.float32)})["y"][0]
    np.testing.assert_allclose(answer["outputs"][0]["data"], wanted, atol=1e-5)

    variants = said(house, "split", "typed", "1=90", "2=10")["variants"]
    assert {v["version"]: v["weight_bp"] for v in variants} == {1: 9000, 2: 1000}
    assert said(house, "scale", "typed:1", "2")["replicas"] == 2
    until("two replicas", lambda: len([r for r in house.ready_replicas("typed") if r["version"] == 1]) == 2, 30)
    said(house, "split", "typed", "1=100", "2=0")
    assert [v["version"] for v in said(house, "undeploy", "typed", "2")["variants"]] == [1]
    house.ok("DELETE", "/api/endpoints/typed/")


def test_keys_hosts_and_doctor(house: House, echo: str) -> None:
    from tests.journeys.conftest import ECHO_BODY

    made = said(house, "keys", "create", "typed", "--endpoint", echo)
    assert made["token"].startswith(f"ser_{made['id']}.")
    until("the gateway knows it", lambda: house.infer(echo, ECHO_BODY, key=made["token"]).status_code == 200, 5)
    listed = {row["id"]: row for row in said(house, "keys", "list")}
    assert listed[made["id"]]["endpoints"] == [echo]
    assert made["token"].split(".")[1] not in json.dumps(listed)
    assert said(house, "keys", "revoke", f"ser_{made['id']}")["revoked_at"]
    until("the gateway refuses it", lambda: house.infer(echo, ECHO_BODY, key=made["token"]).status_code == 401, 2)
    alive = {host["name"]: host["alive"] for host in said(house, "hosts")}
    assert alive["testhost"] is True
    findings = said(house, "doctor")
    assert {finding["state"] for finding in findings} <= {"ok", "note"}
    elsewhere = {name: house.environment.pop(name) for name in ("SERINUS_CONSOLE_PORT", "SERINUS_HTTP_PORT")}
    try:  # in another terminal, where the ports that it was started with are not set
        assert {"name": "platform", "state": "ok", "message": f"answers at {house.console_url}", "remedy": ""} in said(
            house, "doctor"
        )
    finally:
        house.environment |= elsewhere


def test_what_cannot_be_done_is_one_json_error(house: House, echo: str, tmp_path: Path) -> None:
    assert refused(house, "versions", "nothing-here")["code"] == "not_found"
    assert refused(house, "deploy", "nothing-here")["code"] == "not_found"
    assert refused(house, "deploy", f"{echo}:99")["code"] == "not_found"
    assert refused(house, "predict", "nothing-here", "--data", "[1]")["code"] == "not_found"
    assert "no JSON" in refused(house, "predict", echo, "--data", "[1")["message"]
    assert "does not exist" in refused(house, "upload", "x", str(tmp_path / "missing"))["message"]
    assert "100 %" in refused(house, "split", echo, "1=90")["message"]
    assert refused(house, "keys", "revoke", "ser_000000000000")["code"] == "not_found"


def test_a_rejected_upload_tells_why_and_ends_with_1(house: House, tmp_path: Path) -> None:
    file = hostile.raw_pickle(tmp_path, tmp_path / "touched")
    done = house.cli("upload", "poison", str(file), "--json", check=False)
    assert done.returncode == 1
    version = json.loads(done.stdout)
    assert version["status"] == "rejected"
    assert "pickle" in version["reason"]
    assert version["remedy"]


def test_a_wrong_key_and_a_missing_console_are_told(house: House) -> None:
    def ended(**environment: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "serinus", "models", "--json"], env=house.environment | environment, cwd=REPO,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        error: dict[str, Any] = json.loads(done.stdout)["error"]
        return error

    assert ended(SERINUS_API_KEY="ser_000000000000.nonsense")["code"] == "unauthenticated"
    assert "does not answer" in ended(SERINUS_URL="http://127.0.0.1:9")["message"]


def test_the_console_is_killed_during_an_upload(house: House, tmp_path: Path) -> None:
    """60 MB in several files: the command goes on by itself, and every stored file equals the one that was sent."""
    folder = tmp_path / "model"
    artifacts.onnx_matmul(folder)
    noise = np.random.default_rng(9)
    for number in range(6):
        (folder / f"notes-{number}.bin").write_bytes(noise.bytes(10 << 20))
    come: list[int] = []
    killer = threading.Thread(target=kill_once_begun, args=(house, come))
    killer.start()
    version = said(house, "upload", "survivor-cli", str(folder))
    killer.join()
    assert come, "the console was not killed"
    assert come[0] < 60 << 20, "it was killed too late"
    assert version["status"] == "ready"
    held = {file["path"]: file["sha256"] for file in version["files"]}
    assert held == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    for mark in held.values():
        (blob,) = (house.data_dir / "artifacts" / "blobs").rglob(mark)
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == mark


def kill_once_begun(house: House, come: list[int]) -> None:
    """Kills the console as soon as a third of the bytes has come; notes how many have come by then."""
    store, before = house.data_dir / "artifacts", size_of(house.data_dir / "artifacts")
    until("a third has come", lambda: size_of(store) - before > 20 << 20, 60, 0.005)
    house.kill("console")
    come.append(size_of(store) - before)


def size_of(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size
        except OSError:
            continue
    return total
