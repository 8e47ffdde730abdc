"""The REST door of a real gateway process, with fake replicas behind it."""

import hashlib
import random
import re
import struct
from urllib.parse import unquote

import httpx
import msgspec
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from inference.client import AsyncClient, Client
from inference.errors import InvalidInput, NotFound, Unauthenticated
from inference.protocol.routes import SAMPLES_STREAM, KeyRoute
from inference.protocol.samples import Sample
from tests.support.gateway_house import request, until
from tests.support.rest_house import error, rest_house


@pytest.fixture(scope="module")
def house():
    with rest_house() as found:
        yield found


@pytest.fixture
def gateway(house):
    yield house.gateways[0]
    for replica in house.replicas.values():
        replica.fault = None


def test_a_json_request_is_answered(gateway):
    response = gateway.post(json=request(identity="42"), headers={"X-Session-Id": "a", "X-Request-Id": "mine-1"})
    assert response.status_code == 200
    assert response.headers["x-request-id"] == "mine-1"
    body = response.json()
    assert (body["id"], body["model_name"]) == ("42", "mlp")
    assert body["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [0.0, 2.0, 4.0, 6.0]}]
    assert response.headers["x-model-version"] == body["model_version"]
    assert response.headers["x-rollout-arm"] == {"1": "primary", "2": "canary"}[body["model_version"]]


def test_sessions_stick_and_spread(gateway):
    seen = {}
    with httpx.Client(headers={"Authorization": "Bearer ser_all.s2"}) as client:
        for turn in range(200):
            session = f"s{turn % 100}"
            response = client.post(
                f"{gateway.url}/v2/models/mlp/infer", json=request(), headers={"X-Session-Id": session}
            )
            version = response.headers["x-model-version"]
            assert seen.setdefault(session, version) == version
    assert 30 <= sum(version == "2" for version in seen.values()) <= 70


def test_the_key_is_the_sticky_key_without_a_session(gateway):
    assert len({gateway.post().headers["x-model-version"] for _ in range(10)}) == 1


def test_a_version_is_pinned_by_its_number(gateway):
    for number in ("1", "2"):
        response = gateway.post(f"/v2/models/mlp/versions/{number}/infer")
        assert response.headers["x-model-version"] == number
    for number in ("3", "9"):
        error(gateway.post(f"/v2/models/mlp/versions/{number}/infer"), 404, f"version {number}")


def test_binary_in_and_out(gateway):
    values = [float(i) for i in range(32)]
    head = msgspec.json.encode(
        {
            "inputs": [{"name": "x", "shape": [2, 16], "datatype": "FP32", "parameters": {"binary_data_size": 128}}],
            "parameters": {"binary_data_output": True},
        }
    )
    response = gateway.post(
        content=head + struct.pack("<32f", *values), headers={"Inference-Header-Content-Length": str(len(head))}
    )
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/octet-stream"
    size = int(response.headers["inference-header-content-length"])
    body = msgspec.json.decode(response.content[:size])
    assert body["outputs"][0]["parameters"] == {"binary_data_size": 32}
    assert struct.unpack("<8f", response.content[size:]) == (0, 2, 4, 6, 32, 34, 36, 38)


def test_a_raw_body_is_the_only_input(gateway):
    response = gateway.post(content=struct.pack("<16f", *range(16)), headers={"Inference-Header-Content-Length": "0"})
    size = int(response.headers["inference-header-content-length"])
    assert struct.unpack("<4f", response.content[size:]) == (0, 2, 4, 6)


def test_texts_in_and_out_on_a_public_endpoint(gateway):
    body = {"inputs": [{"name": "text", "shape": [2, 1], "datatype": "BYTES", "data": [["hé"], [""]]}]}
    response = gateway.post("/v2/models/text/infer", key="", json=body)
    assert response.json()["outputs"][0]["data"] == ["hé", ""]


@pytest.mark.parametrize("split", ["999999", "-1", "x", "1", "1" * 30])
def test_a_broken_binary_header_is_refused(gateway, split):
    error(gateway.post(content=msgspec.json.encode(request()), headers={"Inference-Header-Content-Length": split}), 400)


def test_the_official_client_works_unchanged(gateway):
    np = pytest.importorskip("numpy")
    http = pytest.importorskip("tritonclient.http")
    client = http.InferenceServerClient(gateway.url.removeprefix("http://"), concurrency=2)
    headers = {"Authorization": "Bearer ser_all.s2"}
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("mlp", headers=headers)
    assert client.get_server_metadata(headers=headers)["name"] == "serinus"
    assert client.get_model_metadata("mlp", headers=headers)["inputs"][0]["shape"] == [-1, 16]
    given = http.InferInput("x", [2, 16], "FP32")
    values = np.arange(32, dtype=np.float32).reshape(2, 16)
    for binary in (True, False):
        given.set_data_from_numpy(values, binary_data=binary)
        for outputs in (None, [http.InferRequestedOutput("y", binary_data=binary)]):
            answer = client.infer("mlp", [given], outputs=outputs, headers=dict(headers), request_id="q")
            assert (answer.as_numpy("y") == 2 * values[:, :4]).all()
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match="Request for unknown model: 'nope' is not found"):
        client.infer("nope", [given], headers=headers)
    client.close()


