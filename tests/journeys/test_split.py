"""Traffic between a torch and a JAX version of one model, moved by hand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.support import artifacts
from tests.support.house import House, until

pytestmark = pytest.mark.timeout(240)
TRIES = 250


@pytest.fixture(scope="module")
def digits(house: House, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("digits")
    accuracies = artifacts.digits(folder)
    assert min(accuracies.values()) > 0.9
    for number, framework in ((1, "torch"), (2, "jax")):
        version = house.upload("digits", folder / framework)
        assert (version["number"], version["status"]) == (number, "ready")
        house.deploy("digits", number)
    house.split("digits", v1=9000, v2=1000)
    return "digits"


def digit() -> dict:
    from sklearn.datasets import load_digits

    image = (load_digits().data[7] / 16).astype(np.float32)
    return {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 64], "data": image.tolist()}]}


def count(house: House, endpoint: str, salt: str = "") -> Counter[str]:
    """Versions that answered TRIES different sessions, and the body's own word for it."""
    seen: Counter[str] = Counter()
    with httpx.Client(timeout=30, headers={"Authorization": f"Bearer {house.key}"}) as client:
        for number in range(TRIES):
            url = f"{house.gateway_url}/v2/models/{endpoint}/infer"
            answer = client.post(url, json=digit(), headers={"X-Session-Id": f"{salt}{number}"})
            assert answer.status_code == 200, answer.text
            assert answer.json()["model_version"] == answer.headers["X-Model-Version"]
            assert int(np.argmax(answer.json()["outputs"][0]["data"])) == 7
            seen[answer.headers["X-Model-Version"]] += 1
    return seen


def test_the_split_is_kept_and_moved(house: House, digits: str) -> None:
    house.split(digits, v1=9000, v2=1000)
    until("gateways see the split", lambda: 0 < count(house, digits)["2"] < TRIES * 0.25, 20, 0.5)
    seen = count(house, digits)
    assert 0.04 < seen["2"] / TRIES < 0.18, seen
    house.split(digits, v1=5000, v2=5000)
    until("gateways see the new split", lambda: count(house, digits)["2"] > TRIES * 0.35, 20, 0.2)
    seen = count(house, digits)
    assert 0.4 < seen["2"] / TRIES < 0.6, seen


def test_a_session_stays_with_its_version_when_the_other_grows(house: House, digits: str) -> None:
    def versions() -> list[str]:
        return [
            house.infer(digits, digit(), **{"X-Session-Id": f"sticky{n}"}).headers["X-Model-Version"] for n in range(40)
        ]

    house.split(digits, v1=8000, v2=2000)
    until("it settles", lambda: count(house, digits, "settle")["2"] < TRIES * 0.3, 20, 0.2)
    before = versions()
    assert before == versions()
    house.split(digits, v1=4000, v2=6000)
    until("it moved", lambda: count(house, digits, "settle")["2"] > TRIES * 0.45, 20, 0.2)
    after = versions()
    assert all(new == "2" for old, new in zip(before, after, strict=True) if old == "2")


def test_a_pinned_version_answers_and_an_unknown_one_is_404(house: House, digits: str) -> None:
    headers = {"Authorization": f"Bearer {house.key}"}
    for number in (1, 2):
        answer = httpx.post(
            f"{house.gateway_url}/v2/models/{digits}/versions/{number}/infer", json=digit(), headers=headers
        )
        assert answer.json()["model_version"] == str(number)
    unknown = httpx.post(f"{house.gateway_url}/v2/models/{digits}/versions/9/infer", json=digit(), headers=headers)
    assert unknown.status_code == 404
    assert "error" in unknown.json()


def test_a_split_that_is_no_whole_is_refused_everywhere(house: House, digits: str) -> None:
    done = house.cli("split", digits, "1=90", "2=20", "--json", check=False)
    assert done.returncode == 1
    assert "100" in json.loads(done.stdout)["error"]["message"]
    answer = house.api("PUT", f"/api/endpoints/{digits}/weights/", {"weights": {"1": 9000, "2": 2000}})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_input"


def test_the_unchanged_triton_client_predicts(house: House, digits: str, tmp_path: Path) -> None:
    import tritonclient.http as triton

    client = triton.InferenceServerClient(house.gateway_url.removeprefix("http://"))
    assert client.is_server_live()
    headers = {"Authorization": f"Bearer {house.key}"}
    image = np.array(digit()["inputs"][0]["data"], np.float32).reshape(1, 64)
    tensor = triton.InferInput("image", [1, 64], "FP32")
    tensor.set_data_from_numpy(image)
    answer = client.infer(digits, [tensor], headers=headers)
    assert int(answer.as_numpy("logits").argmax()) == 7
    client.close()
