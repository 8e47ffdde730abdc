"""The gRPC door of a real gateway process, with fake replicas behind it and the official client before it."""

import asyncio
import queue
import struct
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from inference.gateway.grpc import health, wire
from inference.protocol.messages import Fault, SequenceControl
from inference.protocol.proto import message
from tests.support.gateway_house import ROOT, free_port, until
from tests.support.grpc_house import (
    ANY,
    FOREIGN,
    KEY,
    SERVICE,
    fixtures,
    infer,
    metadata,
    raw_request,
    refused,
    tensor,
)

house, gateway, client, channel = fixtures()


# -- one answer ----------------------------------------------------------------------------------------------------------


def test_the_official_client_infers(client):
    found = client.infer("mlp", [tensor(3)], request_id="42", headers=KEY)
    assert found.as_numpy("y").tolist() == (2 * np.arange(48).reshape(3, 16)[:, :4]).tolist()
    response = found.get_response()
    assert (response.id, response.model_name, response.model_version) == ("42", "mlp", "1")


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_compressed_calls_are_answered(client, compression):
    found = client.infer("mlp", [tensor()], headers=KEY, compression_algorithm=compression)
    assert found.as_numpy("y").tolist() == [[0, 2, 4, 6]]


def test_async_infer_of_the_official_client(client):
    answers = queue.Queue()
    for number in range(50):
        client.async_infer(
            "mlp", [tensor()], lambda result, error: answers.put((result, error)), request_id=str(number), headers=KEY
        )
    found = [answers.get(timeout=10) for _ in range(50)]
    assert {result.get_response().id for result, error in found if error is None} == {str(n) for n in range(50)}


async def test_the_official_asyncio_client(gateway):
    async with triton_aio.InferenceServerClient(gateway.grpc_address) as client:
        assert await client.is_server_ready()
        assert await client.is_model_ready("mlp", headers=KEY)
        found = await asyncio.gather(*(client.infer("mlp", [tensor()], headers=KEY) for _ in range(20)))
        assert all(one.as_numpy("y").tolist() == [[0, 2, 4, 6]] for one in found)

        async def requests():
            for number in range(5):
                yield {"model_name": "mlp", "inputs": [tensor()], "request_id": str(number)}

        seen = [
            (result.get_response().id, error) async for result, error in client.stream_infer(requests(), headers=KEY)
        ]
        assert seen == [(str(number), None) for number in range(5)]


@pytest.mark.parametrize("datatype", ANY)
def test_every_datatype_comes_back_as_it_went(client, datatype):
    kind = {"FP64": "float64", "BOOL": "bool"}.get(datatype, datatype.lower())
    data = np.array([[0, 1], [100, 3]]).astype(kind)
    given = triton.InferInput("x", [2, 2], datatype)
    given.set_data_from_numpy(data)
    found = client.infer(datatype.lower(), [given], headers=KEY).as_numpy("y")
    assert found.dtype == data.dtype
    assert found.tolist() == data.tolist()


def test_texts_and_half_floats_come_back(client):
    texts = np.array([["über".encode()], [b"\xff\x00"]], dtype=object)
    given = triton.InferInput("text", [2, 1], "BYTES")
    given.set_data_from_numpy(texts)
    assert client.infer("text", [given], headers=KEY).as_numpy("y").tolist() == texts.tolist()
    halves = np.array([0.5, -2], dtype=np.float16)
    given = triton.InferInput("x", [2], "FP16")
    given.set_data_from_numpy(halves)
    assert client.infer("half", [given], headers=KEY).as_numpy("y").tolist() == halves.tolist()


def test_typed_contents_are_answered_with_typed_contents(channel):
    request = wire.INFER_REQUEST(model_name="mlp", id="t")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 16]).contents.fp32_contents.extend(range(16))
    answer, call = infer(channel, request)
    assert list(answer.outputs[0].contents.fp32_contents) == [0, 2, 4, 6]
    assert not answer.raw_output_contents
    assert {"x-model-version": "1", "x-rollout-arm": "primary"}.items() <= dict(call.trailing_metadata()).items()


