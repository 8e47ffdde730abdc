"""ModelStreamInfer of a real gateway process: many requests in flight, decoupled models, errors, slow readers."""

import queue
import threading
import time

import grpc
import pytest
from tritonclient.utils import InferenceServerException

from inference.gateway.grpc import wire
from tests.support.gateway_house import until
from tests.support.grpc_house import KEY, SERVICE, fixtures, infer, metadata, raw_request, refused, tensor

house, gateway, client, channel = fixtures()


class Stream:
    """A stream of the official client, with its answers in a queue."""

    def __init__(self, client, **headers):
        self.client = client
        self.answers = queue.Queue()
        client.start_stream(lambda result, error: self.answers.put((result, error)), headers=KEY | headers)

    def send(self, model="mlp", identity="", **more):
        self.client.async_stream_infer(model, [tensor()], request_id=identity, **more)

    def next(self):
        result, error = self.answers.get(timeout=10)
        return result.get_response() if error is None else error


def final(response):
    return response.parameters["triton_final_response"].bool_param


def test_many_requests_are_in_flight_on_a_stream(client):
    stream = Stream(client)
    begun = time.monotonic()
    for number in range(20):
        stream.send("slow", str(number))
    found = [stream.next() for _ in range(20)]
    assert time.monotonic() - begun < 3  # one after the other they take 6 s
    assert [one.id for one in found] == [str(number) for number in range(20)]
    assert all(final(one) for one in found)
    client.stop_stream()


@pytest.mark.parametrize("ends_empty", [False, True], ids=["with-tensors", "empty"])
@pytest.mark.parametrize("wants_empty", [False, True], ids=["default", "asked"])
def test_a_decoupled_model_gives_several_answers(house, gateway, client, ends_empty, wants_empty):
    replica = house.replicas["many"]
    replica.answers, replica.ends_empty = 3, ends_empty
    stream = Stream(client)
    stream.send("many", "d", enable_empty_final_response=wants_empty)
    found = [stream.next() for _ in range(3 + (ends_empty and wants_empty))]
    assert [len(one.outputs) for one in found] == [1, 1, 1, 0][: len(found)]
    assert [final(one) for one in found[:-1]] == [False] * (len(found) - 1)
    assert final(found[-1]) is (wants_empty or not ends_empty)
    assert {one.id for one in found} == {"d"}
    told = client.get_inference_statistics("many", headers=KEY, as_json=True)["model_stats"][0]["response_stats"]
    assert all(int(told[place]["success"]["count"]) >= 1 for place in "012")
    client.stop_stream()
    assert stream.answers.empty()


def test_a_decoupled_model_is_refused_by_model_infer(house, gateway, channel):
    house.replicas["many"].answers = 3
    error = refused(lambda: infer(channel, raw_request(model="many")))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "doesn't support models with decoupled transaction policy" in error.details()


def test_one_bad_request_leaves_the_stream_open(client):
    stream = Stream(client)
    stream.send("mlp", "1")
    stream.send("nope", "2")
    stream.send("mlp", "3")
    found = [stream.answers.get(timeout=10) for _ in range(3)]
    errors = [error for _, error in found if error is not None]
    assert [error.message() for error in errors] == ["Request for unknown model: 'nope' is not found"]
    assert {result.get_response().id for result, error in found if error is None} == {"1", "3"}
    client.stop_stream()


def test_a_strict_stream_ends_with_the_real_status(client):
    stream = Stream(client, triton_grpc_error="true")
    stream.send("mlp", "1")
    assert stream.next().id == "1"
    stream.send("nope", "2")
    error = stream.next()
    assert isinstance(error, InferenceServerException)
    assert error.status() == "StatusCode.NOT_FOUND"
    client.stop_stream()


def test_pending_requests_are_answered_after_the_client_has_said_all(channel):
    call = channel.stream_stream(f"{SERVICE}/ModelStreamInfer", None, wire.STREAM_RESPONSE.FromString)
    sent = [raw_request(model="slow", identity=str(number)).SerializeToString() for number in range(5)]
    found = list(call(iter(sent), metadata=metadata(), timeout=10))
    assert [one.infer_response.id for one in found] == ["0", "1", "2", "3", "4"]


def test_a_cancelled_stream_drops_all_it_had(house, channel):
    replica = house.replicas["slow"]
    before, dropped = len(replica.seen), len(replica.cancelled)
    call = channel.stream_stream(f"{SERVICE}/ModelStreamInfer", None, wire.STREAM_RESPONSE.FromString)
    hold = threading.Event()

    def sending():
        for _ in range(5):
            yield raw_request(model="slow").SerializeToString()
        hold.wait(10)

    answers = call(sending(), metadata=metadata())
    until(lambda: len(replica.seen) == before + 5)
    answers.cancel()
    hold.set()
    until(lambda: len(replica.cancelled) == dropped + 5)


def test_a_stream_has_a_bounded_number_of_requests_under_way(house, channel):
    from inference.gateway.grpc.stream import AT_ONCE

    replica = house.replicas["slow"]
    before = len(replica.seen)
    call = channel.stream_stream(f"{SERVICE}/ModelStreamInfer", None, wire.STREAM_RESPONSE.FromString)
    sent = [raw_request(model="slow", identity=str(number)).SerializeToString() for number in range(3 * AT_ONCE)]
    answers = call(iter(sent), metadata=metadata(), timeout=20)
    until(lambda: len(replica.seen) >= before + AT_ONCE)
    assert len(replica.seen) == before + AT_ONCE
    assert [one.infer_response.id for one in answers] == [str(number) for number in range(3 * AT_ONCE)]


def test_a_slow_reader_pauses_the_replica(house, gateway, channel):
    replica = house.replicas["many"]
    replica.answers, replica.pace_s, replica.echoes = 2000, 1e-6, True
    pauses = replica.pauses
    request = wire.INFER_REQUEST(model_name="many")
    request.inputs.add(name="x", datatype="FP32", shape=[64, 16])
    request.raw_input_contents.append(bytes(64 * 16 * 4))
    call = channel.stream_stream(f"{SERVICE}/ModelStreamInfer", None, wire.STREAM_RESPONSE.FromString)
    answers = call(iter([request.SerializeToString()]), metadata=metadata(), timeout=60)
    next(answers)
    until(lambda: replica.pauses > pauses, 20)
    assert sum(1 for _ in answers) == 1999
