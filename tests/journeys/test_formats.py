"""Every format from a file on disk to equal answers at every door: REST JSON, REST binary, WebSocket."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.sync.client import connect

from tests.support import artifacts
from tests.support.house import House

pytestmark = pytest.mark.timeout(180)
RNG = np.random.default_rng(5)
NUMBERS = {"x": RNG.standard_normal((3, 6)).astype(np.float32)}
TEXTS = {"text": artifacts.texts("That is a happy person", "That is a very happy person", "Today is a sunny day")}
WORDS = {"text": artifacts.texts("a bird sings", "sad song", "it is a happy day")}


def zipped(folder: Path, reference: artifacts.Reference) -> artifacts.Reference:
    """Leaves one archive where the folder's files were."""
    files = sorted(folder.iterdir())
    assert len(files) > 1
    with zipfile.ZipFile(folder / "model.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, file.name)
            file.unlink()
    return reference


CASES: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "torch-export": (artifacts.torch_export, NUMBERS, "checked"),
    "torch-export-fixed-batch": (lambda f: artifacts.torch_export(f, batch=4), NUMBERS, "checked"),
    "jax-export": (artifacts.jax_export, NUMBERS, "checked"),
    "jax-export-fixed-batch": (lambda f: artifacts.jax_export(f, batch=4), NUMBERS, "checked"),
    "jax-export-weights-beside": (lambda f: artifacts.jax_export(f, weights=True), NUMBERS, "checked"),
    "onnx": (artifacts.onnx_matmul, NUMBERS, "checked"),
    "onnx-weights-beside-zipped": (lambda f: zipped(f, artifacts.onnx_matmul(f, beside="w.bin")), NUMBERS, "checked"),
    "minilm": (artifacts.minilm, TEXTS, "data"),
    "bert-classifier": (artifacts.bert_classifier, WORDS, "data"),
    "torchscript": (artifacts.torchscript, NUMBERS, "code"),
    "python-package": (artifacts.python_package, NUMBERS, "code"),
}


def as_json(inputs: dict[str, Any]) -> dict[str, Any]:
    made = []
    for name, array in inputs.items():
        texts = array.dtype == object
        data = [text.decode() for text in array] if texts else array.ravel().tolist()
        made.append({"name": name, "datatype": "BYTES" if texts else "FP32", "shape": list(array.shape), "data": data})
    return {"inputs": made}


def as_binary(inputs: dict[str, Any], **more: Any) -> tuple[bytes, bytes]:
    """(JSON header, tensors) of the binary extension."""
    head, body = [], b""
    for name, array in inputs.items():
        if array.dtype == object:
            raw, datatype = b"".join(struct.pack("<I", len(text)) + text for text in array), "BYTES"
        else:
            raw, datatype = array.tobytes(), "FP32"
        parameters = {"binary_data_size": len(raw)}
        head.append({"name": name, "datatype": datatype, "shape": list(array.shape), "parameters": parameters})
        body += raw
    return json.dumps({"inputs": head, "parameters": {"binary_data_output": True}, **more}).encode(), body


def from_json(answer: dict[str, Any]) -> dict[str, Any]:
    return {o["name"]: np.array(o["data"], np.float32).reshape(o["shape"]) for o in answer["outputs"]}


def from_binary(head: bytes, body: bytes) -> dict[str, Any]:
    found, at = {}, 0
    for output in json.loads(head)["outputs"]:
        size = output["parameters"]["binary_data_size"]
        assert output["datatype"] == "FP32"
        found[output["name"]] = np.frombuffer(body[at : at + size], np.float32).reshape(output["shape"])
        at += size
    assert at == len(body)
    return found


def by_rest_json(house: House, endpoint: str, inputs: dict[str, Any]) -> dict[str, Any]:
    answer = house.infer(endpoint, as_json(inputs))
    assert answer.status_code == 200, answer.text
    return from_json(answer.json())


def by_rest_binary(house: House, endpoint: str, inputs: dict[str, Any]) -> dict[str, Any]:
    head, body = as_binary(inputs)
    headers = {
        "Authorization": f"Bearer {house.key}",
        "Inference-Header-Content-Length": str(len(head)),
        "Content-Type": "application/octet-stream",
    }
    answer = httpx.post(
        f"{house.gateway_url}/v2/models/{endpoint}/infer", content=head + body, headers=headers, timeout=60
    )
    assert answer.status_code == 200, answer.text
    cut = int(answer.headers["Inference-Header-Content-Length"])
    return from_binary(answer.content[:cut], answer.content[cut:])


def by_websocket(house: House, endpoint: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """A text frame and a binary frame in flight at once; both must give the same."""
    url = f"{house.gateway_url.replace('http', 'ws')}/v2/models/{endpoint}/stream"
    with connect(url, subprotocols=["serinus.v1", f"serinus.key.{house.key}"], max_size=None) as socket:
        socket.send(json.dumps({"id": "text", **as_json(inputs)}))
        head, body = as_binary(inputs, id="binary")
        socket.send(struct.pack("<I", len(head)) + head + body)
        answers = {}
        for _ in range(2):
            frame = socket.recv(timeout=60)
            if isinstance(frame, str):
                value = json.loads(frame)
                assert "error" not in value, value
                answers[value["id"]] = from_json(value)
            else:
                (size,) = struct.unpack_from("<I", frame)
                answers[json.loads(frame[4 : 4 + size])["id"]] = from_binary(frame[4 : 4 + size], frame[4 + size :])
    assert set(answers) == {"text", "binary"}
    for name, value in answers["text"].items():
        np.testing.assert_allclose(value, answers["binary"][name], atol=1e-6)
    return answers["binary"]


DOORS = (by_rest_json, by_rest_binary, by_websocket)


@pytest.mark.parametrize("case", CASES)
def test_an_uploaded_model_answers_like_its_framework(house: House, tmp_path: Path, case: str) -> None:
    make, inputs, tier = CASES[case]
    wanted = make(tmp_path / "model")(inputs)
    version = house.upload(case, tmp_path / "model")
    if tier == "code":
        assert version["status"] == "awaiting_approval", "nothing of it may run before a person approves"
        version = approved(house, case, version["number"])
    assert (version["status"], version["tier"]) == ("ready", tier)
    assert {check["state"] for check in version["report"]["checks"]} <= {"passed", "skipped"}
    house.deploy(case, version["number"])
    house.serves(case, as_json(inputs))
    for door in DOORS:
        got = door(house, case, inputs)
        for name, value in wanted.items():
            if case == "minilm":
                assert (got[name] * value).sum(axis=1).min() >= 0.9999, door.__name__
            np.testing.assert_allclose(got[name], value, atol=1e-5, err_msg=f"{case} {door.__name__} {name}")
    house.scale(case, version["number"], 0)


def approved(house: House, name: str, number: int) -> dict[str, Any]:
    house.ok("POST", f"/api/models/{name}/versions/{number}/approve/", {})
    found: dict[str, Any] = house.control.wait_version(name, number, lambda _: None, 120)
    return found


def test_equal_bytes_are_stored_once(house: House, tmp_path: Path) -> None:
    artifacts.onnx_matmul(tmp_path / "m")
    blobs = house.data_dir / "artifacts" / "blobs"
    house.upload("twice", tmp_path / "m")
    before = sorted(p.name for p in blobs.rglob("*") if p.is_file())
    second = house.upload("twice", tmp_path / "m", window_ms=3.0)
    assert second["number"] == 2
    assert sorted(p.name for p in blobs.rglob("*") if p.is_file()) == before
