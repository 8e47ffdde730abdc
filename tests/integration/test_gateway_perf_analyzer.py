"""The calls of perf_analyzer, in its order, against a real gateway and a real replica; what it computes from the statistics
must come out exact, or it stops with "Server side statistics compute counts must be the same".
"""

from __future__ import annotations

import http.client
import json
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from tests.support.large_tensors import Place, placed, values

KEY = {"authorization": "Bearer ser_all.s2"}
BATCH, COLUMNS, CONCURRENCY, WINDOWS = 2, 4, 4, 2
COMPUTE = ("compute_input", "compute_infer", "compute_output")


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="perf-") as folder, placed(Path(folder)) as found:
        yield found


class OverHttp:
    """One connection a thread, as its `-i http` has."""

    def __init__(self, place: Place) -> None:
        self.port = place.gateway.port

    def get(self, path: str) -> Any:
        peer = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        peer.request("GET", path, headers=KEY)
        answer = peer.getresponse()
        body = answer.read()
        peer.close()
        assert answer.status == 200, body
        return json.loads(body)

    def begin(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """1. metadata, 2. configuration, 3. the server, which must have statistics."""
        metadata, config = self.get("/v2/models/echo"), self.get("/v2/models/echo/config")
        assert "statistics" in self.get("/v2")["extensions"]
        return metadata, config

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/v2/models/echo/stats")["model_stats"][0]
        return found

    def infer(self, times: int) -> float:
        """Sends so many requests one after the other; the seconds that they took."""
        given = [values(BATCH * COLUMNS * 4, seed).reshape(BATCH, COLUMNS) for seed in (1, 2)]
        head = json.dumps({
            "id": "",
            "inputs": [
                {"name": name, "shape": [BATCH, COLUMNS], "datatype": "FP32", "parameters": {"binary_data_size": one.nbytes}}
                for name, one in zip("ab", given, strict=True)
            ],
            "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in "cd"],
        }).encode()  # fmt: skip
        body = head + b"".join(one.tobytes() for one in given)
        headers = {**KEY, "Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
        peer = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        began = time.perf_counter()
        for _ in range(times):
            peer.request("POST", "/v2/models/echo/infer", body, headers)
            answer = peer.getresponse()
            found = answer.read()
            assert answer.status == 200, found
            split = int(answer.headers["inference-header-content-length"])
            assert "id" not in json.loads(found[:split])
            assert np.array_equal(np.frombuffer(found[split:], "<f4"), np.concatenate([g.ravel() for g in given]) * 2)
        took = time.perf_counter() - began
        peer.close()
        return took


class OverGrpc:
    """The same over `-i grpc`; ints of the answers are texts there, as protobuf's JSON has them."""

    def __init__(self, place: Place) -> None:
        self.client = triton.InferenceServerClient(place.gateway.grpc_address)

    def begin(self) -> tuple[dict[str, Any], dict[str, Any]]:
        asked = {"headers": KEY, "as_json": True}
        metadata = self.client.get_model_metadata("echo", **asked)
        config = self.client.get_model_config("echo", **asked)["config"]
        assert "statistics" in self.client.get_server_metadata(**asked)["extensions"]
        return metadata, config

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get_inference_statistics("echo", headers=KEY, as_json=True)["model_stats"][
            0
        ]
        return found

    def infer(self, times: int) -> float:
        inputs = [triton.InferInput(name, [BATCH, COLUMNS], "FP32") for name in "ab"]
        for seed, one in enumerate(inputs):
            one.set_data_from_numpy(values(BATCH * COLUMNS * 4, seed).reshape(BATCH, COLUMNS))
        outputs = [triton.InferRequestedOutput(name) for name in "cd"]
        began = time.perf_counter()
        for _ in range(times):
            found = self.client.infer("echo", inputs, outputs=outputs, headers=KEY)
            assert found.as_numpy("d").shape == (BATCH, COLUMNS)
        return time.perf_counter() - began


def numbers(found: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """(count, ns) of each part of the inference statistics."""
    parts = found["inference_stats"]
    return {name: (int(one.get("count", 0)), int(one.get("ns", 0))) for name, one in parts.items()}


@pytest.mark.parametrize("door", [OverHttp, OverGrpc])
def test_its_start_up_and_its_windows_of_measurement(place: Place, door: type[OverHttp | OverGrpc]) -> None:
    asking = door(place)
    metadata, config = asking.begin()
    assert config["max_batch_size"] == 8
    assert "dynamic_batching" in config
    assert not config["model_transaction_policy"].get("decoupled", False)
    assert not config["response_cache"].get("enable", False)
    for side in ("input", "output"):
        told = {one["name"]: one for one in metadata[f"{side}s"]}
        assert {one["name"] for one in config[side]} == set(told)
        assert all(len(told[one["name"]]["shape"]) == len(one["dims"]) + 1 for one in config[side])
    for _ in range(WINDOWS):
        before = asking.stats()
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            taken = sum(pool.map(asking.infer, [25] * CONCURRENCY))
        check_window(before, asking.stats(), requests=25 * CONCURRENCY, taken_s=taken)


@pytest.mark.parametrize("order", ["cd", "dc"])
def test_outputs_are_found_by_name_and_their_bytes_follow_the_json(place: Place, order: str) -> None:
    given = [values(4 * COLUMNS, seed).reshape(1, COLUMNS) for seed in (1, 2)]
    wanted = dict(zip("cd", (2 * one for one in given), strict=True))
    peer = http.client.HTTPConnection("127.0.0.1", place.gateway.port, timeout=20)
    inputs = [
        {"name": name, "shape": [1, COLUMNS], "datatype": "FP32", "data": one.tolist()}
        for name, one in zip("ab", given, strict=True)
    ]
    for binary in ("", "c", "d", "cd"):
        outputs = [{"name": name, "parameters": {"binary_data": name in binary}} for name in order]
        peer.request("POST", "/v2/models/echo/infer", json.dumps({"inputs": inputs, "outputs": outputs}), KEY)
        answer = peer.getresponse()
        found = answer.read()
        split = int(answer.headers.get("inference-header-content-length", len(found)))
        for output in json.loads(found[:split])["outputs"]:
            size = output.get("parameters", {}).get("binary_data_size", 0)
            got = np.frombuffer(found[split : split + size], "<f4") if size else np.array(output["data"], "<f4")
            split += size
            assert np.array_equal(got, wanted[output["name"]].ravel())
            assert bool(size) == (output["name"] in binary)
        assert split == len(found)
    peer.request("POST", "/v2/models/echo/infer", json.dumps({"inputs": inputs, "outputs": [{"name": "d"}]}), KEY)
    assert [one["name"] for one in json.loads(peer.getresponse().read())["outputs"]] == ["d"]
    peer.close()


def check_window(before: dict[str, Any], after: dict[str, Any], *, requests: int, taken_s: float) -> None:
    """What it asserts and derives: every request counted once, each part as often, no more time than clients saw."""
    was, now = numbers(before), numbers(after)
    grown = {name: (now[name][0] - was.get(name, (0, 0))[0], now[name][1] - was.get(name, (0, 0))[1]) for name in now}
    assert {grown[name][0] for name in ("success", "queue", *COMPUTE)} == {requests}
    assert grown["fail"][0] == 0
    assert sum(grown[name][1] for name in ("queue", *COMPUTE)) <= grown["success"][1] <= taken_s * 1e9
    assert int(after["inference_count"]) - int(before.get("inference_count", 0)) == BATCH * requests
    passes = int(after["execution_count"]) - int(before.get("execution_count", 0))
    assert requests * BATCH / 8 <= passes <= requests
    sizes, old = batches(after), batches(before)
    assert sum(count - old.get(size, 0) for size, count in sizes.items()) == passes
    assert sum(size * (count - old.get(size, 0)) for size, count in sizes.items()) == BATCH * requests
    assert set(sizes) <= {2, 4, 6, 8}


def batches(found: dict[str, Any]) -> dict[int, int]:
    """How often each batch size ran."""
    return {int(one["batch_size"]): int(one["compute_infer"]["count"]) for one in found.get("batch_stats", [])}
