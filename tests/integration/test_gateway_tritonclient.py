"""The official clients of Triton over HTTP, unchanged, against a real gateway process."""

from __future__ import annotations

import contextlib
import os
import uuid

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as http
import tritonclient.http.aio as aio
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from inference.protocol.messages import SequenceControl
from inference.protocol.oip import DATATYPES, Signature, TensorSpec
from inference.protocol.routes import EndpointRoute, VariantRoute
from tests.support.gateway_house import MLP, House, key, until

HEADERS = {"Authorization": "Bearer ser_all.s2"}
OTHERS = {"Authorization": "Bearer ser_two.s3"}
NUMPY = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "FP16": np.float16, "FP32": np.float32,
    "FP64": np.float64, "BYTES": np.object_, "BF16": ml_dtypes.bfloat16,
}  # fmt: skip


@pytest.fixture(scope="module")
def house():
    found = House()
    found.replica()
    found.replica("echo").echoes = True
    gateway = found.gateway(SERINUS_ALLOW_CLIENT_SHM="1", SERINUS_MAX_BODY_BYTES="1000000")

    def echo(datatype):
        signature = Signature(
            [TensorSpec("x", datatype, [-1, 4])], [TensorSpec("y", datatype, [-1, 4])], 8, labels=["a", "b", "c", "d"]
        )
        variant = VariantRoute(1, "primary", 10_000, signature, [found.route("echo")])
        return EndpointRoute(datatype, "echo", "salt", False, 5000, 64, [variant])

    mlp = [VariantRoute(1, "primary", 10_000, MLP, [found.route()])]
    keys = [key("all", "s2", ["*"]), key("two", "s3", ["*"])]
    found.others = [echo(datatype) for datatype in DATATYPES]
    found.publish(found.table(mlp, endpoints=found.others, keys=keys))
    gateway.wait_live()
    for name in ("mlp", "FP32"):
        gateway.wait_ready(name)
    yield found
    found.close()


@pytest.fixture
def client(house):
    with http.InferenceServerClient(f"127.0.0.1:{house.gateways[0].port}", concurrency=4) as found:
        yield found
    house.replicas["echo"].answers = 1


def values_of(datatype):
    if datatype == "BYTES":
        return np.array([[b"a", b"\xff\x00", b"", "é".encode()], [b"1", b"2", b"3", b"4"]], dtype=np.object_)
    if datatype == "BOOL":
        return np.array([[1, 0, 0, 1], [0, 0, 1, 1]], dtype=np.bool_)
    if datatype in {"FP16", "FP32", "FP64", "BF16"}:
        return np.array([[0.5, -2, 1, 0], [3, 4, -8, 128]], dtype=NUMPY[datatype])
    limits = np.iinfo(NUMPY[datatype])
    return np.array([[limits.min, limits.max, 1, 0], [2, 3, 4, 5]], dtype=NUMPY[datatype])


def text_of(values, datatype):
    """BYTES that JSON can carry."""
    return np.array([[b"a", b"b", b"", "é".encode()]] * 2, dtype=np.object_) if datatype == "BYTES" else values


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_every_datatype_goes_there_and_back(client, datatype):
    for binary in (True, False):
        values = values_of(datatype) if binary else text_of(values_of(datatype), datatype)
        given = http.InferInput("x", [2, 4], datatype)
        outputs = [http.InferRequestedOutput("y", binary_data=binary)]
        if datatype in {"FP16", "BF16"} and not binary:
            given.set_data_from_numpy(values, binary_data=True)
            with pytest.raises(InferenceServerException, match=f"sending {datatype} data via JSON is not supported"):
                client.infer(datatype, [given], outputs=outputs, headers=dict(HEADERS))
            continue
        given.set_data_from_numpy(values, binary_data=binary)
        answer = client.infer(datatype, [given], outputs=outputs, headers=dict(HEADERS), request_id="7")
        assert answer.get_response()["id"] == "7"
        found = answer.as_numpy("y")
        if datatype == "BYTES" and not binary:
            found = np.array([[one.encode() for one in row] for row in found], dtype=np.object_)
        assert (found == values).all()
        assert found.dtype == values.dtype
    client.infer(datatype, [given], headers=dict(HEADERS))  # outputs not named: all of them, as bytes


