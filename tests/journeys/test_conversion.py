"""A lone torch pickle through the whole house: refused, converted when asked, and served as what was made of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import artifacts, hostile
from tests.support.house import House

pytestmark = pytest.mark.timeout(180)
WORDS = artifacts.texts("a bird sings", "sad song", "it is a happy day")


def converted(house: House, name: str, out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(house.cli("convert", name, "1", "--out", str(out), "--json").stdout)
    return found


def test_weights_alone_become_a_served_encoder(house: House, tmp_path: Path) -> None:
    """1. Refused, with an offer. 2. The command line converts and fetches. 3. The next version is made of what lies in
    the store, beside config.json and tokenizer.json. 4. It answers as the model does from which the pickle was.
    """
    import torch
    from safetensors.torch import load_file

    folder, lone, out = tmp_path / "bert", tmp_path / "lone", tmp_path / "model.safetensors"
    reference = artifacts.bert_classifier(folder)
    state = load_file(folder / "model.safetensors")
    lone.mkdir()
    torch.save({"epoch": 3, "state_dict": state}, lone / "weights.pth")
    refused = house.upload("bert-lone", lone / "weights.pth")
    assert (refused["status"], refused["format"]) == ("rejected", "torch_pickle")
    assert refused["conversion"] == {"state": "offered"}
    assert "serinus convert" in refused["remedy"]

    done = converted(house, "bert-lone", out)
    assert {tensor["name"]: tensor["shape"] for tensor in done["tensors"]} == {
        name: list(tensor.shape) for name, tensor in state.items()
    }
    assert done["file"]["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    found = load_file(out)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert house.ok("GET", "/api/models/bert-lone/versions/1/")["status"] == "rejected"
    again = house.cli("convert", "bert-lone", "1", "--out", str(out), "--json", check=False)
    assert json.loads(again.stdout)["error"]["code"] == "file_exists"

    rest = [file for file in folder.iterdir() if file.name != "model.safetensors"]
    uploads = [{"path": file.name, "upload": house.control.upload(file, file.name, lambda _: None)} for file in rest]
    files = [*uploads, {"path": "model.safetensors", "sha256": done["file"]["sha256"]}]
    made = house.ok("POST", "/api/models/bert-lone/versions/", {"files": files})
    ready = house.control.wait_version("bert-lone", made["number"], lambda _: None, 120)
    assert ready["status"] == "ready", ready
    house.deploy("bert-lone", ready["number"])
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [3], "data": [word.decode() for word in WORDS]}]}
    house.serves("bert-lone", body)
    answer = house.infer("bert-lone", body).json()
    scores = np.asarray(answer["outputs"][0]["data"]).reshape(answer["outputs"][0]["shape"])
    np.testing.assert_allclose(scores, reference({"text": WORDS})["scores"], atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "is_offered"), [("torch pickle", False), ("legacy torch pickle", True), ("sparse weights", True)]
)
def test_a_hostile_pickle_is_refused_by_the_sandbox(
    house: House, tmp_path: Path, kind: str, *, is_offered: bool
) -> None:
    marker, name = tmp_path / "touched", f"evil-{kind.replace(' ', '-')}"
    (tmp_path / "m").mkdir()
    refused = house.upload(name, hostile.CONVERSIONS[kind](tmp_path / "m", marker))
    assert refused["status"] == "rejected"
    assert refused["conversion"] == ({"state": "offered"} if is_offered else None)
    done = house.cli("convert", name, "1", "--out", str(tmp_path / "out"), "--json", check=False)
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["code"]) == (1, "rejected" if is_offered else "conflict")
    assert bool(error.get("remedy")) == is_offered
    assert not marker.exists()
    assert not (tmp_path / "out").exists()
    if is_offered:
        assert house.ok("GET", f"/api/models/{name}/versions/1/")["conversion"]["state"] == "failed"


def test_the_reports_and_the_store_hold_nothing_of_a_refused_conversion(house: House, tmp_path: Path) -> None:
    before = blobs(house)
    (tmp_path / "m").mkdir()
    file = hostile.endless_weights(tmp_path / "m", tmp_path / "touched")
    assert house.upload("evil-endless", file)["status"] == "rejected"
    house.cli("convert", "evil-endless", "1", "--out", str(tmp_path / "out"), "--json", check=False)
    assert blobs(house) - before == {hashlib.sha256(file.read_bytes()).hexdigest()}


def blobs(house: House) -> set[str]:
    return {path.name for path in (house.data_dir / "artifacts" / "blobs").rglob("*") if path.is_file()}