def test_metadata_health_and_readiness(gateway):
    assert gateway.get("/v2/health/live", key="").json() == {"live": True}
    assert gateway.get("/v2/health/ready", key="").json() == {"ready": True}
    assert gateway.get("/v2").json()["extensions"] == [
        "classification", "sequence", "schedule_policy", "model_configuration", "binary_tensor_data", "parameters",
        "statistics", "trace", "logging",
    ]  # fmt: skip
    metadata = gateway.get("/v2/models/mlp").json()
    assert metadata["versions"] == ["1", "2"]
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 16]}]
    assert gateway.get("/v2/models/mlp/versions/2").json()["versions"] == ["2"]
    assert gateway.get("/v2/models/mlp/versions/2/ready").status_code == 200
    for path in ("/v2/models/mlp/versions/3/ready", "/v2/models/empty/ready"):
        error(gateway.get(path), 400, "Model version not ready")
    error(gateway.get("/v2/models/nope/ready"), 404)


def test_paths_and_methods(gateway):
    key = {"Authorization": "Bearer ser_all.s2"}
    with httpx.Client(base_url=gateway.url, headers=key) as client:
        for path in ("/", "/v2/", "/v2/nope", "/v2/models", "/v2/models/mlp/versions/x", "/v2/models/%6dlp",
                     "/v2/models/%00", "/v2/models/" + "a" * 10_000, "/v2/models/mlp/infer/"):  # fmt: skip
            assert error(client.get(path), 404).json() == {"error": "Not Found"}
        for name in ("a%2Fb", "%2e%2e%2fmlp", "my%20model", "caf%C3%A9", "-x"):
            for path in (f"/v2/models/{name}", f"/v2/models/{name}/versions/1/ready"):
                error(client.get(path), 404, f"Request for unknown model: '{unquote(name)}' is not found. Names have")
        for method, path in (("GET", "/v2/models/mlp/infer"), ("PUT", "/v2/models/mlp/infer"), ("POST", "/v2/models/mlp"),
                             ("DELETE", "/v2"), ("OPTIONS", "/v2/models/mlp/infer"), ("POST", "/v2/health/live")):  # fmt: skip
            response = error(client.request(method, path), 405)
            assert response.json() == {"error": "Method Not Allowed"}
            assert response.headers["allow"]
        # one connection: a body where none belongs would be read as the next answer
        for path, status in (("/v2/models/mlp", 200), ("/v2/nope", 404), ("/v2/models/mlp/infer", 405), ("/v2", 200)):
            response = client.head(path)
            assert (response.status_code, response.content) == (status, b"")
            assert int(response.headers["content-length"]) == len(client.get(path).content)


def test_a_wrong_name_is_told_the_nearest_that_its_key_may_use(gateway):
    error(gateway.post("/v2/models/mpl/infer"), 404, "unknown model: 'mpl' is not found. Did you mean 'mlp'?")
    error(gateway.post("/v2/models/slw/infer", key="ser_one.s1"), 403, "This key may not use 'slw'")
    error(gateway.post("/v2/models/mlp/versions/9/infer"), 404, "not at ready state or not found. Served are: 1, 2")


