"""Silero VAD, a stateful model: is somebody speaking in these 512 samples (16 kHz)? From the package silero-vad.

`audio` FP32 [1, 512] in a sequence -> `speech` FP32 [1, 1], a probability. The model wants the 64 samples before the
chunk too; the graph gets two nodes that make them a second state, so that clients send each sample once.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

PACKAGE = "silero_vad"
REMEDY = "install the demo models: pip install --no-deps silero-vad==6.2.3"
CHUNK, CONTEXT, RATE = 512, 64, 16_000
SETTINGS: dict[str, Any] = {
    "max_batch_size": 32,
    "constants": {"sr": RATE},
    "sequence": {
        "strategy": "oldest",
        "max_idle_us": 60_000_000,
        "states": [
            {"input": "state", "output": "stateN", "datatype": "FP32", "shape": [2, 128], "batch_axis": 1},
            {"input": "context", "output": "contextN", "datatype": "FP32", "shape": [CONTEXT]},
        ],
    },
}


def make(folder: Path) -> dict[str, Any]:
    """Writes model.onnx into `folder` and settings.json beside it. Raises SystemExit when the package is not there."""
    import onnx

    onnx.save(with_context(onnx.load(str(source()))), str(folder / "model.onnx"))
    (folder.parent / "settings.json").write_text(json.dumps(SETTINGS))
    return {"settings": str(folder.parent / "settings.json")}


def with_context(model: Any) -> Any:
    """The graph with `audio` [batch, 512] and `context` [batch, 64] for `input`, and `contextN`, the last 64 samples."""
    from onnx import TensorProto, helper

    def value(name: str, *shape: int | str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))

    graph = model.graph
    bounds = [helper.make_tensor(n, TensorProto.INT64, [1], [v]) for n, v in (("from", CHUNK - CONTEXT), ("to", CHUNK))]
    axis = helper.make_tensor("along", TensorProto.INT64, [1], [1])
    graph.initializer.extend([*bounds, axis])
    first = [
        helper.make_node("Concat", ["context", "audio"], ["input"], axis=1),
        helper.make_node("Slice", ["audio", "from", "to", "along"], ["contextN"]),
    ]
    nodes = [*first, *graph.node, helper.make_node("Identity", ["output"], ["speech"])]
    kept = [given for given in graph.input if given.name != "input"]
    states = [given for given in graph.output if given.name != "output"]
    replaced = (
        (graph.node, nodes),
        (graph.input, [value("audio", "batch", CHUNK), value("context", "batch", CONTEXT), *kept]),
        (graph.output, [value("speech", "batch", 1), value("contextN", "batch", CONTEXT), *states]),
    )
    for field, values in replaced:
        copies = [type(one).FromString(one.SerializeToString()) for one in values]
        del field[:]
        field.extend(copies)
    return model


def source() -> Path:
    """Found without importing the package, which would load torch."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"the package {PACKAGE} is not installed; {REMEDY}")
    return Path(spec.submodule_search_locations[0]) / "data" / "silero_vad_16k_op15.onnx"


def sample_input() -> dict[str, Any]:
    """An Open Inference Protocol request: the first chunk of a sequence, silent."""
    audio = {"name": "audio", "datatype": "FP32", "shape": [1, CHUNK], "data": [0.0] * CHUNK}
    return {"inputs": [audio], "parameters": {"sequence_id": 1, "sequence_start": True}}
