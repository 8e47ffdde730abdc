"""Triton models that call others: what they call, and how, is in the request, and what they heard in the answer.

An input PLAN holds JSON: {"calls": [{"model", "inputs": {name: [dtype, values]}, **what InferenceRequest takes}], "how"}.
The output HEARD has for each call the list of its responses: {"error": [code, message]} or {name: values}.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc

from tests.support import triton
from tests.support.triton_place import HEADERS, TritonPlace

CONFIG = """
backend: "python"
input [ { name: "PLAN" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "HEARD" data_type: TYPE_STRING dims: [ 1 ] } ]
"""
ASKING = '''
import asyncio
import json
import threading
import numpy as np
import triton_python_backend_utils as pb_utils


def plan_of(request):
    return json.loads(pb_utils.get_input_tensor_by_name(request, "PLAN").as_numpy()[0])


def request_of(call):
    call = dict(call)
    inputs = [pb_utils.Tensor(n, np.array(v, dtype=t)) for n, (t, v) in call.pop("inputs", {}).items()]
    return pb_utils.InferenceRequest(
        model_name=call.pop("model"), inputs=inputs, requested_output_names=call.pop("outputs", []), **call)


def plain(response):
    if response.has_error():
        return {"error": [response.error().code(), response.error().message()]}
    found = {one.name(): one.as_numpy().tolist() for one in response.output_tensors()}
    return {n: json.loads(json.dumps(v, default=bytes.decode)) for n, v in found.items()}


def answer(heard):
    return pb_utils.InferenceResponse([pb_utils.Tensor("HEARD", np.array([json.dumps(heard)], dtype=object))])


def heard_by(plan):
    """What the calls heard, made one after the other."""
    heard = []
    for call in plan["calls"]:
        if plan.get("how") == "many":
            heard.append([plain(one) for one in request_of(call).exec(decoupled=True)])
        elif plan.get("how") == "first":
            heard.append([plain(next(iter(request_of(call).exec(decoupled=True))))])
        else:
            heard.append([plain(request_of(call).exec())])
    return heard
'''
PLAIN = """
class TritonPythonModel:
    def initialize(self, args):
        try:
            pb_utils.InferenceRequest(model_name="double").exec()
        except pb_utils.TritonModelException as error:
            pb_utils.Logger.log_info(f"in initialize: {error}")

    def execute(self, requests):
        return [answer(self.of(plan_of(one))) for one in requests]

    def of(self, plan):
        if plan.get("how") != "thread":
            return heard_by(plan)
        found = []
        worker = threading.Thread(target=lambda: found.append(heard_by(plan)))
        worker.start()
        worker.join()
        return found[0]
"""
ASYNC = """
class TritonPythonModel:
    async def execute(self, requests):
        return [answer(await self.of(plan_of(one))) for one in requests]

    async def of(self, plan):
        waits = [request_of(call).async_exec(decoupled=plan.get("how") == "many") for call in plan["calls"]]
        found = await asyncio.gather(*waits)
        return [[plain(one) for one in part] if plan.get("how") == "many" else [plain(part)] for part in found]
"""
STREAMING = """
class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            threading.Thread(target=self.answer, args=(request.get_response_sender(), plan_of(request))).start()

    def answer(self, sender, plan):
        for call in plan["calls"]:
            sender.send(answer(heard_by({"calls": [call], "how": plan.get("how")})))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
TOLD_CONFIG = """
backend: "python"
input [ { name: "A" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "TOLD" data_type: TYPE_STRING dims: [ 1 ] } ]
%s
"""
TOLD = """
import json
import time
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        said = json.loads(request.parameters())
        until = time.monotonic() + said.get("sleep", 0)
        while time.monotonic() < until and not request.is_cancelled():
            time.sleep(0.01)
        pb_utils.Logger.log_warn(f"{request.request_id()} cancelled: {request.is_cancelled()}")
        if "refuse" in said:
            error = pb_utils.TritonError(said["refuse"], pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        told = {"id": request.request_id(), "sequence": request.correlation_id(), "flags": request.flags(),
                "parameters": said, "trace": request.trace().get_context()}
        return pb_utils.InferenceResponse([pb_utils.Tensor("TOLD", np.array([json.dumps(told)], dtype=object))])
"""
ENDLESS = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender, at = request.get_response_sender(), 0
            while not sender.is_cancelled():
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("I", np.array([at], dtype=np.int32))]))
                at += 1
            pb_utils.Logger.log_warn(f"left after {at}")
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
ENSEMBLE = """
platform: "ensemble"
input [ { name: "in" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "out" data_type: TYPE_STRING dims: [ 1 ] } ]
ensemble_scheduling { step { model_name: "asks" model_version: -1
  input_map { key: "PLAN" value: "in" } output_map { key: "HEARD" value: "out" } } }
"""