def test_a_version_can_be_pinned(channel, client):
    assert client.infer("mlp", [tensor()], model_version="2", headers=KEY).get_response().model_version == "2"
    request = raw_request()
    for version, status in {"9": "NOT_FOUND", "x": "INVALID_ARGUMENT"}.items():
        request.model_version = version
        assert refused(lambda: infer(channel, request)).code().name == status


def test_an_output_is_ranked(client):
    wanted = [triton.InferRequestedOutput("y", class_count=2)]
    found = client.infer("mlp", [tensor()], outputs=wanted, headers=KEY)
    assert found.as_numpy("y").tolist() == [[b"6.000000:3", b"4.000000:2"]]


def test_parameters_and_sequences_reach_the_replica(house, client):
    client.infer(
        "mlp", [tensor()], sequence_id=5, sequence_start=True, priority=2, timeout=4_000_000, parameters={"own": 1},
        headers=KEY | {"traceparent": "00-1-2-01", "tracestate": "a=1"},
    )  # fmt: skip
    seen = house.replicas["r1"].seen[-1]
    assert (seen.sequence, seen.priority, seen.queue_timeout_us) == (SequenceControl(5, True, False), 2, 4_000_000)
    assert (seen.parameters, seen.key) == ({"own": 1}, "all")
    assert (seen.traceparent, seen.tracestate) == ("00-1-2-01", "a=1")
    assert 3000 < seen.timeout_ms <= 4000


def test_times_and_trace_context_come_back_when_asked_for(channel, client):
    context = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
    found = client.infer("mlp", [tensor()], parameters={"timeline": True}, headers=KEY).get_response()
    told = {name: value.int64_param for name, value in found.parameters.items()}
    assert set(told) == {
        f"timeline_{part}_us" for part in ("gateway", "network", "queue", "input", "compute", "output")
    }
    assert told["timeline_queue_us"] == 1
    _, state = infer(channel, traceparent=context)
    assert dict(state.trailing_metadata())["traceparent"] == context


def test_large_tensors_pass_and_larger_ones_are_refused(channel):
    answer, _ = infer(channel, raw_request(64))
    assert len(answer.raw_output_contents[0]) == 64 * 4 * 4
    request = wire.INFER_REQUEST(model_name="uint8")
    request.inputs.add(name="x", datatype="UINT8", shape=[2 << 20, 2])
    request.raw_input_contents.append(bytes(range(256)) * (4 << 12))
    with grpc.insecure_channel(channel._channel.target().decode(), [("grpc.max_receive_message_length", -1)]) as wide:
        answer, _ = infer(wide, request)
        assert answer.raw_output_contents[0] == request.raw_input_contents[0]
        request.inputs[0].shape[0] *= 2
        request.raw_input_contents[0] *= 2
        assert refused(lambda: infer(wide, request)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED


# -- refusals ------------------------------------------------------------------------------------------------------------


def test_refusals_bear_their_status_and_words(house, gateway, channel):
    request = raw_request(65)
    error = refused(lambda: infer(channel, request))
    assert (error.code(), error.details()) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "inference request batch-size must be <= 64 for 'mlp'",
    )
    error = refused(lambda: infer(channel, raw_request(model="nope")))
    assert (error.code(), error.details()) == (
        grpc.StatusCode.NOT_FOUND,
        "Request for unknown model: 'nope' is not found",
    )
    house.replicas["r1"].fault = Fault(0, "overloaded", "Exceeds maximum queue size", 2.0)
    error = refused(lambda: infer(channel))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
    assert {"retry-after": "2", "x-error-code": "overloaded"}.items() <= dict(error.trailing_metadata()).items()
    house.replicas["r1"].fault = Fault(0, "model_failed", "/home/secret/model.py line 3", None)
    error = refused(lambda: infer(channel))
    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "The model raised an error.")