@pytest.mark.parametrize("asked", ["gzip", "deflate", None])
@pytest.mark.parametrize("answered", ["gzip", "deflate", None])
def test_compressed_requests_and_answers(client, asked, answered):
    given = http.InferInput("x", [64, 16], "FP32")
    values = np.arange(1024, dtype=np.float32).reshape(64, 16)
    encodings = []
    with pytest.MonkeyPatch.context() as patch:
        read = http.InferResult.__init__
        patch.setattr(http.InferResult, "__init__", lambda one, response, verbose: (
            encodings.append(response.get("Content-Encoding")), read(one, response, verbose))[1])  # fmt: skip
        for binary in (True, False):
            given.set_data_from_numpy(values, binary_data=binary)
            answer = client.infer(
                "mlp", [given], outputs=[http.InferRequestedOutput("y", binary_data=binary)], headers=dict(HEADERS),
                request_compression_algorithm=asked, response_compression_algorithm=answered,
            )  # fmt: skip
            assert (answer.as_numpy("y") == 2 * values[:, :4]).all()
    assert encodings == [answered, answered]


def test_everything_that_is_told(client):
    assert client.is_server_live(headers=HEADERS)
    assert client.is_model_ready("mlp", headers=HEADERS)
    assert "system_shared_memory" in client.get_server_metadata(headers=HEADERS)["extensions"]
    assert client.get_model_metadata("mlp", headers=HEADERS)["inputs"][0]["shape"] == [-1, 16]
    config = client.get_model_config("mlp", headers=HEADERS)
    assert (config["max_batch_size"], config["input"][0]["dims"]) == (64, [16])
    before = client.get_inference_statistics("INT8", headers=HEADERS)["model_stats"][0]["inference_stats"]
    given = http.InferInput("x", [1, 4], "INT8")
    given.set_data_from_numpy(np.ones((1, 4), dtype=np.int8))
    for _ in range(3):
        client.infer("INT8", [given], headers=dict(HEADERS))
    after = client.get_inference_statistics("INT8", headers=HEADERS)["model_stats"][0]["inference_stats"]
    for name in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert after[name]["count"] - before[name]["count"] == 3
    assert client.get_inference_statistics(headers=HEADERS)["model_stats"]
    assert client.update_log_settings({"log_verbose_level": 1}, headers=dict(HEADERS))["log_verbose_level"] == 1
    client.update_log_settings({"log_verbose_level": 0}, headers=dict(HEADERS))
    assert client.get_log_settings(headers=HEADERS)["log_verbose_level"] == 0
    told = client.update_trace_settings(
        "mlp", {"trace_level": ["TIMESTAMPS"], "trace_rate": "2"}, headers=dict(HEADERS)
    )
    assert told["trace_rate"] == "2"
    cleared = {"trace_level": None, "trace_rate": None}
    assert client.update_trace_settings("mlp", cleared, headers=dict(HEADERS))["trace_level"] == ["OFF"]
    assert client.get_trace_settings(headers=HEADERS)["trace_level"] == ["OFF"]


def test_sequences_priorities_and_parameters(client, house):
    given = http.InferInput("x", [1, 16], "FP32")
    given.set_data_from_numpy(np.zeros((1, 16), dtype=np.float32))
    for identity in (2**63, "talk"):
        client.infer(
            "mlp", [given], headers=dict(HEADERS), sequence_id=identity, sequence_start=True, sequence_end=True, priority=1,
            timeout=3_000_000, parameters={"mine": "x"},
        )  # fmt: skip
        seen = house.replicas["r1"].seen[-1]
        assert seen.sequence == SequenceControl(identity, True, True)
        assert (seen.priority, seen.queue_timeout_us, seen.parameters) == (1, 3_000_000, {"mine": "x"})


def test_requests_in_flight_and_bodies_made_and_read_apart(client, house):
    """`async_infer`, and the calls of those who bring an HTTP client of their own."""
    given = http.InferInput("x", [1, 4], "INT32")
    asked = []
    for number in range(8):
        given.set_data_from_numpy(np.full((1, 4), number, dtype=np.int32))
        asked.append(client.async_infer("INT32", [given], headers=dict(HEADERS), request_id=str(number)))
    for number, one in enumerate(asked):
        answer = one.get_result()
        assert answer.get_response()["id"] == str(number)
        assert answer.as_numpy("y").tolist() == [[number] * 4]
    with pytest.raises(InferenceServerException, match="'nope' is not found"):
        client.async_infer("nope", [given], headers=dict(HEADERS)).get_result()
    body, size = http.InferenceServerClient.generate_request_body([given])
    response = house.gateways[0].post(
        "/v2/models/INT32/infer", content=body, headers={"Inference-Header-Content-Length": str(size)}
    )
    size = int(response.headers["inference-header-content-length"])
    found = http.InferenceServerClient.parse_response_body(response.content, header_length=size)
    assert found.as_numpy("y").tolist() == [[7] * 4]