@pytest.mark.parametrize(
    "path", ["/v2", "/metrics", "/v2/models/mlp", "/v2/models/nope", "/v2/models/mlp/ready", "/v2/logging"]
)
@pytest.mark.parametrize("key", ["", "ser_all.wrong", "ser_gone.s2", "nonsense"])
def test_nothing_is_told_without_a_good_key(gateway, path, key):
    response = error(gateway.get(path, key=key), 401)
    assert response.json()["error"] == Unauthenticated().message
    assert response.headers["www-authenticate"].startswith("Bearer")


def test_keys_are_scoped(gateway):
    assert gateway.post(key="ser_one.s1").status_code == 200
    error(gateway.post("/v2/models/slow/infer", key="ser_one.s1"), 403)
    error(gateway.post("/v2/models/nope/infer", key="ser_one.s1"), 403)
    error(gateway.get("/metrics", key="ser_one.s1"), 403)
    response = httpx.post(f"{gateway.url}/v2/models/mlp/infer", json=request(), headers={"X-API-Key": "ser_one.s1"})
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "failed to parse"),
        (b"{", "failed to parse"),
        (b"\xff\xfe", "failed to parse"),
        (b"[" * 100_000, "failed to parse"),
        (b'{"z":' + b"[" * 100_000, "nested"),
        (b'{"inputs":[]}', "expected 1 inputs but got 0"),
        (b'{"inputs":[{"name":"in","shape":[1],"datatype":"FP32","data":[1]}]}', "Its inputs are ['x']"),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"float32","data":[1]}]}', "'float32'. There are BOOL, UINT8"),
        (
            b'{"inputs":[{"name":"x","parameters":{"binary_data_size":4}}]}1234',
            "the header Inference-Header-Content-Length",
        ),
        (msgspec.json.encode(request([1.0] * 65 * 16)), "batch-size must be <= 64"),
        (b'{"inputs":[{"name":"x","shape":[1,16],"datatype":"FP32","data":[1]}]}', "holds 1 elements"),
        (b'{"inputs":[{"name":"x","shape":[-1,16],"datatype":"FP32","data":[1]}]}', "invalid dimension"),
    ],
)
def test_bad_bodies_are_refused_in_words(gateway, body, text):
    error(gateway.post(content=body), 400, text)


def test_half_floats_want_the_binary_form(gateway):
    body = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP16", "data": [1]}]}
    error(gateway.post("/v2/models/half/infer", json=body), 400, "receiving FP16 data via JSON is not supported")
    head = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP16", "parameters": {"binary_data_size": 2}}]}
    raw = msgspec.json.encode(head)
    response = gateway.post(
        "/v2/models/half/infer", content=raw + b"\0\0", headers={"Inference-Header-Content-Length": str(len(raw))}
    )
    error(response, 400, "sending FP16 data via JSON is not supported")


def test_the_port_is_taken(gateway, house):
    other = house.gateway(SERINUS_HTTP_PORT=str(gateway.port))
    assert other.process.wait(20) == 2
    assert f"port {gateway.port}" in other.log.read_text()
    assert "SERINUS_HTTP_PORT" in other.log.read_text()
    house.gateways.remove(other)


def test_our_own_client(gateway):
    inputs = request()["inputs"]
    with Client(gateway.url, "ser_all.s2") as client:
        assert client.ready()
        assert client.ready("mlp")
        assert not client.ready("empty")
        assert client.metadata("mlp")["platform"] == "fake"
        found = client.infer("mlp", inputs, version=2, outputs=["y"])
        assert (found["y"], found.model_version, found.arm) == ([0.0, 2.0, 4.0, 6.0], "2", "canary")
        with pytest.raises(NotFound):
            client.infer("nope", inputs)
        with pytest.raises(InvalidInput):
            client.infer("mlp", [])
    assert not Client("http://127.0.0.1:9", "k").ready()


async def test_our_own_client_for_asyncio(gateway):
    async with AsyncClient(gateway.url, "ser_all.wrong") as client:
        assert await client.ready()
        with pytest.raises(Unauthenticated):
            await client.infer("mlp", request()["inputs"])


