"""Models that call other models (BLS): real sandboxed replicas behind a real gateway, asked by Triton's own clients."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from inference.protocol.messages import Answer, CallModel, Infer, TensorHeader
from tests.support.gateway_house import until
from tests.support.triton_calls import ask, call, fill, plan, stream, text, told
from tests.support.triton_place import HEADERS, TritonPlace

pytestmark = pytest.mark.timeout(300)
NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, CANCELLED = 2, 3, 4, 5, 7
DOUBLE = call("double", {"x": ["float32", [[1, 2, 3, 4]]]})
COUNT = call("count", {"N": ["int32", [40]]})
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def place() -> Iterator[TritonPlace]:
    with tempfile.TemporaryDirectory(prefix="bls-") as name:
        work = Path(name)
        found = TritonPlace(work, fill(work / "models"), teams={"foreign": "away"})
        yield found
        found.close()


def successes(place: TritonPlace, model: str) -> int:
    (stats,) = place.http.get_inference_statistics(model, headers=HEADERS)["model_stats"]
    return int(stats["inference_stats"]["success"]["count"])


def error_of(heard: list[Any]) -> tuple[int, str]:
    ((response,),) = heard
    return tuple(response["error"])


@pytest.mark.parametrize("model", ["asks", "gathers"])
def test_a_graph_and_another_python_model_answer_and_count_it(place: TritonPlace, model: str) -> None:
    before = successes(place, "double"), successes(place, "told")
    heard = ask(place, model, plan(DOUBLE, told(request_id="r1", parameters={"tone": "low", "n": 3})))
    assert heard[0] == [{"y": [[2.0, 4.0, 6.0, 8.0]]}]
    found = json.loads(heard[1][0]["TOLD"][0])
    assert (found["id"], found["parameters"]) == ("r1", {"tone": "low", "n": 3})
    assert (successes(place, "double"), successes(place, "told")) == (before[0] + 1, before[1] + 1)
    counted = place.gateway.get("/metrics").text
    assert [
        line for line in counted.splitlines() if line.startswith("serinus_requests_total") and 'endpoint="told"' in line
    ]


def test_outputs_version_and_errors_are_those_of_the_called_model(place: TritonPlace) -> None:
    good = DOUBLE | {"outputs": ["y"], "model_version": 1}
    bad = [
        (DOUBLE | {"outputs": ["z"]}, INVALID_ARG, "unexpected inference output 'z'"),
        (DOUBLE | {"model_version": 7}, NOT_FOUND, "version 7"),
        (call("double", {"x": ["float32", [[1, 2]]]}), INVALID_ARG, "unexpected shape"),
        (call("double", {"x": ["int32", [[1, 2, 3, 4]]]}), INVALID_ARG, "data-type is 'INT32'"),
        (call("nobody"), NOT_FOUND, "unknown model: 'nobody'"),
        (told(parameters={"refuse": "not today"}), INVALID_ARG, "not today"),
    ]
    heard = ask(place, "asks", plan(good, *(one for one, _, _ in bad)))
    assert heard[0] == [{"y": [[2.0, 4.0, 6.0, 8.0]]}]
    for (found,), (_, code, words) in zip(heard[1:], bad, strict=True):
        assert found["error"][0] == code, found
        assert words in found["error"][1]


def test_another_teams_model_is_not_there(place: TritonPlace) -> None:
    code, words = error_of(ask(place, "asks", plan(told("foreign"))))
    assert code == NOT_FOUND
    assert words == error_of(ask(place, "asks", plan(told("nobody"))))[1].replace("nobody", "foreign")


def test_two_calls_wait_side_by_side(place: TritonPlace) -> None:
    slow = [told("told", parameters={"sleep": 1.0}), told("mortal", parameters={"sleep": 1.0})]
    began = time.monotonic()
    heard = ask(place, "gathers", plan(*slow))
    assert time.monotonic() - began < 1.9
    assert [sorted(one[0]) for one in heard] == [["TOLD"], ["TOLD"]]


@pytest.mark.parametrize("model", ["asks", "gathers"])
def test_a_decoupled_models_answers_come_one_by_one(place: TritonPlace, model: str) -> None:
    heard = ask(place, model, plan(COUNT, DOUBLE, how="many"))
    assert heard[0] == [{"I": [number]} for number in range(40)]
    assert heard[1] == [{"y": [[2.0, 4.0, 6.0, 8.0]]}]


def test_a_decoupled_model_is_to_be_asked_as_such(place: TritonPlace) -> None:
    code, words = error_of(ask(place, "asks", plan(COUNT)))
    assert code == UNSUPPORTED
    assert "decoupled=True" in words


def test_who_reads_only_the_first_answer_leaves_the_rest(place: TritonPlace) -> None:
    before = place.log("endless").count("left after")
    assert ask(place, "asks", plan(call("endless", {"N": ["int32", [1]]}), how="first")) == [[{"I": [0]}]]
    until(lambda: place.log("endless").count("left after") > before, 20)


def test_a_decoupled_model_calls_from_its_own_threads(place: TritonPlace) -> None:
    found: list[Any] = []
    caller = stream(place, "streams", plan(DOUBLE, told()), found)
    until(lambda: len(found) >= 2, 30)
    caller.stop_stream()
    assert json.loads(found[0].as_numpy("HEARD")[0]) == [[{"y": [[2.0, 4.0, 6.0, 8.0]]}]]
    assert ask(place, "asks", plan(DOUBLE, how="thread")) == [[{"y": [[2.0, 4.0, 6.0, 8.0]]}]]


def test_a_step_of_an_ensemble_may_call_and_an_ensemble_may_be_called(place: TritonPlace) -> None:
    assert ask(place, "graph", plan(DOUBLE)) == [[{"y": [[2.0, 4.0, 6.0, 8.0]]}]]
    heard = ask(place, "asks_too", plan(call("graph", {"in": text(plan(DOUBLE))})))
    assert json.loads(heard[0][0]["out"][0]) == [[{"y": [[2.0, 4.0, 6.0, 8.0]]}]]


def test_a_model_without_a_free_instance_is_not_waited_for_in_its_own_course(place: TritonPlace) -> None:
    began = time.monotonic()
    code, words = error_of(ask(place, "asks", plan(call("asks", {"PLAN": text(plan(DOUBLE))}))))
    assert (code, "in the course of its own request" in words) == (UNSUPPORTED, True)
    around = plan(call("asks_too", {"PLAN": text(plan(call("asks", {"PLAN": text(plan(DOUBLE))})))}))
    inner = json.loads(ask(place, "asks", around)[0][0]["HEARD"][0])
    assert inner[0][0]["error"] == [UNSUPPORTED, words]
    assert time.monotonic() - began < 5


def test_calls_go_so_deep_and_no_deeper(place: TritonPlace) -> None:
    nested = plan(DOUBLE)
    for _ in range(8):
        nested = plan(call("deep", {"PLAN": text(nested)}))
    heard = ask(place, "deep", nested)
    for _ in range(8):
        heard = json.loads(heard[0][0]["HEARD"][0])
    code, words = error_of(heard)
    assert code == UNSUPPORTED
    assert "deep" in words


def test_a_calls_own_timeout_ends_it_and_not_its_caller(place: TritonPlace) -> None:
    began = time.monotonic()
    heard = ask(place, "asks", plan(told(parameters={"sleep": 15}, timeout=300_000), DOUBLE))
    assert time.monotonic() - began < 10
    assert heard[0][0]["error"] == [UNAVAILABLE, "Request timeout expired"]
    assert heard[1] == [{"y": [[2.0, 4.0, 6.0, 8.0]]}]


def test_the_callers_deadline_and_leaving_go_with_the_call(place: TritonPlace) -> None:
    slow = told(parameters={"sleep": 15}, request_id="late")
    with pytest.raises(InferenceServerException, match="timeout expired"):
        ask(place, "asks", plan(slow), timeout=500_000)
    until(lambda: "late cancelled: True" in place.log("told"), 10)
    found: list[Any] = []
    caller = stream(place, "streams", plan(told(parameters={"sleep": 15}, request_id="leaves")), found)
    time.sleep(0.5)
    caller.stop_stream(cancel_requests=True)
    until(lambda: "leaves cancelled: True" in place.log("told"), 10)


def test_sequences_go_on_over_calls(place: TritonPlace) -> None:
    inputs = {"A": ["float32", [[1]]]}
    steps = [call("remembers", inputs, correlation_id=name, flags=flags) for name in (7, "anna") for flags in (1, 0, 2)]
    heard = ask(place, "asks", plan(*steps))
    found = [json.loads(one[0]["TOLD"][0]) for one in heard]
    assert [(one["sequence"], one["flags"]) for one in found] == [
        (7, 1), (7, 0), (7, 2), ("anna", 1), ("anna", 0), ("anna", 2)
    ]  # fmt: skip


def test_the_trace_goes_along(place: TritonPlace) -> None:
    heard = ask(place, "asks", plan(told()), headers={"traceparent": TRACE})
    context = json.loads(json.loads(heard[0][0]["TOLD"][0])["trace"])
    assert context["traceparent"].split("-")[1] == TRACE.split("-")[1]


def test_many_callers_at_once_each_get_their_own(place: TritonPlace) -> None:
    def one(number: int) -> Any:
        given = call("double", {"x": ["float32", [[number] * 4]]})
        return ask(place, "gathers", plan(given, given))

    with ThreadPoolExecutor(6) as pool:
        for number, heard in enumerate(pool.map(one, range(30))):
            assert heard == [[{"y": [[2.0 * number] * 4]}]] * 2


def test_a_warm_up_sample_that_asks_others_is_passed_over(place: TritonPlace) -> None:
    assert "the warm-up sample 'through' asks other models, which cannot be asked yet" in place.log("relays")
    x = triton_grpc.InferInput("x", [1, 4], "FP32")
    x.set_data_from_numpy(np.array([[1, 2, 3, 4]], np.float32))
    assert place.grpc.infer("relays", [x], headers=HEADERS).as_numpy("y").tolist() == [[2, 4, 6, 8]]


def test_calls_belong_to_execute(place: TritonPlace) -> None:
    assert "in initialize: BLS is supported only during the 'execute' function." in place.log("asks")


def raw(given: dict[str, Any]) -> tuple[list[TensorHeader], bytes]:
    data = json.dumps(given).encode()
    body = len(data).to_bytes(4, "little") + data
    return [TensorHeader("PLAN", "BYTES", [1], len(body))], body


def test_a_gateway_that_dies_ends_the_call_and_the_replica_serves_on(place: TritonPlace) -> None:
    headers, body = raw(plan(DOUBLE))
    wire = place.replica("asks").connect()
    wire.send(Infer(1, 20_000, headers, hops=8), body)
    asked, tensors = wire.next()
    assert isinstance(asked, CallModel)
    assert (asked.model, asked.parents, len(tensors)) == ("double", [1], 16)
    wire.sock.close()
    assert ask(place, "asks", plan(DOUBLE)) == [[{"y": [[2.0, 4.0, 6.0, 8.0]]}]]


def test_a_gateway_that_passes_no_calls_on_is_not_asked_to(place: TritonPlace) -> None:
    headers, body = raw(plan(DOUBLE))
    wire = place.replica("asks").connect()
    wire.send(Infer(1, 20_000, headers), body)
    answer, told = wire.next()
    assert isinstance(answer, Answer)
    assert error_of(json.loads(bytes(told[4:])))[0] == UNSUPPORTED
    wire.sock.close()


def test_a_called_replica_that_dies_is_an_error_in_the_response(place: TritonPlace) -> None:
    """The last one here: the replica does not come back."""
    slow = told("mortal", parameters={"sleep": 15}, request_id="dies")
    killer = threading.Timer(1.0, place.replica("mortal").process.kill)
    killer.start()
    heard = ask(place, "asks", plan(slow, DOUBLE))
    killer.join()
    assert heard[0][0]["error"][0] == UNAVAILABLE
    assert heard[1] == [{"y": [[2.0, 4.0, 6.0, 8.0]]}]
    assert ask(place, "asks", plan(DOUBLE)) == [[{"y": [[2.0, 4.0, 6.0, 8.0]]}]]