def test_what_is_refused_comes_as_the_clients_own_exception(client):
    given = http.InferInput("x", [1, 16], "FP32")
    given.set_data_from_numpy(np.zeros((1, 16), dtype=np.float32))

    def refused(call, *args, **more):
        with pytest.raises(InferenceServerException) as caught:
            call(*args, **more)
        return caught.value.status(), caught.value.message()

    def infer(headers=HEADERS, name="mlp", **more):
        return refused(client.infer, name, [given], headers=dict(headers), **more)

    assert infer({})[0] == "401"
    assert "send it as 'Authorization: Bearer" in infer({})[1]
    assert infer(name="mpl") == ("404", "Request for unknown model: 'mpl' is not found. Did you mean 'mlp'?")
    assert infer(name="my model")[1].startswith("Request for unknown model: 'my model' is not found")
    assert infer(model_version="7")[0] == "404"
    status, words = infer(outputs=[http.InferRequestedOutput("q")])
    assert (status, words) == ("400", "unexpected inference output 'q' for model 'mlp'. Its outputs are ['y']")
    status, words = infer(name="INT8")
    assert (status, words) == ("400", "inference input 'x' data-type is 'FP32', but model 'INT8' expects 'INT8'")
    many = http.InferInput("x", [65, 16], "FP32")
    many.set_data_from_numpy(np.zeros((65, 16), dtype=np.float32))
    status, words = refused(client.infer, "mlp", [many], headers=dict(HEADERS))
    assert (status, words) == ("400", "inference request batch-size must be <= 64 for 'mlp'")
    assert not client.is_model_ready("nope", headers=HEADERS)
    assert refused(client.load_model, "mlp", headers=dict(HEADERS))[0] == "503"  # no console behind this gateway
    status, words = refused(client.register_cuda_shared_memory, "r", b"", 0, 4, headers=dict(HEADERS))
    assert status == "501"
    assert "use system shared memory" in words


def test_classes(client):
    given = http.InferInput("x", [2, 4], "FP32")
    given.set_data_from_numpy(np.array([[1, 3, 2, 3], [9, 0, 0, 0]], dtype=np.float32))
    for binary in (True, False):
        wanted = http.InferRequestedOutput("y", binary_data=binary, class_count=2)
        found = client.infer("FP32", [given], outputs=[wanted], headers=dict(HEADERS)).as_numpy("y")
        texts = [one.decode() if isinstance(one, bytes) else one for one in found.flatten()]
        assert found.shape == (2, 2)
        assert texts == ["3.000000:1:b", "3.000000:3:d", "9.000000:0:a", "0.000000:1:b"]


@contextlib.contextmanager
def region(size):
    name = f"/serinus-client-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    found = shm.create_shared_memory_region("r", name, size)
    try:
        yield found, name
    finally:
        shm.destroy_shared_memory_region(found)


@pytest.mark.parametrize("datatype", ["FP32", "FP16", "INT64", "BYTES", "BOOL"])
def test_tensors_in_shared_memory(client, datatype):
    values = values_of(datatype)
    packed = serialize_byte_tensor(values).item() if datatype == "BYTES" else values.tobytes()
    size = len(packed)
    with region(2 * size) as (memory, name):
        client.unregister_system_shared_memory(headers=dict(HEADERS))
        client.unregister_cuda_shared_memory(headers=dict(HEADERS))
        client.register_system_shared_memory("data", name, 2 * size, headers=dict(HEADERS))
        told = client.get_system_shared_memory_status(headers=HEADERS)
        assert told == [{"name": "data", "key": name, "offset": 0, "byte_size": 2 * size}]
        shm.set_shared_memory_region(memory, [np.frombuffer(packed, dtype=np.uint8)])
        given = http.InferInput("x", [2, 4], datatype)
        given.set_shared_memory("data", size)
        wanted = http.InferRequestedOutput("y", binary_data=True)
        wanted.set_shared_memory("data", size, offset=size)
        answer = client.infer(datatype, [given], outputs=[wanted], headers=dict(HEADERS))
        output = answer.get_output("y")
        assert output["parameters"] == {
            "shared_memory_region": "data", "shared_memory_offset": size, "shared_memory_byte_size": size,
        }  # fmt: skip
        found = shm.get_contents_as_numpy(memory, NUMPY[datatype], [2, 4], size)
        assert (found == values).all()
        del found
        with pytest.raises(InferenceServerException, match="the region is not registered") as caught:
            client.infer(datatype, [given], headers=dict(OTHERS))
        assert "data" not in caught.value.message()
        assert client.get_system_shared_memory_status(headers=OTHERS) == []
        client.unregister_system_shared_memory("data", headers=dict(HEADERS))
        with pytest.raises(InferenceServerException, match="the region is not registered"):
            client.get_system_shared_memory_status("data", headers=HEADERS)