def test_a_key_for_one_endpoint_opens_no_other(channel):
    one = {"x-api-key": "ser_one.s1"}
    assert infer(channel, key=one)[0].model_name == "mlp"
    assert refused(lambda: infer(channel, raw_request(model="slow"), one)).code() is grpc.StatusCode.PERMISSION_DENIED


PUBLIC = {"ServerLive", "ServerReady", "Check", "Watch"}
METHODS = [
    *((SERVICE, method.name, method.input_type, True) for method in wire.pool().FindServiceByName(SERVICE[1:]).methods),
    ("/grpc.health.v1.Health", "Check", health.REQUEST.DESCRIPTOR, False),
    ("/grpc.health.v1.Health", "Watch", health.REQUEST.DESCRIPTOR, False),
]


@pytest.mark.parametrize(("service", "name", "kind", "ours"), METHODS, ids=[name for _, name, _, _ in METHODS])
@pytest.mark.parametrize("key", [{}, FOREIGN, {"authorization": "x" * 5000}], ids=["nobody", "foreign", "absurd"])
def test_who_has_no_key_may_ask_for_health_alone(channel, service, name, kind, ours, key):
    request = (message(kind.full_name, *wire.FILES) if ours else health.REQUEST)()
    call = channel.stream_stream(f"{service}/{name}", type(request).SerializeToString, None)
    answers = call(iter([request]), metadata=metadata(key), timeout=5)
    if name in PUBLIC:
        assert next(answers) is not None
        answers.cancel()
        return
    error = refused(lambda: list(answers))
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED


def test_what_nobody_serves_is_unimplemented(channel):
    call = channel.unary_unary(f"{SERVICE}/Nothing")
    assert refused(lambda: call(b"", metadata=metadata())).code() is grpc.StatusCode.UNIMPLEMENTED


# -- deadlines and cancelling --------------------------------------------------------------------------------------------


def test_the_shorter_deadline_holds(house, channel):
    error = refused(lambda: infer(channel, raw_request(model="slow"), **{"x-request-timeout-ms": "60"}))
    assert (error.code(), error.details()) == (grpc.StatusCode.DEADLINE_EXCEEDED, "Request timeout expired")
    request = raw_request(model="slow")
    call = channel.unary_unary(f"{SERVICE}/ModelInfer", type(request).SerializeToString)
    begun = time.monotonic()
    error = refused(lambda: call(request, metadata=metadata(), timeout=0.1))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - begun < 2
    assert 0 < house.replicas["slow"].seen[-1].timeout_ms <= 100


def test_the_replica_is_told_of_a_client_that_cancelled(house, channel):
    replica = house.replicas["slow"]
    before = len(replica.seen)
    request = raw_request(model="slow")
    call = channel.unary_unary(f"{SERVICE}/ModelInfer", type(request).SerializeToString)
    future = call.future(request, metadata=metadata())
    until(lambda: len(replica.seen) > before)
    number = replica.seen[-1].id
    future.cancel()
    until(lambda: number in replica.cancelled)


# -- what the server and its models are ----------------------------------------------------------------------------------