def test_a_key_with_a_rate_is_refused_with_the_time_to_come_back(gateway, house):
    """By requests and by rows; another key is not touched."""
    limited = [
        KeyRoute("req", hashlib.sha256(b"s8").hexdigest(), ["mlp"], None, requests_per_s=0.5),
        KeyRoute("row", hashlib.sha256(b"s9").hexdigest(), ["mlp"], None, rows_per_s=4),
    ]
    before = house.now
    house.publish(msgspec.structs.replace(before, generation=house.generation + 1, keys=[*before.keys, *limited]))
    house.generation += 1
    until(lambda: gateway.get("/v2/models/mlp", key="ser_req.s8").status_code == 200)
    assert gateway.post(key="ser_req.s8").status_code == 200
    refused = gateway.post(key="ser_req.s8")
    assert (refused.status_code, refused.headers["x-error-code"]) == (429, "rate_limited")
    assert refused.headers["retry-after"] == "2"
    assert "0.5 requests a second" in refused.json()["error"]
    three = request([0.0] * 48)
    assert gateway.post(key="ser_row.s9", json=three).status_code == 200
    refused = gateway.post(key="ser_row.s9", json=three)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert gateway.post().status_code == 200
    assert 'reason="rate_limited"' in gateway.get("/metrics").text


def test_a_request_may_ask_where_its_time_went(gateway, house):
    parts = ("gateway", "network", "queue", "input", "compute", "output")
    answer = gateway.post("/v2/models/slow/infer", json=request() | {"parameters": {"timeline": True, "own": 3}})
    told = answer.json()["parameters"]
    assert set(told) == {f"timeline_{part}_us" for part in parts}
    assert [told[f"timeline_{part}_us"] for part in parts[2:]] == [1, 0, 2, 0]  # the fake replica's nanoseconds
    assert told["timeline_network_us"] > 200_000
    assert 0 < told["timeline_gateway_us"] < 10_000_000
    assert house.replicas["slow"].seen[-1].parameters == {"own": 3}
    plain = gateway.post("/v2/models/mlp/infer", json=request() | {"parameters": {"timeline": "mine"}})
    assert "parameters" not in plain.json()


def test_the_trace_context_goes_through_and_comes_back(gateway, house):
    context = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
    answer = gateway.post("/v2/models/slow/infer", headers={"traceparent": context})
    assert answer.headers["traceparent"] == context
    assert house.replicas["slow"].seen[-1].traceparent == context
    assert (
        gateway.post("/v2/models/slow/infer", headers={"traceparent": context}, json={"inputs": []}).headers[
            "traceparent"
        ]
        == context
    )
    assert "traceparent" not in gateway.post("/v2/models/slow/infer").headers


def test_numbers_reach_the_stream_and_metrics(gateway, house):
    gateway.post("/v2/models/mlp/versions/2/infer")

    def samples():
        entries = house.valkey.client.xrange(SAMPLES_STREAM)
        return [msgspec.msgpack.decode(fields[b"s"], type=Sample) for _, fields in entries]

    until(lambda: any(sample.arm == "pinned" and sample.requests for sample in samples()), 4)
    found = samples()
    assert len({(sample.source, sample.sequence) for sample in found}) == len(found)
    one = next(sample for sample in found if sample.arm == "pinned" and sample.version == 2)
    assert one.endpoint == "mlp"
    assert sum(one.latency_counts.values()) == one.requests
    text = gateway.get("/metrics").text
    assert 'serinus_requests_total{arm="pinned",endpoint="mlp",version="2"}' in text
    assert "serinus_replicas_ready 5.0" in text
    assert sum(one.batch_counts.values()) == one.requests
    assert one.input_sum_ms == pytest.approx(one.requests * 0.0005)
    assert one.output_sum_ms == pytest.approx(one.requests * 0.0003)
    stage = 'serinus_stage_seconds_bucket{arm="pinned",endpoint="mlp",le="%s",stage="compute",version="2"}'
    assert stage % "1e-05" in text  # 2 us in every answer of the fake replica
    gateway.post(key="ser_gone.s1")
    until(
        lambda: (
            'serinus_rejections_total{arm="",endpoint="mlp",reason="unauthenticated",version=""}'
            in gateway.get("/metrics").text
        )
    )
    until(lambda: 'serinus_batch_size_count{endpoint="mlp",version="2"}' in gateway.get("/metrics").text)


