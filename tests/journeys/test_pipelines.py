"""Text to verdict by three real models in one call: normalise (Python) -> MiniLM -> a classifier by torch.export."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import artifacts
from tests.support.house import House, until

NORMALISE = """
import numpy as np


class Normaliser:
    signature = {
        "inputs": [{"name": "raw", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": "clean", "datatype": "BYTES", "shape": [-1]}],
        "max_batch_size": 32,
    }

    def predict(self, inputs):
        texts = [item.decode() if isinstance(item, bytes) else str(item) for item in inputs["raw"].reshape(-1)]
        cleaned = [" ".join(text.lower().split()).encode() for text in texts]
        return {"clean": np.array(cleaned, dtype=object)}


def load(folder):
    return Normaliser()
"""
TEXTS = ["  The   Canary SINGS ", "A dull   grey\tday", "Batching  is FUN", "x"]
PIPELINE = {
    "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
    "outputs": [
        {"name": "scores", "datatype": "FP32", "shape": [-1, 3], "labels": ["a", "b", "c"]},
        {"name": "vector", "datatype": "FP32", "shape": [-1, 384]},
    ],
    "steps": [
        {"name": "classify", "model": "pipe-head", "input_map": {"x": "vector"}, "output_map": {"scores": "scores"}},
        {"name": "normalise", "model": "pipe-clean", "input_map": {"raw": "text"}, "output_map": {"clean": "clean"}},
        {
            "name": "embed",
            "model": "pipe-minilm",
            "input_map": {"text": "clean"},
            "output_map": {"embedding": "vector"},
        },
    ],
}


def head(folder: Path) -> Any:
    """x FP32 [-1, 384] -> scores [-1, 3]"""
    import torch

    torch.manual_seed(5)
    model = torch.nn.Sequential(torch.nn.Linear(384, 3), torch.nn.Softmax(dim=-1)).eval()

    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"scores": self.inner(x)}

    rows = torch.export.Dim("batch", min=1, max=32)
    program = torch.export.export(Named(), (torch.zeros(2, 384),), dynamic_shapes={"x": {0: rows}})
    folder.mkdir(parents=True)
    torch.export.save(program, folder / "model.pt2")
    return lambda x: model(torch.from_numpy(x)).detach().numpy()


def body(texts: list[str]) -> dict[str, Any]:
    return {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": texts}]}


def tensors(answer: Any) -> dict[str, np.ndarray[Any, Any]]:
    assert answer.status_code == 200, answer.text
    return {
        one["name"]: np.array(one["data"], np.float32).reshape(one["shape"])
        for one in answer.json()["outputs"]
        if one["datatype"] == "FP32"
    }


@pytest.mark.timeout(400)
def test_three_models_answer_as_one(house: House, tmp_path: Path) -> None:
    package = tmp_path / "clean"
    package.mkdir()
    (package / "serinus_model.py").write_text(NORMALISE)
    embed = artifacts.minilm(tmp_path / "minilm")
    classify = head(tmp_path / "head")
    definition = tmp_path / "pipeline.json"
    definition.write_text(json.dumps(PIPELINE))

    early = house.upload("reviews", definition)
    assert early["status"] == "rejected"
    assert "step 'normalise': team" in early["reason"]

    waiting = house.upload("pipe-clean", package)
    assert waiting["status"] == "awaiting_approval"
    house.ok("POST", f"/api/models/pipe-clean/versions/{waiting['number']}/approve/", {})
    house.control.wait_version("pipe-clean", waiting["number"], lambda _: None, 120)
    assert house.upload("pipe-minilm", tmp_path / "minilm")["status"] == "ready"
    assert house.upload("pipe-head", tmp_path / "head")["status"] == "ready"

    done = house.cli("upload", "reviews", str(definition), "--json")
    version = json.loads(done.stdout.strip().splitlines()[-1])
    assert (version["status"], version["format"], version["tier"]) == ("ready", "pipeline", "data")
    number = version["number"]
    house.cli("deploy", f"reviews:{number}", "--json", timeout=180)
    house.serves("reviews", body(["hello"]), 60)

    expected = embed({"text": artifacts.texts(*(" ".join(text.lower().split()) for text in TEXTS))})["embedding"]
    found = tensors(house.infer("reviews", body(TEXTS)))
    np.testing.assert_allclose(found["vector"], expected, atol=1e-5)
    np.testing.assert_allclose(found["scores"], classify(np.asarray(expected)), atol=1e-5)

    # the step's own endpoint shares the replica, and gives the same as the step
    house.deploy("pipe-minilm", 1)
    house.serves("pipe-minilm", {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["x"]}]})
    assert len(house.ready_replicas("pipe-minilm")) == 1
    cleaned = [" ".join(text.lower().split()) for text in TEXTS]
    direct = tensors(house.infer("pipe-minilm", body(cleaned)))["embedding"]
    np.testing.assert_allclose(found["vector"], direct, atol=1e-6)

    together_equals_alone(house, found)
    too_many = house.infer("reviews", body(["x"] * 33))
    assert (too_many.status_code, too_many.json()["error"]) == (
        400,
        "inference request batch-size must be <= 32 for 'reviews'",
    )
    keeps_its_steps(house, number)
    a_killed_step_comes_back(house)
    everything_stops(house, number)


def together_equals_alone(house: House, found: dict[str, Any]) -> None:
    """Callers at once, each with one row: steps batch across pipelines' requests, answers stay their own."""
    begin = threading.Barrier(8)

    def ask(place: int) -> Any:
        begin.wait()
        return tensors(house.infer("reviews", body([TEXTS[place % 4]])))["scores"]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    for place, scores in enumerate(answers):
        np.testing.assert_allclose(scores[0], found["scores"][place % 4], atol=1e-5)


def keeps_its_steps(house: House, number: int) -> None:
    refused = house.api("POST", "/api/models/pipe-head/versions/1/archive/", {})
    assert refused.status_code == 409
    assert f"in use by a pipeline (reviews:{number}, step classify)" in refused.text
    refused = house.api("POST", "/api/deployments/", {"model": "reviews", "version": number, "replicas": 1})
    assert "has no replicas of its own" in refused.text


def a_killed_step_comes_back(house: House) -> None:
    import os
    import signal

    (row,) = house.ready_replicas("pipe-head")
    os.kill(row["pid"], signal.SIGKILL)
    house.serves("reviews", body(["hello"]), 60)


def everything_stops(house: House, number: int) -> None:
    """Taking the pipeline away stops what only it needs; the shared step stays until its own endpoint goes too."""
    house.ok("POST", "/api/endpoints/reviews/undeploy/", {"version": number})
    gone = {"pipe-head", "pipe-clean"}
    until("its steps stop", lambda: not gone & {row["model"] for row in house.replicas()}, 60)
    assert len(house.ready_replicas("pipe-minilm")) == 1
    for name in ("reviews", "pipe-minilm"):
        house.ok("DELETE", f"/api/endpoints/{name}/")
    until("all are gone", lambda: "pipe-minilm" not in {row["model"] for row in house.replicas()}, 60)
