"""Models of a Triton repository under Triton's own clients: real replicas in their sandboxes behind a real gateway."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from tests.support import triton
from tests.support.gateway_house import until
from tests.support.triton_place import HEADERS, TritonPlace

TOLD_CONFIG = """
backend: "python"
input [
  { name: "A" data_type: TYPE_FP32 dims: [ -1 ] },
  { name: "B" data_type: TYPE_FP32 dims: [ -1 ] optional: true }
]
output [ { name: "TOLD" data_type: TYPE_STRING dims: [ 1 ] }, { name: "SUM" data_type: TYPE_FP32 dims: [ 1 ] } ]
%s
"""
TOLD = """
import json
import numpy as np
import triton_python_backend_utils as pb_utils
from .beside import total


class TritonPythonModel:
    def is_ready(self):
        return True

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        pb_utils.Logger.log_warn("asked " + request.request_id())
        told = {
            "id": request.request_id(), "sequence": request.correlation_id(), "flags": request.flags(),
            "timeout": request.timeout(), "parameters": json.loads(request.parameters()),
            "outputs": sorted(request.requested_output_names()), "model": request.model_name(),
            "version": request.model_version(), "cancelled": request.is_cancelled(),
            "trace": request.trace().get_context(), "inputs": sorted(one.name() for one in request.inputs()),
        }
        found = [
            pb_utils.Tensor("TOLD", np.array([json.dumps(told)], dtype=object)),
            pb_utils.Tensor("SUM", total(request.inputs())),
        ]
        return pb_utils.InferenceResponse(found, parameters={"seen": len(requests_of(request)), "by": "told"})


def requests_of(request):
    return request.inputs()
"""
BESIDE = """
import numpy as np


def total(tensors):
    return np.array([sum(float(one.as_numpy().sum()) for one in tensors)], dtype=np.float32)
"""
GRAPH_CONFIG = """
platform: "ensemble"
max_batch_size: 8
input [ { name: "first" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "last" data_type: TYPE_FP32 dims: [ 4 ] } ]
ensemble_scheduling { step { model_name: "delayed" model_version: -1
  input_map { key: "x" value: "first" } output_map { key: "y" value: "last" } } }
"""
WAITS_CONFIG = """
backend: "python"
model_transaction_policy { decoupled: true }
input [ { name: "N" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "LEFT" data_type: TYPE_INT32 dims: [ 1 ] } ]
"""
WAITS = """
import asyncio
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    left = 0

    async def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            if pb_utils.get_input_tensor_by_name(request, "N").as_numpy()[0]:
                sender.send(self.answer())
                while not sender.is_cancelled():
                    await asyncio.sleep(0.02)
                self.left += 1
                sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            else:
                sender.send(self.answer(), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def answer(self):
        return pb_utils.InferenceResponse([pb_utils.Tensor("LEFT", np.array([self.left], dtype=np.int32))])
"""
SEQUENCE_CONFIG = """
platform: "onnxruntime_onnx"
max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "total" data_type: TYPE_FP32 dims: [ 1 ] }, { name: "who" data_type: %(id)s dims: [ 1 ] },
         { name: "flags" data_type: TYPE_INT32 dims: [ 3 ] } ]
