"""A Triton model repository moves in, in one step, and its own client goes on as before."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from inference.streaming import SyncStream
from tests.support import triton
from tests.support.exposition import scraped
from tests.support.house import House, running_house, until

pytestmark = pytest.mark.timeout(500)
CALLS_CONFIG = """
backend: "python"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ]
"""
CALLS = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request.inputs()) for request in requests]

    def answer(self, inputs):
        for name in ("scaled", "tripled"):
            asked = pb_utils.InferenceRequest(model_name=name, requested_output_names=["y"], inputs=inputs)
            found = asked.exec()
            if found.has_error():
                raise pb_utils.TritonModelException(found.error().message())
            inputs = [pb_utils.Tensor("x", pb_utils.get_output_tensor_by_name(found, "y").as_numpy())]
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", inputs[0].as_numpy())])
"""


def fill(root: Path) -> Path:
    """An ONNX model with dynamic batching, a TorchScript model, a Python model, a decoupled one, and a bad one."""
    triton.put(root, "scaled", triton.ONNX_CONFIG, {"1/model.onnx": triton.onnx_bytes(2.0)})
    triton.torchscript(triton.put(root, "addsub_torch", triton.TORCH_CONFIG, {}) / "1" / "model.pt")
    triton.put(root, "addsub_python", triton.ADD_SUB_CONFIG, {"1/model.py": triton.ADD_SUB})
    triton.put(root, "count", triton.COUNT_CONFIG, {"1/model.py": triton.COUNT})
    triton.put(root, "tripled", triton.ONNX_CONFIG, {"1/model.onnx": triton.onnx_bytes(3.0)})
    triton.put(root, "chain", triton.ENSEMBLE_CONFIG, {})
    (root / "chain" / "1").mkdir()
    triton.put(root, "nested", triton.NESTED_CONFIG, {})
    folder = triton.put(root, "outside", triton.ONNX_CONFIG, {"1/model.onnx/notes.txt": "as Triton has it"})
    triton.onnx_outside(folder / "1" / "model.onnx" / "model.onnx", "weights.data", 7.0)
    triton.put(root, "calls", CALLS_CONFIG, {"1/model.py": CALLS})
    triton.put(root, "bare", None, {"1/model.onnx": triton.onnx_bytes(5.0)})
    triton.put(root, "limited", triton.ONNX_CONFIG + "instance_group [ { rate_limiter { priority: 2 } } ]",
               {"1/model.onnx": triton.onnx_bytes(2.0)})  # fmt: skip
    return root


