"""The configuration that clients of Triton read, from signature and settings."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import msgspec
import pytest

from inference.gateway.model_config import model_config
from inference.protocol.oip import DATATYPES, Signature, TensorSpec
from inference.protocol.routes import PipelineRoute, StepRoute, VariantRoute
from inference.protocol.settings import (
    ControlInput,
    QueuePolicy,
    RuntimeSettings,
    SequenceSettings,
    StateTensor,
    WarmupSample,
)

SIGNATURE = Signature(
    [TensorSpec("x", "FP32", [-1, 16]), TensorSpec("t", "BYTES", [-1, 1])],
    [TensorSpec("y", "BF16", [-1, 4])],
    max_batch_size=64,
    platform="onnxruntime_onnx",
    platforms=["cuda"],
)


def config(settings=None, signature: Signature = SIGNATURE, pipeline=None):
    variant = VariantRoute(3, "primary", 10_000, signature, [], settings or RuntimeSettings(), pipeline)
    found = model_config("mlp", variant)
    assert msgspec.json.decode(msgspec.json.encode(found)) == found
    return found


def test_names_dimensions_and_enums_are_the_protos() -> None:
    found = config()
    assert (found["name"], found["platform"], found["backend"]) == ("mlp", "onnxruntime_onnx", "onnxruntime")
    assert found["max_batch_size"] == 64
    assert [(one["name"], one["data_type"], one["dims"]) for one in found["input"]] == [
        ("x", "TYPE_FP32", [16]),
        ("t", "TYPE_STRING", [1]),
    ]
    assert [(one["name"], one["data_type"], one["dims"]) for one in found["output"]] == [("y", "TYPE_BF16", [4])]
    assert found["instance_group"] == [{"name": "mlp", "kind": "KIND_GPU", "count": 1}]
    assert found["version_policy"] == {"specific": {"versions": [3]}}
    assert found["model_transaction_policy"] == {"decoupled": False}
    assert found["response_cache"] == {"enable": False}


def test_without_a_batch_dimension_all_dimensions_are_told_and_nothing_is_batched() -> None:
    signature = Signature([TensorSpec("x", "INT8", [-1, 3])], [TensorSpec("y", "UINT64", [2])])
    found = config(signature=signature)
    assert found["max_batch_size"] == 0
    assert found["input"][0]["dims"] == [-1, 3]
    assert not {"dynamic_batching", "sequence_batching", "ensemble_scheduling"} & found.keys()


def test_dynamic_batching_carries_its_settings_as_numbers() -> None:
    policy = QueuePolicy(max_queue_size=7, default_timeout_us=9, allow_timeout_override=True, timeout_action="delay")
    found = config(
        RuntimeSettings(
            preferred_batch_sizes=[4, 8], max_queue_delay_us=100, preserve_ordering=True, priority_levels=2,
            default_priority_level=2, priority_policies={"1": policy}, decoupled=True, response_cache_bytes=1,
            parameters={"k": "v"}, instances=3,
        )
    )  # fmt: skip
    batching = found["dynamic_batching"]
    assert batching["preferred_batch_size"] == [4, 8]
    assert (batching["max_queue_delay_microseconds"], batching["priority_levels"]) == (100, 2)
    assert batching["priority_queue_policy"] == {
        "1": {
            "timeout_action": "DELAY",
            "default_timeout_microseconds": 9,
            "allow_timeout_override": True,
            "max_queue_size": 7,
        }
    }
    assert batching["default_queue_policy"]["timeout_action"] == "REJECT"
    assert found["parameters"] == {"k": {"string_value": "v"}}
    assert found["model_transaction_policy"]["decoupled"]
    assert found["response_cache"]["enable"]
    assert found["instance_group"][0]["count"] == 3


def test_a_stateful_model_has_controls_and_states() -> None:
    sequence = SequenceSettings(
        controls=[
            ControlInput("START", "start", "FP32", 0.0, 1.0),
            ControlInput("FLAGS", "end", "INT32", 0, 1),
            ControlInput("FLAGS", "ready", "BOOL", 0, 1),
            ControlInput("ID", "correlation_id", "UINT64"),
        ],
        states=[StateTensor("h_in", "h_out", "FP32", [2, 128]), StateTensor("c", "d", "FP32", [1], 0, "c.bin")],
    )
    found = config(RuntimeSettings(sequence=sequence))["sequence_batching"]
    assert found["max_sequence_idle_microseconds"] == 1_000_000_000
    assert found["control_input"] == [
        {"name": "START", "control": [{"kind": "CONTROL_SEQUENCE_START", "fp32_false_true": [0.0, 1.0]}]},
        {
            "name": "FLAGS",
            "control": [
                {"kind": "CONTROL_SEQUENCE_END", "int32_false_true": [0, 1]},
                {"kind": "CONTROL_SEQUENCE_READY", "bool_false_true": [False, True]},
            ],
        },
        {"name": "ID", "control": [{"kind": "CONTROL_SEQUENCE_CORRID", "data_type": "TYPE_UINT64"}]},
    ]
    assert [state["input_name"] for state in found["state"]] == ["h_in", "c"]
    assert found["state"][0]["initial_state"][0]["zero_data"]
    assert found["state"][1]["initial_state"][0]["data_file"] == "c.bin"
    assert "direct" in found
    oldest = config(RuntimeSettings(sequence=SequenceSettings(strategy="oldest", max_candidates=5)))
    assert oldest["sequence_batching"]["oldest"]["max_candidate_sequences"] == 5


def test_a_pipeline_tells_its_steps() -> None:
    step = StepRoute("a", "tokens", 2, SIGNATURE, {"text": "t"}, {"ids": "i"})
    found = config(pipeline=PipelineRoute([step]))
    assert found["platform"] == "ensemble"
    assert found["ensemble_scheduling"]["step"] == [
        {"model_name": "tokens", "model_version": 2, "input_map": {"text": "t"}, "output_map": {"ids": "i"}}
    ]
    assert "dynamic_batching" not in found


def test_warm_up_samples_are_told() -> None:
    sample = WarmupSample(
        "w", 2, 3, [TensorSpec("x", "FP32", [16]), TensorSpec("t", "BYTES", [1])], {"x": "random", "t": "f.bin"}
    )
    found = config(RuntimeSettings(warmup=[sample]))["model_warmup"]
    assert found[0]["inputs"]["x"] == {"data_type": "TYPE_FP32", "dims": [16], "random_data": True}
    assert found[0]["inputs"]["t"]["input_data_file"] == "f.bin"


def test_a_tensor_that_the_model_sees_in_another_shape_says_so() -> None:
    found = config(RuntimeSettings(reshapes={"t": []}))["input"]
    assert [one.get("reshape") for one in found] == [None, {"shape": []}]


def test_every_datatype_has_its_enum() -> None:
    signature = Signature([TensorSpec(name, name, [1]) for name in DATATYPES], [])
    found = {one["name"]: one["data_type"] for one in config(signature=signature)["input"]}
    assert found.pop("BYTES") == "TYPE_STRING"
    assert all(kind == f"TYPE_{name}" for name, kind in found.items())


@pytest.fixture(scope="module")
def proto():
    """The official client's own generated message; its package wants all of gRPC, the module only protobuf."""
    pytest.importorskip("google.protobuf")
    found = importlib.util.find_spec("tritonclient")
    assert found is not None
    assert found.submodule_search_locations
    file = Path(found.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["dynamic", "direct", "oldest", "pipeline", "plain"])
