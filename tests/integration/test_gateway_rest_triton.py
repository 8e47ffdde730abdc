"""Triton's extensions at the REST door of a real gateway process, with fake replicas behind it."""

from __future__ import annotations

import json
import socket
import struct
import time

import httpx
import msgspec
import pytest

from inference.gateway.generate import EXACTLY_ONE
from inference.protocol.messages import Fault, SequenceControl
from inference.protocol.oip import Signature, TensorSpec
from inference.protocol.routes import EndpointRoute, VariantRoute
from inference.protocol.settings import RuntimeSettings, SequenceSettings
from tests.support.fake_replica import INFER_NS, INPUT_NS, OUTPUT_NS, QUEUE_NS
from tests.support.gateway_house import MLP, House, key, request, until

TEXT = Signature(
    [TensorSpec("text", "BYTES", [-1, 1])], [TensorSpec("y", "BYTES", [-1, 1])], max_batch_size=8, labels=["cat", "dog"]
)
RANKED = Signature(
    [TensorSpec("x", "FP32", [-1, 3])], [TensorSpec("y", "FP32", [-1, 3])], max_batch_size=8, labels=["cat", "dog"]
)
SEQUENCE = RuntimeSettings(sequence=SequenceSettings(), parameters={"k": "v"})
DECOUPLED = RuntimeSettings(decoupled=True)


@pytest.fixture(scope="module")
def house():
    found = House()
    for name in ("r1", "r2", "text", "ranked", "many", "counted", "counted2", "slow"):
        found.replica(name, version=2 if name == "r2" else 1)
    found.replicas["ranked"].echoes = found.replicas["counted"].echoes = found.replicas["counted2"].echoes = True
    found.replicas["slow"].latency_s = 0.3
    found.gateway(
        SERINUS_HTTP_HEADER_FORWARD_PATTERN="^x-(tenant|api)",
        SERINUS_SERVER_NAME="triton",
        SERINUS_MAX_BODY_BYTES="1000000",
    )

    def endpoint(name, signature, *replicas, settings=RuntimeSettings(), timeout_ms=5000, public=False):  # noqa: B008
        routes = [found.route(replica) for replica in replicas or (name,)]
        variant = VariantRoute(1, "primary", 10_000, signature, routes, settings)
        return EndpointRoute(name, name, "salt", public, timeout_ms, 64, [variant])

    variants = [
        VariantRoute(1, "primary", 10_000, MLP, [found.route()], SEQUENCE),
        VariantRoute(2, "canary", 0, MLP, [found.route("r2")]),
        VariantRoute(3, "canary", 0, MLP, []),
    ]
    others = [
        endpoint("text", TEXT, public=True),
        endpoint("ranked", RANKED),
        endpoint("many", TEXT, settings=DECOUPLED),
        endpoint("counted", RANKED, "counted", "counted2"),
        endpoint("slow", TEXT, timeout_ms=200),
    ]
    keys = [key("all", "s2", ["*"]), key("one", "s1", ["mlp"])]
    found.publish(found.table(variants, endpoints=others, keys=keys))
    found.gateways[0].wait_live()
    for name in ("mlp", "text", "ranked", "many", "counted", "slow"):
        found.gateways[0].wait_ready(name)
    yield found
    found.close()


@pytest.fixture
def gateway(house):
    yield house.gateways[0]
    for replica in house.replicas.values():
        replica.fault, replica.answers, replica.ends_empty, replica.breaks_after, replica.pace_s = None, 1, False, -1, 0


def error(response, status, text=""):
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    assert text in response.json()["error"]


# -- configuration and statistics -------------------------------------------------------------------------------------


def test_a_versions_configuration_is_told(gateway):
    found = gateway.get("/v2/models/mlp/config").json()
    assert (found["name"], found["max_batch_size"], found["input"][0]["dims"]) == ("mlp", 64, [16])
    assert "sequence_batching" in found
    assert found["parameters"] == {"k": {"string_value": "v"}}
    other = gateway.get("/v2/models/mlp/versions/2/config").json()
    assert "dynamic_batching" in other
    assert gateway.get("/v2/models/many/config").json()["model_transaction_policy"] == {"decoupled": True}
    error(gateway.get("/v2/models/mlp/versions/9/config"), 404, "Request for unknown model: 'mlp' version 9")
    error(gateway.get("/v2/models/nope/config"), 404, "Request for unknown model: 'nope' is not found")