def test_health_and_readiness(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("mlp", headers=KEY)
    assert client.is_model_ready("mlp", "2", headers=KEY)
    for name, version in (("mlp", "9"), ("nope", ""), ("empty", "")):
        assert not client.is_model_ready(name, version, headers=KEY)


def test_metadata_and_configuration(client):
    server = client.get_server_metadata(headers=KEY)
    assert server.name == "serinus"
    assert {"statistics", "binary_tensor_data", "system_shared_memory"} <= set(server.extensions)
    model = client.get_model_metadata("mlp", headers=KEY)
    assert (model.name, list(model.versions), model.platform) == ("mlp", ["1", "2"], "fake")
    assert [(one.name, one.datatype, list(one.shape)) for one in model.inputs] == [("x", "FP32", [-1, 16])]
    assert list(client.get_model_metadata("mlp", "2", headers=KEY).versions) == ["2"]
    config = client.get_model_config("mlp", headers=KEY).config
    assert (config.max_batch_size, list(config.input[0].dims), config.input[0].data_type) == (64, [16], 11)
    assert client.get_model_config("many", headers=KEY).config.model_transaction_policy.decoupled


def test_statistics_count_exactly(client):
    before = client.get_inference_statistics("mlp", "1", headers=KEY).model_stats[0]
    for _ in range(3):
        client.infer("mlp", [tensor(2)], headers=KEY)
    found = client.get_inference_statistics("mlp", "1", headers=KEY).model_stats[0]
    assert (found.name, found.version) == ("mlp", "1")
    assert found.inference_count - before.inference_count == 6
    sums = found.inference_stats
    counts = {sums.success.count, sums.queue.count, sums.compute_infer.count, sums.compute_output.count}
    assert len(counts) == 1
    assert [one.batch_size for one in found.batch_stats]
    everything = client.get_inference_statistics(headers=KEY).model_stats
    assert {"mlp", "many", "slow"} <= {one.name for one in everything}
    few = client.get_inference_statistics(headers={"x-api-key": "ser_one.s1"}).model_stats
    assert {one.name for one in few} == {"mlp"}


def test_settings_are_read_by_all_and_changed_by_operators(client):
    assert client.get_log_settings(headers=KEY).settings["log_info"].bool_param
    client.update_log_settings({"log_verbose_level": 1}, headers=KEY)
    assert client.get_log_settings(headers=KEY).settings["log_verbose_level"].uint32_param == 1
    client.update_log_settings({"log_verbose_level": 0}, headers=KEY)
    client.update_trace_settings("mlp", {"trace_rate": "5", "trace_level": ["TIMESTAMPS"]}, headers=KEY)
    found = client.get_trace_settings("mlp", headers=KEY).settings
    assert (list(found["trace_rate"].value), list(found["trace_level"].value)) == (["5"], ["TIMESTAMPS"])
    client.update_trace_settings("mlp", {"trace_rate": None, "trace_level": None}, headers=KEY)
    with pytest.raises(InferenceServerException) as caught:
        client.update_log_settings({"log_info": False}, headers={"x-api-key": "ser_one.s1"})
    assert caught.value.status() == "StatusCode.PERMISSION_DENIED"
    with pytest.raises(InferenceServerException, match="unexpected log setting"):
        client.update_log_settings({"log_nothing": True}, headers=KEY)


def test_shared_memory_carries_inputs_and_outputs(client):
    from multiprocessing import shared_memory

    with_prefix = f"serinus-client-grpc-{free_port()}"
    memory = shared_memory.SharedMemory(with_prefix, create=True, size=128)
    try:
        memory.buf[:64] = struct.pack("<16f", *range(16))
        client.unregister_system_shared_memory(headers=KEY)
        client.register_system_shared_memory("both", f"/{with_prefix}", 128, headers=KEY)
        status = client.get_system_shared_memory_status(headers=KEY)
        assert status.regions["both"].byte_size == 128
        given = triton.InferInput("x", [1, 16], "FP32")
        given.set_shared_memory("both", 64)
        wanted = triton.InferRequestedOutput("y")
        wanted.set_shared_memory("both", 16, offset=64)
        found = client.infer("mlp", [given], outputs=[wanted], headers=KEY)
        assert found.get_output("y").parameters["shared_memory_byte_size"].int64_param == 16
        assert struct.unpack("<4f", memory.buf[64:80]) == (0, 2, 4, 6)
        client.unregister_system_shared_memory("both", headers=KEY)
        assert not client.get_system_shared_memory_status(headers=KEY).regions
    finally:
        memory.close()
        memory.unlink()
    assert not client.get_cuda_shared_memory_status(headers=KEY).regions
    client.unregister_cuda_shared_memory(headers=KEY)
    with pytest.raises(InferenceServerException, match="CUDA shared memory is not supported"):
        client.register_cuda_shared_memory("c", b"aGk=", 0, 8, headers=KEY)


def test_model_control_without_a_console_says_so(client):
    with pytest.raises(InferenceServerException, match="SERINUS_CONSOLE_URL") as caught:
        client.load_model("mlp", headers=KEY)
    assert caught.value.status() == "StatusCode.UNAVAILABLE"


def test_the_health_protocol(channel):
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check", health.REQUEST.SerializeToString, health.RESPONSE.FromString
    )
    for service in ("", "inference.GRPCInferenceService", "grpc.health.v1.Health"):
        assert check(health.REQUEST(service=service)).status == 1
    assert check(health.REQUEST(service="mlp"), metadata=metadata()).status == 1
    assert check(health.REQUEST(service="empty"), metadata=metadata()).status == 2
    for service, key in (("mlp", {}), ("nope", KEY), ("slow", {"x-api-key": "ser_one.s1"})):
        error = refused(lambda service=service, key=key: check(health.REQUEST(service=service), metadata=metadata(key)))
        assert error.code() is grpc.StatusCode.NOT_FOUND