@pytest.mark.parametrize("name", ["/etc/passwd", "/psm_0000", "/../etc/passwd", "/serinus-client-not-there"])
def test_no_other_memory_is_reached_and_no_name_comes_back(client, name):
    with pytest.raises(InferenceServerException, match="the region") as caught:
        client.register_system_shared_memory("mine", name, 10, headers=dict(HEADERS))
    assert name not in str(caught.value)
    assert "mine" not in str(caught.value)


def test_shared_memory_needs_a_key_that_is_still_good(client, house):
    with region(64) as (_, name):
        client.register_system_shared_memory("mine", name, 64, headers=dict(OTHERS))
        table = house.table(
            [VariantRoute(1, "primary", 10_000, MLP, [house.route()])],
            endpoints=house.others, keys=[key("all", "s2", ["*"])],
        )  # fmt: skip
        house.publish(table)
        until(lambda: house.gateways[0].get("/v2", key="ser_two.s3").status_code == 401)
        again = [key("all", "s2", ["*"]), key("two", "s3", ["*"])]
        mlp = [VariantRoute(1, "primary", 10_000, MLP, [house.route()])]
        house.publish(house.table(mlp, endpoints=house.others, keys=again))
        until(lambda: house.gateways[0].get("/v2", key="ser_two.s3").status_code == 200)
        assert client.get_system_shared_memory_status(headers=OTHERS) == []


def test_without_keys_regions_are_everybodys(house):
    gateway = house.gateway(SERINUS_ALLOW_CLIENT_SHM="1", SERINUS_INSECURE="1").wait_live()
    until(lambda: gateway.get("/v2/models/FP32/ready", key="").status_code == 200, 15)
    values = values_of("FP32")
    with http.InferenceServerClient(f"127.0.0.1:{gateway.port}") as client, region(64) as (memory, name):
        client.register_system_shared_memory("r", name, 64)
        shm.set_shared_memory_region(memory, [values])
        given = http.InferInput("x", [2, 4], "FP32")
        given.set_shared_memory("r", 32)
        for headers in ({}, dict(HEADERS)):
            assert (client.infer("FP32", [given], headers=headers).as_numpy("y") == values).all()


async def test_the_client_for_asyncio(house):
    async with aio.InferenceServerClient(f"127.0.0.1:{house.gateways[0].port}") as client:
        assert await client.is_server_ready(headers=HEADERS)
        assert (await client.get_model_config("mlp", headers=HEADERS))["max_batch_size"] == 64
        given = aio.InferInput("x", [2, 16], "FP32")
        values = np.arange(32, dtype=np.float32).reshape(2, 16)
        given.set_data_from_numpy(values)
        for algorithm in (None, "gzip"):
            answer = await client.infer(
                "mlp", [given], headers=dict(HEADERS), request_compression_algorithm=algorithm,
                response_compression_algorithm=algorithm,
            )  # fmt: skip
            assert (answer.as_numpy("y") == 2 * values[:, :4]).all()
        assert await client.is_model_ready("mlp", headers=HEADERS)
        assert not await client.is_model_ready("nope", headers=HEADERS)
        assert (await client.get_server_metadata(headers=HEADERS))["name"] == "serinus"
        assert (await client.get_model_metadata("mlp", headers=HEADERS))["versions"] == ["1"]
        assert (await client.get_log_settings(headers=HEADERS))["log_verbose_level"] == 0
        assert (await client.get_trace_settings("mlp", headers=HEADERS))["trace_level"] == ["OFF"]
        assert await client.get_cuda_shared_memory_status(headers=HEADERS) == []
        found = await client.get_inference_statistics("mlp", headers=HEADERS)
        assert found["model_stats"][0]["inference_stats"]["success"]["count"] >= 2
        with pytest.raises(InferenceServerException, match="Request for unknown model: 'nope' is not found"):
            await client.infer("nope", [given], headers=dict(HEADERS))