def stats(gateway, path, **more):
    response = gateway.get(path, **more)
    assert response.status_code == 200, response.text
    return {(one["name"], one["version"]): one for one in response.json()["model_stats"]}


def test_statistics_are_exact_and_merged_over_replicas(gateway, house):
    row = [1.0, 2.0, 3.0]
    for rows in (1, 1, 2, 4, 1, 1):
        body = {"inputs": [{"name": "x", "shape": [rows, 3], "datatype": "FP32", "data": row * rows}]}
        assert gateway.post("/v2/models/counted/infer", json=body).status_code == 200
    assert all(house.replicas[name].seen for name in ("counted", "counted2"))
    found = stats(gateway, "/v2/models/counted/stats")["counted", "1"]
    assert (found["inference_count"], found["execution_count"]) == (10, 6)
    times = found["inference_stats"]
    assert times["success"] == {"count": 6, "ns": 6 * (QUEUE_NS + INPUT_NS + INFER_NS + OUTPUT_NS)}
    assert times["queue"] == {"count": 6, "ns": 6 * QUEUE_NS}
    for name, ns in (("compute_input", INPUT_NS), ("compute_infer", INFER_NS), ("compute_output", OUTPUT_NS)):
        assert times[name] == {"count": 6, "ns": 6 * ns}
    assert {one["batch_size"]: one["compute_infer"]["count"] for one in found["batch_stats"]} == {1: 4, 2: 1, 4: 1}
    assert found["last_inference"] > 0


def test_statistics_are_told_of_what_the_key_may_use(gateway):
    assert set(stats(gateway, "/v2/models/mlp/stats")) == {("mlp", "1"), ("mlp", "2")}
    assert set(stats(gateway, "/v2/models/mlp/versions/2/stats")) == {("mlp", "2")}
    everything = set(stats(gateway, "/v2/models/stats"))
    assert everything >= {("mlp", "1"), ("mlp", "2"), ("text", "1"), ("ranked", "1"), ("counted", "1")}
    mine = set(stats(gateway, "/v2/models/stats", key="ser_one.s1"))
    assert mine == {("mlp", "1"), ("mlp", "2"), ("text", "1")}  # `text` is public
    error(gateway.get("/v2/models/mlp/versions/3/stats"), 404, "'mlp' version 3 is not at ready state or not found")
    error(gateway.get("/v2/models/nope/stats"), 404, "Request for unknown model: 'nope' is not found")


def test_tritons_metrics_follow_the_replicas_sums(gateway):
    for _ in range(3):
        gateway.post("/v2/models/mlp/versions/2/infer")
    sums = stats(gateway, "/v2/models/mlp/versions/2/stats")["mlp", "2"]

    def line(name):
        return f'{name}{{model="mlp",version="2"}} '

    def value(name):
        text = gateway.get("/metrics").text
        return next((float(one.split()[-1]) for one in text.splitlines() if one.startswith(line(name))), None)

    until(lambda: value("nv_inference_request_success") == sums["inference_stats"]["success"]["count"])
    assert value("nv_inference_count") == sums["inference_count"]
    assert value("nv_inference_exec_count") == sums["execution_count"]
    assert value("nv_inference_queue_duration_us") == sums["inference_stats"]["queue"]["ns"] // 1000
    assert value("nv_inference_compute_infer_duration_us") == sums["inference_stats"]["compute_infer"]["ns"] // 1000
    assert value("nv_inference_pending_request_count") == 0
    text = gateway.get("/metrics").text
    assert "nv_gpu" not in text
    assert 'serinus_requests_total{arm="pinned",endpoint="mlp",version="2"}' in text
    kinds = {one.split()[2]: one.split()[3] for one in text.splitlines() if one.startswith("# TYPE")}
    assert kinds["nv_inference_request_success"] == "counter"
    assert kinds["nv_inference_pending_request_count"] == "gauge"


# -- infer ------------------------------------------------------------------------------------------------------------


