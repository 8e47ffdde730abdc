"""Model repositories as Triton's users have them, made in a folder: real ONNX, TorchScript and Python models."""

from __future__ import annotations

import textwrap
from pathlib import Path

ONNX_CONFIG = """
name: "{name}"
platform: "onnxruntime_onnx"
max_batch_size: 8
input [ {{ name: "x" data_type: TYPE_FP32 dims: [ 4 ] }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [ 4 ] }} ]
dynamic_batching {{ preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 500 }}
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
"""
ENSEMBLE_CONFIG = """
name: "{name}"
platform: "ensemble"
max_batch_size: 8
input [ {{ name: "first" data_type: TYPE_FP32 dims: [ 4 ] }} ]
output [ {{ name: "last" data_type: TYPE_FP32 dims: [ 4 ] }} ]
ensemble_scheduling {{
  step [
    {{ model_name: "scaled" model_version: -1
      input_map {{ key: "x" value: "first" }} output_map {{ key: "y" value: "between" }} }},
    {{ model_name: "tripled" model_version: 1
      input_map {{ key: "x" value: "between" }} output_map {{ key: "y" value: "last" }} }}
  ]
}}
"""
NESTED_CONFIG = """
name: "{name}"
platform: "ensemble"
max_batch_size: 8
input [ {{ name: "start" data_type: TYPE_FP32 dims: [ 4 ] }} ]
output [ {{ name: "end" data_type: TYPE_FP32 dims: [ 4 ] }} ]
ensemble_scheduling {{
  step [
    {{ model_name: "chain" model_version: -1
      input_map {{ key: "first" value: "start" }} output_map {{ key: "last" value: "between" }} }},
    {{ model_name: "scaled" model_version: -1
      input_map {{ key: "x" value: "between" }} output_map {{ key: "y" value: "end" }} }}
  ]
}}
"""
TORCH_CONFIG = """
name: "{name}"
backend: "pytorch"
max_batch_size: 4
input [
  { name: "INPUT__0" data_type: TYPE_FP32 dims: [ 3 ] },
  { name: "INPUT__1" data_type: TYPE_FP32 dims: [ 3 ] }
]
output [
  { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ 3 ] },
  { name: "OUTPUT__1" data_type: TYPE_FP32 dims: [ 3 ] }
]
"""
ADD_SUB_CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: 0
input [
  { name: "INPUT0" data_type: TYPE_FP32 dims: [ 4 ] },
  { name: "INPUT1" data_type: TYPE_FP32 dims: [ 4 ] }
]
output [
  { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 4 ] },
  { name: "OUTPUT1" data_type: TYPE_FP32 dims: [ 4 ] }
]
parameters: { key: "scale" value: { string_value: "2" } }
"""
ADD_SUB = """
import json
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.config = json.loads(args["model_config"])
        self.scale = float(self.config["parameters"]["scale"]["string_value"])
        out = pb_utils.get_output_config_by_name(self.config, "OUTPUT0")
        self.dtype = pb_utils.triton_string_to_numpy(out["data_type"])
        pb_utils.Logger.log_info("ready")

    def execute(self, requests):
        responses = []
        for request in requests:
            a = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
            b = pb_utils.get_input_tensor_by_name(request, "INPUT1").as_numpy()
            if (a < 0).any():
                responses.append(pb_utils.InferenceResponse(error=pb_utils.TritonError(
                    "INPUT0 must not be negative", pb_utils.TritonError.INVALID_ARG)))
                continue
            responses.append(pb_utils.InferenceResponse([
                pb_utils.Tensor("OUTPUT0", ((a + b) * self.scale).astype(self.dtype)),
                pb_utils.Tensor("OUTPUT1", (a - b).astype(self.dtype)),
            ]))
        return responses

    def finalize(self):
        pass
"""
COUNT_CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: 0
model_transaction_policy { decoupled: true }
input [ { name: "N" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "I" data_type: TYPE_INT32 dims: [ 1 ] } ]
"""
COUNT = '''
import threading
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Answers 0, 1, ... N-1, each by itself, from a thread of its own."""

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            count = int(pb_utils.get_input_tensor_by_name(request, "N").as_numpy()[0])
            threading.Thread(target=self.count, args=(sender, count), daemon=True).start()
        return None

    def count(self, sender, count):
        for number in range(count):
            if sender.is_cancelled():
                break
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("I", np.array([number], dtype=np.int32))]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
'''


def put(root: Path, name: str, config: str | None, files: dict[str, str | bytes]) -> Path:
    """A model's folder: config.pbtxt (with the name in it) and its files."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.pbtxt").write_text(config.replace("{name}", name).replace("{{", "{").replace("}}", "}"))
    for path, content in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(textwrap.dedent(content).encode() if isinstance(content, str) else content)
    return folder


def onnx_bytes(factor: float = 2.0, *, batch: str | int = "n", width: int = 4) -> bytes:
    """y = factor * x, float32 [batch, width]."""
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "f"], ["y"])],
        "scaled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, width])],
        [helper.make_tensor("f", TensorProto.FLOAT, [], [factor])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    return model.SerializeToString()


def onnx_outside(path: Path, location: str, factor: float = 2.0) -> Path:
    """As `onnx_bytes`, with its weights in the file `location`, seen from the model's folder."""
    import onnx

    (path.parent / location).parent.mkdir(parents=True, exist_ok=True)
    model = onnx.load_from_string(onnx_bytes(factor))
    for tensor in model.graph.initializer:  # only raw data is put elsewhere
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    onnx.save_model(model, str(path), save_as_external_data=True, location=location, size_threshold=0)
    assert (path.parent / location).stat().st_size
    return path


def torchscript(path: Path) -> Path:
    """forward(a, b) -> (a + b, a - b)."""
    import torch

    class AddSub(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return a + b, a - b

    path.parent.mkdir(parents=True, exist_ok=True)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(AddSub(), (torch.ones(1, 3), torch.ones(1, 3))).save(str(path))
    return path