RELAYS_CONFIG = """
backend: "python"
input [ { name: "x" data_type: TYPE_FP32 dims: [ 1, 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 1, 4 ] } ]
model_warmup { name: "through" inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 1, 4 ] zero_data: true } } }
"""
RELAYS = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        found = pb_utils.InferenceRequest(
            model_name="double", inputs=request.inputs(), requested_output_names=["y"]).exec()
        if found.has_error():
            raise pb_utils.TritonModelException(found.error().message())
        return pb_utils.InferenceResponse(found.output_tensors())
"""


def fill(root: Path) -> Path:
    triton.put(root, "double", triton.ONNX_CONFIG, {"1/model.onnx": triton.onnx_bytes(2.0)})
    triton.put(root, "asks", CONFIG, {"1/model.py": ASKING + PLAIN})
    triton.put(root, "asks_too", CONFIG, {"1/model.py": ASKING + PLAIN})
    triton.put(root, "gathers", CONFIG, {"1/model.py": ASKING + ASYNC})
    triton.put(root, "deep", CONFIG + "instance_group [ { count: 10 kind: KIND_CPU } ]", {"1/model.py": ASKING + PLAIN})
    streams = CONFIG + "model_transaction_policy { decoupled: true }"
    triton.put(root, "streams", streams, {"1/model.py": ASKING + STREAMING})
    triton.put(root, "told", TOLD_CONFIG % "", {"1/model.py": TOLD})
    stateful = "max_batch_size: 2 sequence_batching { oldest { } }"
    triton.put(root, "remembers", TOLD_CONFIG % stateful, {"1/model.py": TOLD})
    triton.put(root, "mortal", TOLD_CONFIG % "", {"1/model.py": TOLD})
    triton.put(root, "foreign", TOLD_CONFIG % "", {"1/model.py": TOLD})
    triton.put(root, "count", triton.COUNT_CONFIG, {"1/model.py": triton.COUNT})
    triton.put(root, "endless", triton.COUNT_CONFIG, {"1/model.py": ENDLESS})
    triton.put(root, "relays", RELAYS_CONFIG, {"1/model.py": RELAYS})
    triton.put(root, "graph", ENSEMBLE, {})
    return root


def call(model: str, inputs: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"model": model, "inputs": inputs or {}, **more}


def told(model: str = "told", **more: Any) -> dict[str, Any]:
    """A call of a model that answers what it was told."""
    return call(model, {"A": ["float32", [1]]}, **more)


def plan(*calls: dict[str, Any], how: str = "") -> dict[str, Any]:
    return {"calls": list(calls), "how": how}


def text(value: dict[str, Any]) -> list[Any]:
    """A plan as the input of a call."""
    return ["object", [json.dumps(value)]]


def ask(place: TritonPlace, model: str, given: dict[str, Any], **more: Any) -> list[Any]:
    """What the model heard. Raises InferenceServerException."""
    name, out = ("in", "out") if model == "graph" else ("PLAN", "HEARD")
    one = triton_grpc.InferInput(name, [1], "BYTES")
    one.set_data_from_numpy(np.array([json.dumps(given)], dtype=object))
    headers = HEADERS | more.pop("headers", {})
    heard: list[Any] = json.loads(place.grpc.infer(model, [one], headers=headers, **more).as_numpy(out)[0])
    return heard


def stream(
    place: TritonPlace, model: str, given: dict[str, Any], found: list[Any]
) -> triton_grpc.InferenceServerClient:
    """A stream whose answers come to `found`; to be closed by the caller."""
    caller = triton_grpc.InferenceServerClient(place.gateway.grpc_address)
    caller.start_stream(lambda result, error: found.append(error or result), headers=HEADERS)
    one = triton_grpc.InferInput("PLAN", [1], "BYTES")
    one.set_data_from_numpy(np.array([json.dumps(given)], dtype=object))
    caller.async_stream_infer(model, [one])
    return caller