def test_broken_requests_are_typed_errors_and_harm_nobody(gateway, house):
    """Fuzz through the door: seeded mutations of a request's head and body; the log must hold no traceback."""
    rng = random.Random(7)
    head = msgspec.json.encode(request())
    with httpx.Client(headers={"Authorization": "Bearer ser_all.s2"}) as client:
        for _ in range(600):
            body = bytearray(head)
            for _ in range(rng.randint(1, 5)):
                body[rng.randrange(len(body))] = rng.randrange(256)
            split = (
                {"Inference-Header-Content-Length": str(rng.randint(0, len(body) + 2))} if rng.random() < 0.5 else {}
            )
            response = client.post(f"{gateway.url}/v2/models/mlp/infer", content=bytes(body), headers=split)
            assert response.status_code in {200, 400}, (response.status_code, response.text, bytes(body))
            assert not re.search(r"/(home|tmp|root|usr|srv|var)/|\\.sock|pid", response.text)
    assert "Traceback" not in gateway.log.read_text()


def test_broken_binary_requests_are_typed_errors_and_harm_nobody(gateway):
    """Fuzz of the binary header through the door: its JSON, the tensors after it and where one ends."""
    rng = random.Random(300)
    head = msgspec.json.encode(
        {
            "id": "1",
            "inputs": [{"name": "x", "shape": [2, 16], "datatype": "FP32", "parameters": {"binary_data_size": 128}}],
            "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        }
    )
    statuses = []
    with httpx.Client(headers={"Authorization": "Bearer ser_all.s2"}) as client:
        for _ in range(300):
            body = bytearray(head + bytes(128))
            for _ in range(rng.randint(0, 4)):
                at = rng.randrange(len(head))
                body[at : at + rng.randint(0, 2)] = rng.choice([b"", b"9", b"-", b"\0", b"[", rng.randbytes(3)])
            split = rng.choice([len(head), len(head), rng.randrange(len(body) + 9)])
            headers = {"Inference-Header-Content-Length": str(split)}
            response = client.post(f"{gateway.url}/v2/models/mlp/infer", content=bytes(body), headers=headers)
            statuses.append(response.status_code)
            assert response.status_code in {200, 400}, (response.status_code, response.text, bytes(body))
    assert {200, 400} == set(statuses)
    assert "Traceback" not in gateway.log.read_text()


def test_the_table_on_disk_is_private(gateway):
    path = gateway.folder / "gateway" / "routes.json"
    until(path.exists)
    assert path.stat().st_mode & 0o777 == 0o600
    assert hashlib.sha256(b"s2").hexdigest() in path.read_text()


@pytest.fixture(scope="module")
def open_gateway(house):
    found = house.gateway(SERINUS_INSECURE="1").wait_live()
    until(lambda: found.get("/v2/models/mlp/ready", key="").status_code == 200, 15)
    return found


def test_without_keys_this_machine_needs_none(open_gateway):
    assert open_gateway.post(key="").status_code == 200
    assert open_gateway.post(key="", headers={"Origin": "http://localhost:3000"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1.evil.example"},
        {"Host": "evil.example"},
        {"Host": "evil.example:8000"},
        {"Host": "127.0.0.1@evil.example"},
        {"Host": "[::1"},
    ],
    ids=str,
)
def test_without_keys_no_foreign_page_gets_through_a_browser(open_gateway, headers):
    error(open_gateway.post(key="", headers=headers), 403)
    error(httpx.get(open_gateway.url + "/v2", headers=headers), 403)
    url = f"{open_gateway.url.replace('http', 'ws')}/v2/models/mlp/stream"
    if "Origin" in headers:
        with pytest.raises(InvalidStatus):
            connect(url, origin=headers["Origin"])
    with connect(url, origin="http://localhost") as stream:
        stream.send(msgspec.json.encode(request(identity="1")).decode())
        assert "outputs" in stream.recv(timeout=5)


def test_a_gateway_without_keys_serves_only_its_own_machine(house):
    other = house.gateway(SERINUS_INSECURE="1", SERINUS_HOST="0.0.0.0")
    assert other.process.wait(20) == 2
    assert "SERINUS_INSECURE" in other.log.read_text()
    house.gateways.remove(other)