# -- start and end -------------------------------------------------------------------------------------------------------


def test_a_taken_port_is_named(house, gateway):
    taken = gateway.grpc_address.rpartition(":")[2]
    other = house.gateway(SERINUS_GRPC_PORT=taken)
    assert other.process.wait(20) == 2
    said = other.log.read_text()
    assert f"port {taken} on 127.0.0.1 cannot be used for gRPC" in said
    assert "SERINUS_GRPC_PORT" in said


def test_a_draining_gateway_finishes_what_is_under_way(house):
    gateway = house.gateway(SERINUS_GRPC_PORT=str(free_port()))
    gateway.wait_live().wait_ready("slow")
    with grpc.insecure_channel(gateway.grpc_address) as channel:
        watch = channel.unary_stream(
            "/grpc.health.v1.Health/Watch", health.REQUEST.SerializeToString, health.RESPONSE.FromString
        )(health.REQUEST(), timeout=20)
        assert next(watch).status == 1
        stream = channel.stream_stream(f"{SERVICE}/ModelStreamInfer", None, wire.STREAM_RESPONSE.FromString)
        hold = threading.Event()

        def sending():
            yield raw_request(model="slow", identity="last").SerializeToString()
            hold.wait(20)

        replica = house.replicas["slow"]
        before = len(replica.seen)
        answers = stream(sending(), metadata=metadata(), timeout=20)
        until(lambda: len(replica.seen) > before)
        gateway.process.terminate()
        assert next(answers).infer_response.id == "last"
        error = refused(lambda: list(answers))
        hold.set()
        assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "This server is shutting down.")
        assert [one.status for one in watch] == [2]
        assert gateway.process.wait(20) == 0


def test_without_keys_everything_is_open(house):
    gateway = house.gateway(SERINUS_GRPC_PORT=str(free_port()), SERINUS_INSECURE="1")
    gateway.wait_live().wait_ready()
    with triton.InferenceServerClient(gateway.grpc_address) as client:
        assert client.infer("mlp", [tensor()]).as_numpy("y").tolist() == [[0, 2, 4, 6]]
        assert client.get_server_metadata().name == "serinus"
    gateway.stop()


def test_no_port_is_no_door(house):
    gateway = house.gateway(SERINUS_GRPC_PORT="0").wait_live()
    assert "grpc" not in gateway.log.read_text()
    gateway.stop()


def test_the_door_needs_no_tensor_library():
    code = (
        "import sys, inference.gateway.grpc.door\n"
        "raise SystemExit(' '.join({'numpy', 'torch', 'jax', 'django'} & sys.modules.keys()) or 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_keepalive_pings_are_tolerated(gateway):
    options = [
        ("grpc.keepalive_time_ms", 150),
        ("grpc.keepalive_timeout_ms", 5000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    seen = []
    with grpc.insecure_channel(gateway.grpc_address, options) as channel:
        assert infer(channel)
        channel.subscribe(seen.append)
        time.sleep(1.5)
        assert infer(channel)
    assert set(seen) == {grpc.ChannelConnectivity.READY}