def test_an_output_is_ranked_in_json_and_bytes(gateway):
    body = {
        "inputs": [{"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [0.5, 2, 1, 7, 7, 8]}],
        "outputs": [{"name": "y", "parameters": {"classification": 2}}],
    }
    found = gateway.post("/v2/models/ranked/infer", json=body).json()["outputs"]
    texts = ["2.000000:1:dog", "1.000000:2", "8.000000:2", "7.000000:0:cat"]
    assert found == [{"name": "y", "datatype": "BYTES", "shape": [2, 2], "data": texts}]
    body["outputs"][0]["parameters"]["binary_data"] = True
    response = gateway.post("/v2/models/ranked/infer", json=body)
    size = int(response.headers["inference-header-content-length"])
    packed = b"".join(struct.pack("<I", len(text)) + text.encode() for text in texts)
    assert response.content[size:] == packed
    assert json.loads(response.content[:size])["outputs"][0]["parameters"] == {"binary_data_size": len(packed)}
    text = {"inputs": [{"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": ["a"]}]} | {
        "outputs": body["outputs"]
    }
    error(gateway.post("/v2/models/text/infer", json=text), 400, "unsupported type 'BYTES'")


def test_parameters_reach_the_replica_as_what_they_are(gateway, house):
    body = request(identity="q") | {
        "parameters": {
            "priority": 2, "timeout": 4_000_000, "sequence_id": 2**64 - 1, "sequence_start": True, "sequence_end": True,
            "mine": 0.5, "flag": False, "word": "é",
        }
    }  # fmt: skip
    assert gateway.post("/v2/models/mlp/versions/1/infer", json=body).status_code == 200
    seen = house.replicas["r1"].seen[-1]
    assert (seen.priority, seen.queue_timeout_us) == (2, 4_000_000)
    assert seen.sequence == SequenceControl(2**64 - 1, True, True)
    assert seen.parameters == {"mine": 0.5, "flag": False, "word": "é"}
    named = request() | {"parameters": {"sequence_id": "call-7"}}
    assert gateway.post("/v2/models/mlp/versions/1/infer", json=named).status_code == 200
    assert house.replicas["r1"].seen[-1].sequence == SequenceControl("call-7")


@pytest.mark.parametrize(
    "parameters",
    [{"priority": -1}, {"sequence_id": 1.5}, {"sequence_id": 1, "sequence_start": "yes"}, {"sequence_start": True},
     {"triton_final_response": True}, {"timeout": "soon"}],
    ids=str,
)  # fmt: skip
def test_wrong_parameters_are_refused_by_name(gateway, parameters):
    error(gateway.post(json=request() | {"parameters": parameters}), 400, list(parameters)[-1])


def test_headers_become_parameters_where_the_operator_says_so(gateway, house):
    headers = {"X-Tenant": "red", "X-Other": "no", "X-API-Key": "secret"}
    body = request() | {"parameters": {"x-tenant": "forged"}}
    assert gateway.post("/v2/models/mlp/versions/1/infer", json=body, headers=headers).status_code == 200
    assert house.replicas["r1"].seen[-1].parameters == {"x-tenant": "red"}


def test_the_servers_name_is_a_setting(gateway):
    assert gateway.get("/v2").json()["name"] == "triton"


# -- generate ---------------------------------------------------------------------------------------------------------


def test_generate_answers_plain_json(gateway, house):
    body = {"text": "hé", "id": "7", "parameters": {"temperature": 0.5}}
    response = gateway.post("/v2/models/text/generate", json=body)
    assert response.json() == {"id": "7", "model_name": "text", "model_version": "1", "y": "hé"}
    assert response.headers["x-model-version"] == "1"
    assert house.replicas["text"].seen[-1].parameters == {"temperature": 0.5}
    two = gateway.post("/v2/models/text/versions/1/generate", json={"text": ["a", "b"]})
    assert two.json()["y"] == ["a", "b"]
    error(gateway.post("/v2/models/text/generate", json={"text": [[1]]}), 400)
    error(gateway.post("/v2/models/text/generate", json={}), 400, "expected 1 inputs but got 0")
    error(gateway.post("/v2/models/nope/generate", json={}), 404, "Request for unknown model: 'nope' is not found")
    error(gateway.post("/v2/models/slow/generate", json={"text": "a"}), 503, "Request timeout expired")


@pytest.mark.parametrize(
    ("answers", "ends_empty", "status"), [(1, False, 200), (1, True, 200), (0, True, 400), (3, False, 400)]
)
def test_generate_wants_exactly_one_answer(gateway, house, answers, ends_empty, status):
    replica = house.replicas["many"]
    replica.answers, replica.ends_empty = answers, ends_empty
    response = gateway.post("/v2/models/many/generate", json={"text": "a"})
    if status == 200:
        assert response.json()["y"] == "a"
    else:
        error(response, status, EXACTLY_ONE)


def events(response):
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    pieces = response.text.split("\n\n")
    assert pieces.pop() == ""
    assert all(piece.startswith("data: ") for piece in pieces)
    return [json.loads(piece[len("data: ") :]) for piece in pieces]


@pytest.mark.parametrize(("answers", "ends_empty"), [(1, False), (5, False), (5, True), (0, True), (200, True)])
def test_generate_stream_sends_every_answer_as_an_event(gateway, house, answers, ends_empty):
    replica = house.replicas["many"]
    replica.answers, replica.ends_empty = answers, ends_empty
    response = gateway.post("/v2/models/many/generate_stream", json={"text": "a", "id": "9"})
    assert response.status_code == 200
    found = events(response)
    assert found[:answers] == [{"id": "9", "model_name": "many", "model_version": "1", "y": "a"}] * answers
    assert len(found) == answers


def test_a_decoupled_models_answers_are_counted_by_their_place(gateway, house):
    def told():
        return stats(gateway, "/v2/models/many/stats")["many", "1"]["response_stats"]

    before = told()
    house.replicas["many"].answers = 3
    gateway.post("/v2/models/many/generate_stream", json={"text": "a"})
    for place in ("0", "1", "2"):
        was = before.get(place, {}).get("success", {"count": 0, "ns": 0})
        now = told()[place]
        assert now["success"] == now["compute_infer"] == {"count": was["count"] + 1, "ns": was["ns"] + INFER_NS}
        assert set(now) == {"compute_infer", "compute_output", "success", "fail", "empty_response", "cancel"}
    assert stats(gateway, "/v2/models/mlp/stats")["mlp", "1"]["response_stats"] == {}


def test_events_come_when_they_are_made(gateway, house):
    replica = house.replicas["many"]
    replica.answers, replica.pace_s = 3, 0.15
    times = []
    with httpx.stream(
        "POST", f"{gateway.url}/v2/models/many/generate_stream", json={"text": "a"},
        headers={"Authorization": "Bearer ser_all.s2"},
    ) as response:  # fmt: skip
        for piece in response.iter_raw():
            assert piece.count(b"data: ") == 1
            times.append(time.monotonic())
    assert len(times) == 3
    assert times[-1] - times[0] > 0.2


def test_the_first_answer_sets_the_status_and_a_later_error_is_an_event(gateway, house):
    replica = house.replicas["many"]
    replica.fault = Fault(0, "model_failed", "at /home/x/y.py")
    error(gateway.post("/v2/models/many/generate_stream", json={"text": "a"}), 500, "The model raised an error.")
    error(gateway.post("/v2/models/many/generate_stream", json={"text": 5}), 400)
    replica.answers, replica.breaks_after = 9, 2
    found = events(gateway.post("/v2/models/many/generate_stream", json={"text": "a"}))
    assert [one.get("y") for one in found] == ["a", "a", None]
    assert found[-1] == {"error": "The model raised an error."}


def test_who_leaves_a_stream_is_cancelled_at_the_replica(gateway, house):
    replica = house.replicas["many"]
    replica.answers, replica.pace_s = 1000, 0.02
    before = len(replica.cancelled)
    with httpx.stream(
        "POST", f"{gateway.url}/v2/models/many/generate_stream", json={"text": "a"},
        headers={"Authorization": "Bearer ser_all.s2"},
    ) as response:  # fmt: skip
        next(response.iter_raw())
    until(lambda: len(replica.cancelled) > before)


def test_a_slow_reader_of_a_stream_pauses_the_replica_and_nobody_else(gateway, house):
    replica = house.replicas["many"]
    replica.answers, replica.pace_s = 2000, 0.001
    body = msgspec.json.encode({"text": "a" * 60_000})
    head = (
        f"POST /v2/models/many/generate_stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ser_all.s2\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    cancelled = len(replica.cancelled)
    with socket.create_connection(("127.0.0.1", gateway.port)) as peer:
        peer.sendall(head.encode() + body)
        until(lambda: replica.pauses > 0)
        assert gateway.post("/v2/models/text/generate", json={"text": "b"}).json()["y"] == "b"
        assert len(replica.cancelled) == cancelled
    until(lambda: len(replica.cancelled) > cancelled)


def test_what_is_no_number_is_null_in_json_and_itself_in_bytes(gateway):
    values = struct.pack("<3f", float("nan"), float("inf"), 1)
    given = {"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}}
    for binary in (False, True):
        head = msgspec.json.encode({"inputs": [given], "parameters": {"binary_data_output": binary}})
        response = gateway.post(
            "/v2/models/ranked/infer",
            content=head + values,
            headers={"Inference-Header-Content-Length": str(len(head))},
        )
        if binary:
            assert response.content.endswith(values)
        else:
            assert response.json()["outputs"][0]["data"] == [None, None, 1.0]


# -- live settings ----------------------------------------------------------------------------------------------------


def test_log_settings_change_what_is_logged(gateway):
    log = gateway.log
    told = gateway.get("/v2/logging").json()
    assert told["log_verbose_level"] == 0
    gateway.get("/v2/models/quiet-1/config")
    assert gateway.post("/v2/logging", json={"log_verbose_level": 1}).json()["log_verbose_level"] == 1
    gateway.get("/v2/models/quiet-2/config", key="ser_all.s2")
    until(lambda: "DEBUG inference.gateway.app: request" in log.read_text())
    count = log.read_text().count("DEBUG")
    assert gateway.post("/v2/logging", json={"log_verbose_level": 0, "log_format": "ISO8601"}).status_code == 200
    gateway.get("/v2/models/quiet-3/config")
    assert log.read_text().count("DEBUG") == count
    for unchanged in ({}, {"log_info": None, "log_verbose_level": None, "log_file": None}):
        assert gateway.post("/v2/logging", json=unchanged).json() == told | {"log_format": "ISO8601"}
    error(gateway.post("/v2/logging", json={"log_file": "/etc/cron.d/x"}), 501, "can not be updated through network")
    error(gateway.post("/v2/logging", json={"log_nope": 1}), 400, "log_nope")
    error(gateway.post("/v2/logging", json=[]), 400)
    error(gateway.post("/v2/logging", json={"log_info": False}, key="ser_one.s1"), 403)
    assert gateway.get("/v2/logging", key="ser_one.s1").json()["log_info"]
    gateway.post("/v2/logging", json={"log_format": "default"})


def test_trace_settings_of_the_server_and_of_a_model(gateway):
    path = "/v2/models/mlp/trace/setting"
    assert gateway.get("/v2/trace/setting").json()["trace_level"] == ["OFF"]
    told = gateway.post(path, json={"trace_level": ["TIMESTAMPS"], "trace_rate": "5"}).json()
    assert (told["trace_level"], told["trace_rate"]) == (["TIMESTAMPS"], "5")
    assert gateway.get("/v2/trace/setting").json()["trace_rate"] == "1000"
    assert gateway.get(path, key="ser_one.s1").json()["trace_rate"] == "5"
    assert gateway.post(path, json={"trace_level": None, "trace_rate": None}).json()["trace_level"] == ["OFF"]
    error(gateway.post(path, json={"trace_rate": 1}, key="ser_one.s1"), 403)
    error(gateway.post("/v2/trace/setting", json={"trace_nope": 1}), 400, "trace_nope")
    error(gateway.post("/v2/trace/setting", json={"trace_file": "x"}), 501, "can not be updated")
    error(gateway.get("/v2/models/nope/trace/setting"), 404)


# -- what is not there ------------------------------------------------------------------------------------------------


def test_shared_memory_is_off_and_that_of_cuda_is_not_there(gateway):
    body = {"key": "/serinus-client-x", "byte_size": 10}
    error(gateway.get("/v2/systemsharedmemory/status"), 501, "--allow-client-shm")
    error(gateway.post("/v2/systemsharedmemory/region/x/register", json=body), 501, "--allow-client-shm")
    error(gateway.post("/v2/cudasharedmemory/region/x/register", json={}), 501, "CUDA shared memory is not supported")
    assert gateway.get("/v2/cudasharedmemory/status").json() == []
    assert gateway.post("/v2/cudasharedmemory/unregister", json={}).status_code == 200


def test_without_a_console_model_control_is_a_typed_503(gateway):
    error(gateway.post("/v2/repository/index", json={}), 503, "SERINUS_CONSOLE_URL")
    for path in ("index", "models/mlp/load", "models/mlp/unload"):
        error(
            gateway.post(f"/v2/repository/r1/{path}", json={}), 501, "'repository_name' specification is not supported"
        )


def test_the_log_holds_no_traceback(gateway):
    assert "Traceback" not in gateway.log.read_text()
    assert msgspec.json.decode(gateway.get("/v2/health/ready").content) == {"ready": True}