@pytest.fixture(scope="module")
def imported(house: House, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    root = fill(tmp_path_factory.mktemp("repository"))
    done = house.cli("import-triton", str(root), "--approve", "--json", check=False, timeout=400)
    assert done.returncode == 1, done.stderr  # one model is refused
    rows = {row["model"]: row for row in json.loads(done.stdout)["versions"]}
    yield rows
    for name, row in rows.items():
        if row["state"] == "ready" and name not in {"chain", "nested"}:  # which have no replicas of their own
            house.scale(name, 1, 0)


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def client(house: House) -> triton_http.InferenceServerClient:
    return triton_http.InferenceServerClient(house.gateway_url.removeprefix("http://"))


def infer(house: House, name: str, version: str = "", **arrays: np.ndarray[Any, Any]) -> Any:
    given = []
    for key, array in arrays.items():
        one = triton_http.InferInput(key, list(array.shape), "INT32" if array.dtype == np.int32 else "FP32")
        one.set_data_from_numpy(array)
        given.append(one)
    headers = {"Authorization": f"Bearer {house.key}"}
    with client(house) as caller:
        return caller.infer(name, given, model_version=version, headers=headers)


def test_every_model_is_told_about(imported: dict[str, Any]) -> None:
    states = {name: row["state"] for name, row in imported.items()}
    served = dict.fromkeys(
        ("scaled", "tripled", "chain", "nested", "outside", "calls", "addsub_torch", "addsub_python", "count", "bare"),
        "ready",
    )
    assert states == served | {"limited": "refused"}
    assert "field 'instance_group.rate_limiter' of config.pbtxt is not supported" in imported["limited"]["message"]
    assert all(row["version"] == 1 for name, row in imported.items() if name != "limited")


def test_settings_came_over(house: House, imported: dict[str, Any]) -> None:
    version = house.ok("GET", "/api/models/scaled/versions/1/")
    assert version["tier"] == "checked"
    assert version["settings"]["preferred_batch_sizes"] == [4, 8]
    assert version["settings"]["max_queue_delay_us"] == 500
    assert version["signature"]["max_batch_size"] == 8
    assert house.ok("GET", "/api/models/addsub_python/versions/1/")["tier"] == "code"
    assert house.ok("GET", "/api/models/addsub_torch/versions/1/")["tier"] == "code"
    assert house.ok("GET", "/api/models/count/versions/1/")["settings"]["decoupled"] is True


def test_tritons_own_client_predicts(house: House, imported: dict[str, Any]) -> None:
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    assert infer(house, "scaled", x=x).as_numpy("y").tolist() == (2 * x).tolist()
    assert infer(house, "scaled", "1", x=x).as_numpy("y").tolist() == (2 * x).tolist()
    assert infer(house, "outside", x=x).as_numpy("y").tolist() == (7 * x).tolist()
    assert infer(house, "bare", x=x).as_numpy("y").tolist() == (5 * x).tolist()
    a, b = np.array([[1, 2, 3]], np.float32), np.array([[10, 20, 30]], np.float32)
    answer = infer(house, "addsub_torch", INPUT__0=a, INPUT__1=b)
    assert answer.as_numpy("OUTPUT__0").tolist() == (a + b).tolist()
    assert answer.as_numpy("OUTPUT__1").tolist() == (a - b).tolist()
    ones = np.ones(4, np.float32)
    answer = infer(house, "addsub_python", INPUT0=ones, INPUT1=2 * ones)
    assert answer.as_numpy("OUTPUT0").tolist() == [6.0] * 4
    with pytest.raises(InferenceServerException, match="INPUT0 must not be negative"):
        infer(house, "addsub_python", INPUT0=-ones, INPUT1=ones)


def test_an_ensemble_answers_as_its_steps_one_after_the_other(house: House, imported: dict[str, Any]) -> None:
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    assert infer(house, "chain", first=x).as_numpy("last").tolist() == (6 * x).tolist()
    with client(house) as caller:
        config = caller.get_model_config("chain", headers={"Authorization": f"Bearer {house.key}"})
    assert [step["model_name"] for step in config["ensemble_scheduling"]["step"]] == ["scaled", "tripled"]


def test_an_ensemble_of_an_ensemble_answers_and_each_plain_step_is_counted_once(
    house: House, imported: dict[str, Any]
) -> None:
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    before = counted(house)
    assert infer(house, "nested", start=x).as_numpy("end").tolist() == (12 * x).tolist()
    until("the steps are counted", lambda: counted(house) != before)
    found = counted(house)
    names = {f"nested{step}" for step in ("", "/chain.scaled", "/chain.tripled", "/scaled")}
    assert {name for name in found if found[name] != before.get(name, 0)} == names
    assert {found[name] - before.get(name, 0) for name in names} == {1}


def counted(house: House) -> dict[str, float]:
    """Requests by what they are counted as."""
    page = httpx.get(f"{house.gateway_url}/metrics", headers={"Authorization": f"Bearer {house.key}"}).text
    rows = [
        (dict(labels), number) for (name, labels), number in scraped(page).items() if name == "serinus_requests_total"
    ]
    return {labels["endpoint"]: number for labels, number in rows}


def test_a_python_model_calls_two_others_and_they_count_it(house: House, imported: dict[str, Any]) -> None:
    before = asked_of(house, "scaled")
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    assert infer(house, "calls", x=x).as_numpy("y").tolist() == (6 * x).tolist()
    assert asked_of(house, "scaled") == before + 1


def asked_of(house: House, name: str) -> int:
    with client(house) as caller:
        told = caller.get_inference_statistics(name, headers={"Authorization": f"Bearer {house.key}"})
    return int(told["model_stats"][0]["inference_stats"]["success"]["count"])


def test_a_decoupled_model_streams_over_grpc_and_counts_over_websocket_too(
    house: House, imported: dict[str, Any]
) -> None:
    found: list[Any] = []
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{house.grpc_port}") as caller:
        caller.start_stream(
            lambda result, error: found.append(error or result), headers={"authorization": f"Bearer {house.key}"}
        )
        count = triton_grpc.InferInput("N", [1], "INT32")
        count.set_data_from_numpy(np.array([5], np.int32))
        caller.async_stream_infer("count", [count], enable_empty_final_response=True)
        until("five answers and the end have come", lambda: len(found) >= 6, 30)
        caller.stop_stream()
    assert [int(one.as_numpy("I")[0]) for one in found[:5]] == [0, 1, 2, 3, 4]
    assert found[5].get_response().parameters["triton_final_response"].bool_param
    with client(house) as caller:
        told = caller.get_inference_statistics("count", headers={"Authorization": f"Bearer {house.key}"})
    places = told["model_stats"][0]["response_stats"]
    asked = places["0"]["success"]["count"]
    assert [places[str(place)]["success"]["count"] for place in range(5)] == [asked] * 5
    assert places["5"]["empty_response"]["count"] == asked > 0
    with SyncStream(f"ws://127.0.0.1:{house.http_port}", house.key) as stream:
        answers = [answer for answer in stream.stream("count", {"N": np.array([3], np.int32)}) if answer.outputs]
    assert [list(answer["I"].values) for answer in answers] == [[0], [1], [2]]


def test_the_gateway_passes_repository_calls_on(house: House, imported: dict[str, Any]) -> None:
    headers = {"Authorization": f"Bearer {house.key}"}
    with client(house) as caller:
        index = {row["name"]: row["state"] for row in caller.get_model_repository_index(headers=headers)}
        assert index["scaled"] == "READY"
        caller.unload_model("addsub_python", headers=headers)
        until("it is unloaded", lambda: not caller.is_model_ready("addsub_python", headers=headers), 60)
        caller.load_model("addsub_python", headers=headers)
        until("it is ready", lambda: caller.is_model_ready("addsub_python", headers=headers), 60)
        with pytest.raises(InferenceServerException, match="nope"):
            caller.load_model("nope", headers=headers)


def test_importing_again_changes_nothing(house: House, imported: dict[str, Any], tmp_path: Path) -> None:
    root = fill(tmp_path)
    before = len(house.ok("GET", "/api/models/scaled/versions/")["results"])
    done = house.cli("import-triton", str(root), "--model", "scaled", "--model", "bare", "--json", timeout=200)
    rows = json.loads(done.stdout)["versions"]
    assert {(row["model"], row["version"], row["state"]) for row in rows} == {
        ("scaled", 1, "ready"),
        ("bare", 1, "ready"),
    }
    assert len(house.ok("GET", "/api/models/scaled/versions/")["results"]) == before


def test_load_and_unload_by_the_repository_calls(house: House, imported: dict[str, Any]) -> None:
    def repository(path: str, body: Any = None) -> Any:
        return house.api("POST", f"/v2/repository/{path}", body or {})

    def state() -> str:
        return next(row["state"] for row in repository("index").json() if row["name"] == "bare")

    assert state() == "READY"
    assert repository("models/bare/unload", {"parameters": {"unload_dependents": False}}).status_code == 200
    until("bare is unloaded", lambda: state() == "UNAVAILABLE", 60)
    answer = repository("models/bare/load")
    assert (answer.status_code, answer.text) == (200, ""), answer.text
    assert state() == "READY"
    x = np.ones((1, 4), np.float32)
    end = time.monotonic() + 30
    while True:
        try:
            found = infer(house, "bare", x=x)
            break
        except Exception:
            assert time.monotonic() < end
            time.sleep(0.2)
    assert found.as_numpy("y").tolist() == [[5.0] * 4]


def test_a_polled_folder_is_followed(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    triton.put(root, "scaled", triton.ONNX_CONFIG, {"1/model.onnx": triton.onnx_bytes(2.0)})
    options = ("--model-repository", str(root), "--model-control-mode", "poll")
    x = np.ones((1, 4), np.float32)

    def gives(factor: float, name: str = "scaled") -> bool:
        try:
            return bool(infer(house, name, x=x).as_numpy("y").tolist() == [[factor] * 4])
        except Exception:
            return False

    with running_house(made(tmp_path / "house"), *options, SERINUS_REPOSITORY_POLL_S="1") as house:
        until("version 1 serves", lambda: gives(2.0), 90)
        triton.put(root, "scaled", None, {"2/model.onnx": triton.onnx_bytes(3.0)})
        triton.put(root, "added", triton.ONNX_CONFIG, {"1/model.onnx": triton.onnx_bytes(4.0)})
        # Loaded first and then switched to: there is no moment without an answer.
        until("version 2 serves", lambda: infer(house, "scaled", x=x).as_numpy("y").tolist() == [[3.0] * 4], 90)
        until("the model that was added serves", lambda: gives(4.0, "added"), 60)
        triton.put(root, "added", None, {"1/model.onnx": triton.onnx_bytes(5.0)})
        triton.put(root, "scaled", None, {"3/model.onnx": b"this is no graph"})
        rejected = "/api/models/scaled/versions/?status=rejected"
        until("version 3 is rejected", lambda: house.ok("GET", rejected)["results"], 60)
        until("what was changed in its place serves", lambda: gives(5.0, "added"), 60)
        assert gives(3.0), "what cannot be loaded takes nothing away"
        assert house.api("POST", "/v2/repository/models/scaled/unload", {}).status_code == 503
        shutil.rmtree(root / "scaled")
        until("the endpoint is gone", lambda: house.api("GET", "/api/endpoints/scaled/").status_code == 404, 60)


def test_a_folder_that_nothing_controls_is_served_as_it_was_at_the_start(tmp_path: Path) -> None:
    """Mode none: the index lists what is served, load and unload are refused as Triton refuses them, nobody polls."""
    root = tmp_path / "repository"
    triton.put(root, "scaled", triton.ONNX_CONFIG, {"1/model.onnx": triton.onnx_bytes(2.0)})
    options = ("--model-repository", str(root), "--model-control-mode", "none")
    x = np.ones((1, 4), np.float32)
    with running_house(made(tmp_path / "house"), *options, SERINUS_REPOSITORY_POLL_S="1") as house:

        def index() -> dict[str, tuple[str, str]]:
            rows = house.api("POST", "/v2/repository/index", {}).json()
            return {row["name"]: (row["version"], row["state"]) for row in rows}

        until("scaled serves", lambda: index() == {"scaled": ("1", "READY")}, 90)
        triton.put(root, "scaled", None, {"2/model.onnx": triton.onnx_bytes(3.0)})
        triton.put(root, "added", triton.ONNX_CONFIG, {"1/model.onnx": triton.onnx_bytes(4.0)})
        changed_at = time.monotonic()
        headers = {"Authorization": f"Bearer {house.key}"}
        low = {name.lower(): value for name, value in headers.items()}
        refused = "explicit model load / unload is not allowed if polling is enabled"
        with client(house) as by_rest, triton_grpc.InferenceServerClient(f"127.0.0.1:{house.grpc_port}") as by_grpc:
            for caller, given in ((by_rest, headers), (by_grpc, low)):
                for act in (caller.load_model, caller.unload_model):
                    for name in ("scaled", "added"):
                        with pytest.raises(InferenceServerException, match=refused):
                            act(name, headers=dict(given))
        answer = house.api("POST", "/v2/repository/models/scaled/unload", {})
        assert (answer.status_code, answer.json()) == (503, {"error": refused})
        time.sleep(max(0.0, changed_at + 8 - time.monotonic()))  # eight looks of a poller
        assert index() == {"scaled": ("1", "READY")}
        assert infer(house, "scaled", x=x).as_numpy("y").tolist() == [[2.0] * 4]


def load_with_another_config(house: House, caller: triton_http.InferenceServerClient) -> None:
    """A load's own config holds for the loads after it, and until the unload."""
    headers = {"Authorization": f"Bearer {house.key}"}

    def largest_batch() -> int:
        until("second serves", lambda: caller.is_model_ready("second", headers=headers), 60)
        return int(caller.get_model_config("second", headers=headers)["max_batch_size"])

    tensor = {"data_type": "TYPE_FP32", "dims": [4]}
    config = {"backend": "onnxruntime", "max_batch_size": "16", "input": [tensor | {"name": "x"}],
              "output": [tensor | {"name": "y"}]}  # fmt: skip
    with pytest.raises(InferenceServerException, match="failed to load 'second', 'config' is no JSON of a ModelConfig"):
        caller.load_model("second", config='{"nope": 1}', headers=dict(headers))
    with pytest.raises(InferenceServerException, match=r"parameter 'file:1/model\.onnx' is not"):
        caller.load_model("second", config=json.dumps(config), files={"file:1/model.onnx": b"x"}, headers=dict(headers))
    caller.load_model("second", config=json.dumps(config), headers=dict(headers))
    assert largest_batch() == 16
    x = np.ones((16, 4), np.float32)
    assert infer(house, "second", x=x).as_numpy("y").tolist() == (2 * x).tolist()
    caller.load_model("second", headers=dict(headers))
    assert largest_batch() == 16
    caller.unload_model("second", headers=dict(headers))
    caller.load_model("second", headers=dict(headers))
    until("the folder's own is back", lambda: largest_batch() == 8, 60)


def test_an_explicit_folder_serves_what_is_asked_for(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    for name in ("first", "second"):
        triton.put(root, name, triton.ONNX_CONFIG, {"1/model.onnx": triton.onnx_bytes(2.0)})
    bad = "{name}".join(triton.ONNX_CONFIG.split("{name}")) + 'metric_tags { key: "a" value: "b" }'
    triton.put(root, "bad", bad, {"1/model.onnx": triton.onnx_bytes(2.0)})
    options = ("--model-repository", str(root), "--model-control-mode", "explicit", "--load-model", "first")
    with running_house(made(tmp_path / "house"), *options) as house:

        def index() -> dict[str, str]:
            return {row["name"]: row["state"] for row in house.api("POST", "/v2/repository/index", {}).json()}

        expected = {"first": "READY", "second": "UNAVAILABLE", "bad": "UNAVAILABLE"}
        until("first serves", lambda: index() == expected, 90)
        with client(house) as caller:
            load_with_another_config(house, caller)
        assert index()["second"] == "READY"
        answer = house.api("POST", "/v2/repository/models/bad/load", {})
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("failed to load 'bad', field 'metric_tags' of config.pbtxt")
        assert house.api("POST", "/v2/repository/models/nobody/load", {}).status_code == 404