def test_the_official_message_takes_it_without_an_unknown_field(proto, kind) -> None:
    from google.protobuf.json_format import MessageToDict, ParseDict

    controls = [ControlInput("S", "start"), ControlInput("I", "correlation_id", "UINT64")]
    states = [StateTensor("a", "b", "FP32", [2])]
    warmup = [WarmupSample("w", inputs=[TensorSpec("x", "FP32", [16])])]
    found = {
        "dynamic": config(
            RuntimeSettings(priority_policies={"1": QueuePolicy()}, warmup=warmup, parameters={"k": "v"})
        ),
        "direct": config(RuntimeSettings(sequence=SequenceSettings(controls=controls, states=states))),
        "oldest": config(RuntimeSettings(sequence=SequenceSettings(strategy="oldest"))),
        "pipeline": config(pipeline=PipelineRoute([StepRoute("a", "m", 2, SIGNATURE, {"t": "t"}, {"y": "y"})])),
        "plain": config(signature=Signature([TensorSpec("x", "BOOL", [2])], [TensorSpec("y", "FP16", [2])])),
    }[kind]
    message = ParseDict(found, proto.ModelConfig())
    again = MessageToDict(message, preserving_proto_field_name=True)
    assert again["name"] == "mlp"
    assert [one["data_type"] for one in again["input"]] == [one["data_type"] for one in found["input"]]
    chosen = message.WhichOneof("scheduling_choice")
    assert chosen == {"dynamic": "dynamic_batching", "pipeline": "ensemble_scheduling", "plain": None}.get(
        kind, "sequence_batching"
    )
