"""Stateful models that one can calculate by hand: sums over a sequence, with the state outside and inside the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from inference.protocol.oip import Signature, TensorSpec

STATE = {"input": "sum_in", "output": "sum_out", "datatype": "FP32", "shape": [1]}
START = {"name": "START", "kind": "start"}
READY = {"name": "READY", "kind": "ready"}
NAME = {"name": "CORRID", "kind": "correlation_id", "datatype": "UINT64"}


def summing_onnx(folder: Path) -> Path:
    """model.onnx: total = sum_in + x (both [n, 1]), sum_out = total. Its state is the server's to keep."""
    import onnx
    from onnx import TensorProto, helper

    def value(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1])

    nodes = [
        helper.make_node("Add", ["sum_in", "x"], ["total"]),
        helper.make_node("Identity", ["total"], ["sum_out"]),
    ]
    graph = helper.make_graph(nodes, "sum", [value("x"), value("sum_in")], [value("total"), value("sum_out")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    return folder


def silero_alone(session: Any, frames: Any) -> Any:
    """Speech probabilities by onnxruntime alone: 64 samples of context, one speaker, frame by frame."""
    state, context, found = np.zeros((2, 1, 128), "f4"), np.zeros((1, 64), "f4"), []
    for frame in frames[:, None]:
        given = {"input": np.concatenate([context, frame], 1), "state": state, "sr": np.array(16_000, "i8")}
        probability, state = session.run(["output", "stateN"], given)
        context = frame[:, -64:]
        found.append(float(probability[0, 0]))
    return np.array(found)


def silero_session() -> Any:
    """The package's own graph, untouched."""
    import onnxruntime

    from serinus.demo.vad import source

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(source()), options, providers=["CPUExecutionProvider"])


class SummingModel:
    """Keeps a sum for each row of its batch, as Triton's stateful backends do: START clears it, READY says who counts.

    `passes` notes what came, as (x, start, ready, corrid) by row; an x of 13 raises.
    """

    def __init__(self, largest: int = 4) -> None:
        one = [-1, 1]
        self.signature = Signature(
            inputs=[
                TensorSpec("x", "FP32", one),
                TensorSpec("START", "FP32", one),
                TensorSpec("READY", "FP32", one),
                TensorSpec("CORRID", "UINT64", one),
            ],
            outputs=[TensorSpec("total", "FP32", one)],
            max_batch_size=largest,
        )
        self.sums = np.zeros((largest, 1), "f4")
        self.passes: list[list[tuple[float, ...]]] = []

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        columns = [inputs[name][:, 0].tolist() for name in ("x", "START", "READY", "CORRID")]
        self.passes.append(list(zip(*columns, strict=True)))
        if (inputs["x"][inputs["READY"] > 0] == 13).any():
            raise RuntimeError("asked to raise")
        rows = len(inputs["x"])
        sums, ready = self.sums[:rows], inputs["READY"] > 0
        sums[inputs["START"] > 0] = 0
        sums[ready] += inputs["x"][ready]
        return {"total": sums.copy()}

    def close(self) -> None:
        """Nothing is held."""