sequence_batching {
  max_sequence_idle_microseconds: 60000000
  %(strategy)s
  control_input [
    { name: "START" control [ { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } ] },
    { name: "END" control [ { kind: CONTROL_SEQUENCE_END int32_false_true: [ 0, 1 ] } ] },
    { name: "READY" control [ { kind: CONTROL_SEQUENCE_READY int32_false_true: [ 0, 1 ] } ] },
    { name: "CORRID" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: %(id)s } ] }
  ]
  state [ { input_name: "sum_in" output_name: "sum_out" data_type: TYPE_FP32 dims: [ 1 ]
            initial_state { name: "hundred" data_type: TYPE_FP32 dims: [ 1 ] %(initial)s } } ]
}
"""


def sequence_onnx(identity: int) -> bytes:
    """total = sum_in + x (and so is the state); flags = START, END, READY; who = CORRID."""
    from onnx import TensorProto, helper

    def value(name: str, kind: int = TensorProto.FLOAT, width: int = 1) -> Any:
        return helper.make_tensor_value_info(name, kind, ["n", width])

    switches = ["START", "END", "READY"]
    nodes = [
        helper.make_node("Add", ["sum_in", "x"], ["total"]),
        helper.make_node("Identity", ["total"], ["sum_out"]),
        helper.make_node("Concat", switches, ["flags"], axis=1),
        helper.make_node("Identity", ["CORRID"], ["who"]),
    ]
    inputs = [value("x"), value("sum_in"), value("CORRID", identity)]
    inputs += [value(name, TensorProto.INT32) for name in switches]
    outputs = [value("total"), value("sum_out"), value("who", identity), value("flags", TensorProto.INT32, 3)]
    graph = helper.make_graph(nodes, "sequence", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    found: bytes = model.SerializeToString()
    return found


def fill(root: Path) -> Path:
    from onnx import TensorProto

    triton.put(root, "told", TOLD_CONFIG % "", {"1/model.py": TOLD, "1/beside.py": BESIDE})
    stateful = "max_batch_size: 2 sequence_batching { oldest { } }"
    triton.put(root, "told_sequence", TOLD_CONFIG % stateful, {"1/model.py": TOLD, "1/beside.py": BESIDE})
    triton.put(root, "waits", WAITS_CONFIG, {"1/model.py": WAITS})
    numbers = {"id": "TYPE_UINT64", "strategy": "direct { }", "initial": 'data_file: "hundred"'}
    hundred = np.array([100], "<f4").tobytes()
    files = {"1/model.onnx": sequence_onnx(TensorProto.UINT64), "initial_state/hundred": hundred}
    triton.put(root, "numbers", SEQUENCE_CONFIG % numbers, files)
    names = {"id": "TYPE_STRING", "strategy": "oldest { }", "initial": "zero_data: true"}
    triton.put(root, "names", SEQUENCE_CONFIG % names, {"1/model.onnx": sequence_onnx(TensorProto.STRING)})
    cached = triton.ONNX_CONFIG + "response_cache { enable: true }"
    triton.put(root, "cached", cached, {"1/model.onnx": triton.onnx_bytes(2.0)})
    triton.put(root, "delayed", triton.ONNX_CONFIG, {"1/model.onnx": triton.onnx_bytes(3.0)})
    triton.put(root, "graph", GRAPH_CONFIG, {})
    triton.onnx_outside(triton.put(root, "outside", triton.ONNX_CONFIG, {"1/n": ""}) / "1" / "model.onnx", "w/f", 7.0)
    return root


@pytest.fixture(scope="module")
def place() -> Iterator[TritonPlace]:
    with tempfile.TemporaryDirectory(prefix="triton-") as name:
        work = Path(name)
        found = TritonPlace(work, fill(work / "models"), {"delayed": {"TRITONSERVER_DELAY_SCHEDULER": "3"}})
        yield found
        found.close()


def given(kind: Any, name: str, array: np.ndarray[Any, Any]) -> Any:
    one = kind.InferInput(name, list(array.shape), {"f": "FP32", "i": "INT32"}[array.dtype.kind])
    one.set_data_from_numpy(array)
    return one


def ask(place: TritonPlace, door: str, model: str, *, wanted: tuple[str, ...] = (), **more: Any) -> Any:
    """Inputs are the arrays among the keywords; the rest goes to the client as it is."""
    kind: Any = {"http": triton_http, "grpc": triton_grpc}[door]
    arrays = {name: more.pop(name) for name in list(more) if isinstance(more[name], np.ndarray)}
    inputs = [given(kind, name, array) for name, array in arrays.items()]
    outputs = [kind.InferRequestedOutput(name) for name in wanted] or None
    more["headers"] = HEADERS | more.get("headers", {})
    return getattr(place, door).infer(model, inputs, outputs=outputs, **more)


def floats(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values, np.float32)


@pytest.mark.parametrize("door", ["http", "grpc"])
def test_a_python_model_is_told_what_its_caller_said(place: TritonPlace, door: str) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = ask(place, door, "told", A=floats(1, 2), B=floats(3), wanted=("TOLD",), request_id=f"r-{door}", timeout=5_000_000,
                 parameters={"tone": "low", "n": 3, "on": True}, headers={"traceparent": trace})  # fmt: skip
    told = json.loads(answer.as_numpy("TOLD")[0])
    context = json.loads(told.pop("trace"))
    assert context["traceparent"].split("-")[1] == trace.split("-")[1]
    assert told == {
        "id": f"r-{door}", "sequence": 0, "flags": 0, "timeout": 5_000_000, "outputs": ["TOLD"], "model": "told", "version": 1,
        "parameters": {"tone": "low", "n": 3, "on": True}, "cancelled": False, "inputs": ["A", "B"],
    }  # fmt: skip
    assert answer.as_numpy("SUM") is None
    assert f"asked r-{door}" in place.log("told")
    response = answer.get_response()
    said = response["parameters"] if door == "http" else response.parameters
    assert said["by"] == "told" if door == "http" else said["by"].string_param == "told"


@pytest.mark.parametrize("door", ["http", "grpc"])
def test_an_optional_input_may_be_left_out_and_no_other(place: TritonPlace, door: str) -> None:
    answer = ask(place, door, "told", A=floats(1, 2))
    assert json.loads(answer.as_numpy("TOLD")[0])["inputs"] == ["A"]
    assert json.loads(answer.as_numpy("TOLD")[0])["outputs"] == ["SUM", "TOLD"]
    assert answer.as_numpy("SUM").tolist() == [3.0]
    with pytest.raises(
        InferenceServerException,
        match=r"expected between 1 and 2 inputs but got 1 .*missing required input\(s\) \['A'\]",
    ):
        ask(place, door, "told", B=floats(1))


def test_the_config_says_which_inputs_are_optional(place: TritonPlace) -> None:
    config = place.http.get_model_config("told", headers=HEADERS)
    assert [(one["name"], one["optional"]) for one in config["input"]] == [("A", False), ("B", True)]


@pytest.mark.parametrize(("door", "name"), [("http", 7), ("grpc", "speaker-1")])
def test_a_stateful_python_model_knows_whose_request_it_has(place: TritonPlace, door: str, name: int | str) -> None:
    steps = [(True, False, 1), (False, False, 0), (False, True, 2)]
    for start, end, flags in steps:
        answer = ask(place, door, "told_sequence", A=floats(1).reshape(1, 1),
                     sequence_id=name, sequence_start=start, sequence_end=end)  # fmt: skip
        told = json.loads(answer.as_numpy("TOLD").ravel()[0])
        assert (told["sequence"], told["flags"]) == (name, flags)


def test_execute_may_wait_for_one_request_while_it_serves_another_and_is_told_who_left(place: TritonPlace) -> None:
    found: list[Any] = []
    before = left(place)
    with triton_grpc.InferenceServerClient(place.gateway.grpc_address) as caller:
        caller.start_stream(lambda result, error: found.append(error or result), headers=HEADERS)
        caller.async_stream_infer("waits", [given(triton_grpc, "N", np.array([1], np.int32))])
        until(lambda: found, 20)
        assert left(place) == before  # answered while the first one waits
        caller.stop_stream(cancel_requests=True)
    until(lambda: left(place) == before + 1, 20)


def left(place: TritonPlace) -> int:
    found: list[Any] = []
    with triton_grpc.InferenceServerClient(place.gateway.grpc_address) as caller:
        caller.start_stream(lambda result, error: found.append(error or result), headers=HEADERS)
        caller.async_stream_infer("waits", [given(triton_grpc, "N", np.array([0], np.int32))])
        until(lambda: found, 20)
        caller.stop_stream()
    assert not isinstance(found[0], Exception), found[0]
    return int(found[0].as_numpy("LEFT")[0])


@pytest.mark.parametrize("door", ["http", "grpc"])
@pytest.mark.parametrize(
    ("model", "ids", "initial"),
    [("numbers", [11, 2**63 - 1], 100.0), ("names", ["anna", "bert"], 0.0)],
    ids=["direct", "oldest"],
)
def test_controls_and_implicit_state_of_each_sequence(
    place: TritonPlace, door: str, model: str, ids: list[Any], initial: float
) -> None:
    totals = dict.fromkeys(ids, initial)
    for step in range(3):
        for at, name in enumerate(ids):
            totals[name] += at + step
            answer = ask(place, door, model, x=floats(at + step).reshape(1, 1),
                         sequence_id=name, sequence_start=step == 0, sequence_end=step == 2)  # fmt: skip
            assert answer.as_numpy("total").tolist() == [[totals[name]]]
            assert answer.as_numpy("flags").tolist() == [[int(step == 0), int(step == 2), 1]]
            who = answer.as_numpy("who")[0, 0]
            assert (who.decode() if isinstance(who, bytes) else int(who)) == name
    with pytest.raises(InferenceServerException, match="must specify the START flag"):
        ask(place, door, model, x=floats(1).reshape(1, 1), sequence_id=ids[0])


def test_numbers_are_asked_for_where_the_model_is_given_numbers(place: TritonPlace) -> None:
    with pytest.raises(InferenceServerException, match="takes correlation IDs that are numbers, not 'anna'"):
        ask(place, "grpc", "numbers", x=floats(1).reshape(1, 1), sequence_id="anna", sequence_start=True)


def test_an_onnx_model_with_its_weights_in_another_file_answers(place: TritonPlace) -> None:
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    assert ask(place, "http", "outside", x=x).as_numpy("y").tolist() == (7 * x).tolist()


def test_the_cache_is_counted_where_tritons_users_look(place: TritonPlace) -> None:
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    for value in (x, x, x + 1):
        assert ask(place, "http", "cached", x=value).as_numpy("y").tolist() == (2 * value).tolist()
    (stats,) = place.http.get_inference_statistics("cached", headers=HEADERS)["model_stats"]
    counts = {name: stats["inference_stats"][name]["count"] for name in ("cache_hit", "cache_miss", "success")}
    assert counts == {"cache_hit": 1, "cache_miss": 2, "success": 3}
    assert stats["execution_count"] == 2
    label = 'nv_cache_num_hits_per_model{model="cached",version="1"} 1'
    until(lambda: label in place.gateway.get("/metrics").text, 15)


def test_the_scheduler_waits_for_as_many_requests_as_tritons_variable_says(place: TritonPlace) -> None:
    """Two of them are steps of an ensemble: a step is batched with everybody else's requests."""
    x = np.ones((1, 4), np.float32)
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask, place, "grpc", "graph", first=x) for _ in range(2)]
        asked.append(pool.submit(ask, place, "grpc", "delayed", x=x))
        found = [one.result() for one in asked]
    assert [one.as_numpy("last").tolist() for one in found[:2]] == [[[3.0] * 4]] * 2
    assert found[2].as_numpy("y").tolist() == [[3.0] * 4]
    (stats,) = place.http.get_inference_statistics("delayed", headers=HEADERS)["model_stats"]
    assert [(one["batch_size"], one["compute_infer"]["count"]) for one in stats["batch_stats"]] == [(3, 1)]
