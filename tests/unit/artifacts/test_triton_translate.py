from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.artifacts.manifest import settings_from
from inference.artifacts.triton import config as configs
from inference.artifacts.triton.refusals import HINTS, NOT_FOR_ENSEMBLES, REASONS
from inference.artifacts.triton.translate import CACHE_BYTES, Step, Translated, VersionPolicy, translate
from inference.errors import Rejected
from inference.protocol.oip import TensorSpec
from inference.protocol.proto import message
from inference.protocol.settings import ControlInput, QueuePolicy, RuntimeSettings, StateTensor

X = 'input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]\n'
Y = 'output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]\n'
BASE = 'platform: "onnxruntime_onnx" max_batch_size: 8\n' + X + Y


def told(text: str, files: tuple[str, ...] = ()) -> Translated:
    return translate(configs.read(text), folder="m", files=files)


def of(text: str) -> RuntimeSettings:
    return told(BASE + text).settings


def test_a_densenet_as_in_the_quick_start() -> None:
    found = told(
        """
        name: "m"
        platform: "onnxruntime_onnx"
        max_batch_size : 0
        input [ {
            name: "data_0" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 3, 224, 224 ]
            reshape { shape: [ 1, 3, 224, 224 ] }
        } ]
        output [ {
            name: "fc6_1" data_type: TYPE_FP32 dims: [ 1000 ]
            reshape { shape: [ 1, 1000, 1, 1 ] }
            label_filename: "densenet_labels.txt"
        } ]
        """
    )
    assert (found.backend, found.filename, found.label_file) == ("onnxruntime", "model.onnx", "densenet_labels.txt")
    assert found.settings.inputs == [TensorSpec("data_0", "FP32", [3, 224, 224])]
    assert found.settings.reshapes == {"data_0": [1, 3, 224, 224], "fc6_1": [1, 1000, 1, 1]}
    assert found.notes == ("'input.format' is a hint that changes no answer: not used here",)


def test_dims_leave_out_the_batch() -> None:
    settings = of("")
    assert (settings.inputs[0].shape, settings.outputs[0].shape, settings.max_batch_size) == ([-1, 4], [-1, 2], 8)


@pytest.mark.parametrize(
    ("kind", "datatype"),
    [("TYPE_BOOL", "BOOL"), ("TYPE_UINT8", "UINT8"), ("TYPE_INT64", "INT64"), ("TYPE_FP16", "FP16"),
     ("TYPE_BF16", "BF16"), ("TYPE_FP64", "FP64"), ("TYPE_STRING", "BYTES")],
)  # fmt: skip
def test_datatypes(kind: str, datatype: str) -> None:
    found = told(f'backend: "onnxruntime" input {{ name: "x" data_type: {kind} dims: -1 }} {Y}')
    assert found.settings.inputs == [TensorSpec("x", datatype, [-1])]


def test_dynamic_batching_with_priorities() -> None:
    settings = of(
        """
        dynamic_batching {
          preferred_batch_size: [ 8, 4 ]
          max_queue_delay_microseconds: 100
          preserve_ordering: true
          priority_levels: 2
          default_priority_level: 2
          default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 5000 max_queue_size: 10 }
          priority_queue_policy { key: 1 value { allow_timeout_override: true } }
        }
        """
    )
    assert (settings.preferred_batch_sizes, settings.max_queue_delay_us) == ([4, 8], 100)
    assert (settings.preserve_ordering, settings.priority_levels, settings.default_priority_level) == (True, 2, 2)
    assert settings.queue_policy == QueuePolicy(10, 5000, False, "delay")
    assert settings.priority_policies == {"1": QueuePolicy(allow_timeout_override=True)}


def test_a_delay_that_is_not_set_leaves_the_window_to_us() -> None:
    assert of("dynamic_batching { }").max_queue_delay_us is None


def test_a_direct_sequence_with_every_control() -> None:
    sequence = of(
        """
        sequence_batching {
          max_sequence_idle_microseconds: 5000000
          direct { max_queue_delay_microseconds: 7 minimum_slot_utilization: 0.5 }
          control_input [
            { name: "START" control [ { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } ] },
            { name: "READY" control [ { kind: CONTROL_SEQUENCE_READY fp32_false_true: [ -1, 2 ] } ] },
            { name: "END" control [ { kind: CONTROL_SEQUENCE_END bool_false_true: [ false, true ] } ] },
            { name: "ID" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } ] }
          ]
        }
        """
    ).sequence
    assert sequence is not None
    assert (sequence.strategy, sequence.max_idle_us, sequence.max_queue_delay_us) == ("direct", 5_000_000, 7)
    assert sequence.minimum_slot_utilization == 0.5
    assert sequence.controls == [
        ControlInput("START", "start", "INT32", 0, 1),
        ControlInput("READY", "ready", "FP32", -1, 2),
        ControlInput("END", "end", "BOOL", 0, 1),
        ControlInput("ID", "correlation_id", "UINT64"),
    ]


def test_an_oldest_sequence_with_state() -> None:
    settings = of(
        """
        sequence_batching {
          oldest { max_candidate_sequences: 4 preferred_batch_size: [ 2 ] preserve_ordering: true }
          state [
            { input_name: "h" output_name: "hn" data_type: TYPE_FP32 dims: [ 2, 64 ] },
            { input_name: "c" output_name: "cn" data_type: TYPE_INT32 dims: [ -1 ]
              initial_state: { data_type: TYPE_INT32 dims: [ 3 ] data_file: "c0" name: "c0" } }
          ]
        }
        """
    )
    assert settings.sequence is not None
    assert (settings.sequence.strategy, settings.sequence.max_candidates) == ("oldest", 4)
    assert (settings.sequence.preferred_batch_sizes, settings.sequence.max_idle_us) == ([2], 1_000_000)
    assert settings.sequence.states == [
        StateTensor("h", "hn", "FP32", [2, 64]),
        StateTensor("c", "cn", "INT32", [3], initial_file="initial_state/c0"),
    ]
    assert settings.preserve_ordering


def test_an_ensemble() -> None:
    found = told(
        """
        platform: "ensemble" max_batch_size: 1
        """
        + X
        + Y
        + """
        ensemble_scheduling { step [
          { model_name: "pre" model_version: -1 input_map { key: "IN" value: "x" } output_map { key: "OUT" value: "t" } },
          { model_name: "net" model_version: 2 input_map { key: "a" value: "t" } output_map { key: "b" value: "u" } },
          { model_name: "net" model_version: 2 input_map { key: "a" value: "u" } output_map { key: "b" value: "y" } }
        ] max_inflight_requests: 3 }
        """
    )
    assert (found.backend, found.inflight) == ("ensemble", 3)
    assert found.steps == (
        Step("pre", "pre", -1, {"IN": "x"}, {"OUT": "t"}),
        Step("net_1", "net", 2, {"a": "t"}, {"b": "u"}),
        Step("net_2", "net", 2, {"a": "u"}, {"b": "y"}),
    )


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("", ("any", 1, 1)),
        ("{ count: 3 kind: KIND_CPU }", ("cpu", 1, 3)),
        ("{ kind: KIND_AUTO }", ("any", 1, 1)),
        ("{ count: 2 kind: KIND_GPU }", ("cuda", 1, 2)),
        ("{ count: 2 kind: KIND_GPU gpus: [ 1 ] }", ("cuda:1", 1, 2)),
        ("{ count: 2 kind: KIND_GPU gpus: [ 0, 1, 2 ] }", ("cuda", 3, 2)),
        ("{ count: 1 kind: KIND_CPU }, { count: 2 kind: KIND_CPU }", ("cpu", 1, 3)),
        ("{ count: 1 kind: KIND_MODEL }", ("any", 1, 1)),
    ],
    ids=["none", "cpu", "auto", "gpu", "one gpu", "gpus", "groups", "model"],
)
def test_instance_groups(groups: str, expected: tuple[str, int, int]) -> None:
    found = told(BASE + f"instance_group [ {groups} ]")
    assert (found.device, found.replicas, found.settings.instances) == expected


@pytest.mark.parametrize(
    ("policy", "available", "chosen"),
    [
        ("", [1, 3, 2], [3]),
        ("version_policy: { latest: { num_versions: 2 } }", [1, 3, 2], [2, 3]),
        ("version_policy: { latest { } }", [1, 2], [2]),
        ("version_policy: { all { } }", [10, 9, 1], [1, 9, 10]),
        ("version_policy: { specific: { versions: [ 3, 1, 7 ] } }", [1, 2, 3], [1, 3]),
        ("version_policy: { specific: { versions: [ 7 ] } }", [1], []),
    ],
    ids=["default", "two", "latest", "all", "specific", "missing"],
)
def test_version_policies(policy: str, available: list[int], chosen: list[int]) -> None:
    assert told(BASE + policy).policy.chosen(available) == chosen


def test_warm_up_cache_parameters_and_decoupled() -> None:
    found = told(
        BASE
        + """
        model_warmup [ { name: "w" batch_size: 2 count: 3 inputs [
          { key: "x" value: { data_type: TYPE_FP32 dims: [ 4 ] input_data_file: "raw" } } ] },
          { name: "z" inputs { key: "x" value { data_type: TYPE_FP32 dims: 4 zero_data: true } } } ]
        parameters [ { key: "a" value { string_value: "1" } }, { key: "intra_op_thread_count" value { string_value: "2" } } ]
        response_cache { enable: true }
        """
    )
    first, second = found.settings.warmup
    assert (first.name, first.batch_size, first.count, first.data) == ("w", 2, 3, {"x": "warmup/raw"})
    assert (second.batch_size, second.count, second.data) == (1, 1, {"x": "zero"})
    assert first.inputs == [TensorSpec("x", "FP32", [-1, 4])]
    assert found.extra_files == ("warmup/raw",)
    assert found.settings.parameters == {"a": "1", "intra_op_thread_count": "2"}
    assert found.settings.response_cache_bytes == CACHE_BYTES
    assert "parameter 'intra_op_thread_count' tunes Triton's onnxruntime backend: not used here" in found.notes
    assert of("model_transaction_policy { decoupled: true }").decoupled


def test_a_missing_config_is_completed_as_triton_does() -> None:
    found = translate(configs.empty(), folder="m", files=["model.onnx"])
    assert (found.backend, found.settings.max_batch_size, found.settings.inputs) == ("onnxruntime", 4, [])
    assert translate(configs.empty(), folder="m", files=["model.py"]).backend == "python"


ANY = {
    "runtime": 'runtime: "x"',
    "batch_input": "batch_input { kind: BATCH_ELEMENT_COUNT }",
    "batch_output": "batch_output { kind: BATCH_SCATTER_WITH_INPUT_SHAPE target_name: 'y' }",
    "cc_model_filenames": 'cc_model_filenames { key: "7.5" value: "f" }',
    "metric_tags": 'metric_tags { key: "a" value: "b" }',
    "model_operations": 'model_operations { op_library_filename: "x.so" }',
    "model_repository_agents": 'model_repository_agents { agents { name: "checksum" } }',
    "model_metrics": "model_metrics { }",
    "input.is_shape_tensor": 'input { name: "z" data_type: TYPE_FP32 dims: 1 is_shape_tensor: true }',
    "input.allow_ragged_batch": 'input { name: "z" data_type: TYPE_FP32 dims: 1 allow_ragged_batch: true }',
    "input.is_non_linear_format_io": 'input { name: "z" data_type: TYPE_FP32 dims: 1 is_non_linear_format_io: true }',
    "output.is_shape_tensor": 'output { name: "z" data_type: TYPE_FP32 dims: 1 is_shape_tensor: true }',
    "output.is_non_linear_format_io": 'output { name: "z" data_type: TYPE_FP32 dims: 1 is_non_linear_format_io: true }',
    "instance_group.rate_limiter": "instance_group { rate_limiter { priority: 1 } }",
    "instance_group.secondary_devices": "instance_group { secondary_devices { device_id: 1 } }",
    "instance_group.profile": 'instance_group { profile: "0" }',
    "instance_group.passive": "instance_group { passive: true }",
    "instance_group.host_policy": 'instance_group { host_policy: "numa" }',
    "optimization.execution_accelerators": (
        'optimization { execution_accelerators { gpu_execution_accelerator { name: "tensorrt" } } }'
    ),
    "optimization.cuda.graph_spec": "optimization { cuda { graph_spec { batch_size: 1 } } }",
    "sequence_batching.iterative_sequence": "sequence_batching { iterative_sequence: true }",
    "sequence_batching.state.use_growable_memory": (
        'sequence_batching { state { input_name: "a" output_name: "b" use_growable_memory: true } }'
    ),
    "ensemble_scheduling.step.model_namespace": 'ensemble_scheduling { step { model_namespace: "n" } }',
}


def test_every_refusal_has_its_example() -> None:
    assert set(ANY) == set(REASONS)


@pytest.mark.parametrize("field", sorted(REASONS))
def test_a_field_that_is_not_supported_is_refused_by_name(field: str) -> None:
    with pytest.raises(Rejected) as caught:
        told((ENSEMBLE_BASE if field.startswith("ensemble") else BASE) + ANY[field])
    assert caught.value.reason == f"field '{field}' of config.pbtxt is not supported: {REASONS[field]}"


# Every field that is read, as two configs that differ in it alone: what is read makes a difference.
GROUP = "instance_group { kind: KIND_GPU count: 2 %s }"
DYNAMIC = "dynamic_batching { %s }"
POLICY = "dynamic_batching { default_queue_policy { %s } }"
LEVELS = "dynamic_batching { priority_levels: 3 default_priority_level: 2 %s }"
LEVEL_POLICY = LEVELS % "priority_queue_policy { key: 1 value { %s } }"
DIRECT = "sequence_batching { direct { %s } }"
OLDEST = "sequence_batching { oldest { %s } }"
CONTROL = 'sequence_batching { control_input { name: "%s" control { %s } } }'
STATE = 'sequence_batching { state { input_name: "a" output_name: "b" data_type: TYPE_FP32 dims: 2 %s } }'
INITIAL = "initial_state { data_type: TYPE_FP32 dims: 2 %s }"
START_CONTROL = "kind: CONTROL_SEQUENCE_START "
STEP = """ensemble_scheduling { %s step { model_name: "%s" model_version: %s
  input_map { key: "%s" value: "x" } output_map { key: "%s" value: "y" } } }"""
ENSEMBLE_BASE = 'platform: "ensemble" max_batch_size: 8\n' + X + Y
WARM = 'model_warmup { name: "%s" %s inputs { key: "%s" value { data_type: %s dims: %s %s } } }'
ZERO = "zero_data: true"
PYTHON_BASE = 'backend: "python" max_batch_size: 8\n' + X + Y


def _input(more: str = "", name: str = "x", kind: str = "TYPE_FP32", dims: int = 4) -> str:
    return f'backend: "python" input {{ name: "{name}" data_type: {kind} dims: {dims} {more} }} {Y}'


def _output(more: str = "", name: str = "y", kind: str = "TYPE_FP32", dims: int = 2) -> str:
    return f'backend: "python" output {{ name: "{name}" data_type: {kind} dims: {dims} {more} }} {X}'


MATRIX = {
    "platform": ('platform: "onnxruntime_onnx"' + X + Y, 'platform: "pytorch_libtorch"' + X + Y),
    "backend": ('backend: "onnxruntime"' + X + Y, 'backend: "python"' + X + Y),
    "version_policy.latest.num_versions": (BASE, BASE + "version_policy { latest { num_versions: 2 } }"),
    "version_policy.all": (BASE, BASE + "version_policy { all { } }"),
    "version_policy.specific.versions": (BASE, BASE + "version_policy { specific { versions: 3 } }"),
    "max_batch_size": (BASE, BASE.replace("8", "4")),
    "default_model_filename": (BASE, BASE + 'default_model_filename: "net.onnx"'),
    "input.name": (_input(), _input(name="z")),
    "input.data_type": (_input(), _input(kind="TYPE_INT8")),
    "input.dims": (_input(), _input(dims=5)),
    "input.optional": (_input(), _input("optional: true")),
    "input.reshape.shape": (_input(), _input("reshape { shape: [ 2, 2 ] }")),
    "output.name": (_output(), _output(name="z")),
    "output.data_type": (_output(), _output(kind="TYPE_STRING")),
    "output.dims": (_output(), _output(dims=5)),
    "output.reshape.shape": (_output(), _output("reshape { shape: [ 2, 1 ] }")),
    "output.label_filename": (_output(), _output('label_filename: "l.txt"')),
    "instance_group.kind": (BASE + GROUP % "", BASE + "instance_group { kind: KIND_CPU count: 2 }"),
    "instance_group.count": (BASE + GROUP % "", BASE + GROUP.replace("2", "3") % ""),
    "instance_group.gpus": (BASE + GROUP % "", BASE + GROUP % "gpus: [ 0, 1 ]"),
    "dynamic_batching.preferred_batch_size": (BASE + DYNAMIC % "", BASE + DYNAMIC % "preferred_batch_size: 4"),
    "dynamic_batching.max_queue_delay_microseconds": (BASE, BASE + DYNAMIC % "max_queue_delay_microseconds: 9"),
    "dynamic_batching.preserve_ordering": (BASE, BASE + DYNAMIC % "preserve_ordering: true"),
    "dynamic_batching.priority_levels": (BASE + LEVELS % "", BASE + LEVELS.replace("3", "4") % ""),
    "dynamic_batching.default_priority_level": (BASE + LEVELS % "", BASE + LEVELS.replace(": 2", ": 1") % ""),
    "dynamic_batching.default_queue_policy.timeout_action": (BASE, BASE + POLICY % "timeout_action: DELAY"),
    "dynamic_batching.default_queue_policy.default_timeout_microseconds": (
        BASE, BASE + POLICY % "default_timeout_microseconds: 7"),
    "dynamic_batching.default_queue_policy.allow_timeout_override": (
        BASE, BASE + POLICY % "allow_timeout_override: true"),
    "dynamic_batching.default_queue_policy.max_queue_size": (BASE, BASE + POLICY % "max_queue_size: 7"),
    "dynamic_batching.priority_queue_policy.timeout_action": (
        BASE + LEVELS % "", BASE + LEVEL_POLICY % "timeout_action: DELAY"),
    "dynamic_batching.priority_queue_policy.default_timeout_microseconds": (
        BASE + LEVELS % "", BASE + LEVEL_POLICY % "default_timeout_microseconds: 7"),
    "dynamic_batching.priority_queue_policy.allow_timeout_override": (
        BASE + LEVELS % "", BASE + LEVEL_POLICY % "allow_timeout_override: true"),
    "dynamic_batching.priority_queue_policy.max_queue_size": (
        BASE + LEVELS % "", BASE + LEVEL_POLICY % "max_queue_size: 7"),
    "sequence_batching.max_sequence_idle_microseconds": (
        BASE + DIRECT % "", BASE + "sequence_batching { max_sequence_idle_microseconds: 7 }"),
    "sequence_batching.direct.max_queue_delay_microseconds": (
        BASE + DIRECT % "", BASE + DIRECT % "max_queue_delay_microseconds: 7"),
    "sequence_batching.direct.minimum_slot_utilization": (
        BASE + DIRECT % "", BASE + DIRECT % "minimum_slot_utilization: 0.5"),
    "sequence_batching.oldest.max_candidate_sequences": (
        BASE + OLDEST % "", BASE + OLDEST % "max_candidate_sequences: 7"),
    "sequence_batching.oldest.preferred_batch_size": (BASE + OLDEST % "", BASE + OLDEST % "preferred_batch_size: 7"),
    "sequence_batching.oldest.max_queue_delay_microseconds": (
        BASE + OLDEST % "", BASE + OLDEST % "max_queue_delay_microseconds: 7"),
    "sequence_batching.oldest.preserve_ordering": (BASE + OLDEST % "", BASE + OLDEST % "preserve_ordering: true"),
    "sequence_batching.control_input.name": (
        BASE + CONTROL % ("S", START_CONTROL + "int32_false_true: [ 0, 1 ]"),
        BASE + CONTROL % ("T", START_CONTROL + "int32_false_true: [ 0, 1 ]")),
    "sequence_batching.control_input.control.kind": (
        BASE + CONTROL % ("S", START_CONTROL + "int32_false_true: [ 0, 1 ]"),
        BASE + CONTROL % ("S", "kind: CONTROL_SEQUENCE_END int32_false_true: [ 0, 1 ]")),
    "sequence_batching.control_input.control.int32_false_true": (
        BASE + CONTROL % ("S", START_CONTROL + "int32_false_true: [ 0, 1 ]"),
        BASE + CONTROL % ("S", START_CONTROL + "int32_false_true: [ 0, 2 ]")),
    "sequence_batching.control_input.control.fp32_false_true": (
        BASE + CONTROL % ("S", START_CONTROL + "int32_false_true: [ 0, 1 ]"),
        BASE + CONTROL % ("S", START_CONTROL + "fp32_false_true: [ 0, 1 ]")),
    "sequence_batching.control_input.control.bool_false_true": (
        BASE + CONTROL % ("S", START_CONTROL + "int32_false_true: [ 0, 1 ]"),
        BASE + CONTROL % ("S", START_CONTROL + "bool_false_true: [ false, true ]")),
    "sequence_batching.control_input.control.data_type": (
        BASE + CONTROL % ("S", "kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_STRING"),
        BASE + CONTROL % ("S", "kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64")),
    "sequence_batching.state.input_name": (BASE + STATE % "", BASE + (STATE % "").replace('"a"', '"c"')),
    "sequence_batching.state.output_name": (BASE + STATE % "", BASE + (STATE % "").replace('"b"', '"c"')),
    "sequence_batching.state.data_type": (BASE + STATE % "", BASE + (STATE % "").replace("FP32", "FP64")),
    "sequence_batching.state.dims": (BASE + STATE % "", BASE + (STATE % "").replace("dims: 2", "dims: 3")),
    "sequence_batching.state.initial_state.data_type": (
        BASE + STATE % INITIAL % ZERO, BASE + STATE % INITIAL.replace("FP32", "FP64") % ZERO),
    "sequence_batching.state.initial_state.dims": (
        BASE + STATE % INITIAL % ZERO, BASE + STATE % INITIAL.replace("dims: 2", "dims: 3") % ZERO),
    "sequence_batching.state.initial_state.zero_data": (BASE + STATE % INITIAL % ZERO, BASE + STATE % INITIAL % ""),
    "sequence_batching.state.initial_state.data_file": (
        BASE + STATE % INITIAL % ZERO, BASE + STATE % INITIAL % 'data_file: "f"'),
    "ensemble_scheduling.max_inflight_requests": (
        ENSEMBLE_BASE + STEP % ("", "m", 1, "i", "o"),
        ENSEMBLE_BASE + STEP % ("max_inflight_requests: 3", "m", 1, "i", "o")),
    "ensemble_scheduling.step.model_name": (
        ENSEMBLE_BASE + STEP % ("", "m", 1, "i", "o"), ENSEMBLE_BASE + STEP % ("", "n", 1, "i", "o")),
    "ensemble_scheduling.step.model_version": (
        ENSEMBLE_BASE + STEP % ("", "m", 1, "i", "o"), ENSEMBLE_BASE + STEP % ("", "m", -1, "i", "o")),
    "ensemble_scheduling.step.input_map": (
        ENSEMBLE_BASE + STEP % ("", "m", 1, "i", "o"), ENSEMBLE_BASE + STEP % ("", "m", 1, "j", "o")),
    "ensemble_scheduling.step.output_map": (
        ENSEMBLE_BASE + STEP % ("", "m", 1, "i", "o"), ENSEMBLE_BASE + STEP % ("", "m", 1, "i", "p")),
    "parameters.string_value": (PYTHON_BASE, PYTHON_BASE + 'parameters { key: "k" value { string_value: "v" } }'),
    "model_warmup.name": (
        BASE + WARM % ("w", "", "x", "TYPE_FP32", 4, ZERO), BASE + WARM % ("v", "", "x", "TYPE_FP32", 4, ZERO)),
    "model_warmup.batch_size": (
        BASE + WARM % ("w", "", "x", "TYPE_FP32", 4, ZERO),
        BASE + WARM % ("w", "batch_size: 2", "x", "TYPE_FP32", 4, ZERO)),
    "model_warmup.count": (
        BASE + WARM % ("w", "", "x", "TYPE_FP32", 4, ZERO), BASE + WARM % ("w", "count: 2", "x", "TYPE_FP32", 4, ZERO)),
    "model_warmup.inputs.data_type": (
        BASE + WARM % ("w", "", "x", "TYPE_FP32", 4, ZERO), BASE + WARM % ("w", "", "x", "TYPE_FP64", 4, ZERO)),
    "model_warmup.inputs.dims": (
        BASE + WARM % ("w", "", "x", "TYPE_FP32", 4, ZERO), BASE + WARM % ("w", "", "x", "TYPE_FP32", 5, ZERO)),
    "model_warmup.inputs.zero_data": (
        BASE + WARM % ("w", "", "x", "TYPE_FP32", 4, ZERO), BASE + WARM % ("w", "", "x", "TYPE_FP32", 4, "")),
    "model_warmup.inputs.random_data": (
        BASE + WARM % ("w", "", "x", "TYPE_FP32", 4, ZERO),
        BASE + WARM % ("w", "", "x", "TYPE_FP32", 4, "random_data: true")),
    "model_warmup.inputs.input_data_file": (
        BASE + WARM % ("w", "", "x", "TYPE_FP32", 4, ZERO),
        BASE + WARM % ("w", "", "x", "TYPE_FP32", 4, 'input_data_file: "f"')),
    "model_transaction_policy.decoupled": (BASE, BASE + "model_transaction_policy { decoupled: true }"),
    "response_cache.enable": (BASE, BASE + "response_cache { enable: true }"),
}  # fmt: skip
# What only names a thing for whoever reads the file.
LABELS = {"name", "instance_group.name", "sequence_batching.state.initial_state.name"}


@pytest.mark.parametrize("field", sorted(MATRIX))
def test_what_is_read_makes_a_difference_or_is_refused_by_name(field: str) -> None:
    one, other = MATRIX[field]
    before, after = _meaning(one), _meaning(other)
    assert before != after
    assert isinstance(before, dict), before
    assert isinstance(after, dict) or field.rpartition(".")[0] in after


def _meaning(text: str) -> dict[str, Any] | str:
    """Without the notes; of what is refused, why."""
    try:
        found: dict[str, Any] = msgspec.to_builtins(told(text))
    except Rejected as error:
        return error.reason
    return found | {"notes": ()}


def _leaves(kind: Any, before: str = "") -> set[str]:
    """Every field of the definition that holds a value, those inside maps too; a refused or hinted one as a whole."""
    found = set()
    for field in kind.fields:
        path = f"{before}{field.name}"
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            inner = inner.fields_by_name["value"].message_type
        if inner is None or path in REASONS or path in HINTS or not inner.fields:
            found.add(path)
        else:
            found |= _leaves(inner, f"{path}.")
    return found


def test_no_field_of_the_public_definition_is_passed_over() -> None:
    left = _leaves(message("inference.ModelConfig").DESCRIPTOR) - set(REASONS) - HINTS
    assert left == set(MATRIX) | LABELS


@pytest.mark.parametrize("field", sorted(NOT_FOR_ENSEMBLES))
def test_what_an_ensemble_cannot_honour_is_refused_by_name(field: str) -> None:
    """Also what other models may have: nothing of it reaches a graph's definition."""
    step = ENSEMBLE_BASE + STEP % ("", "m", 1, "i", "o")
    texts = {
        "input.optional": step.replace("dims: [ 4 ]", "dims: [ 4 ] optional: true"),
        "input.reshape": step.replace("dims: [ 4 ]", "dims: [ 4 ] reshape { shape: [ 2, 2 ] }"),
        "output.reshape": step.replace("dims: [ 2 ]", "dims: [ 2 ] reshape { shape: [ 2, 1 ] }"),
        "instance_group": step + "instance_group { count: 2 }",
        "model_warmup": step + WARM % ("w", "", "x", "TYPE_FP32", 4, ZERO),
        "model_transaction_policy.decoupled": step + "model_transaction_policy { decoupled: true }",
        "response_cache.enable": step + "response_cache { enable: true }",
        "default_model_filename": step + 'default_model_filename: "f"',
        "parameters": step + 'parameters { key: "k" value { string_value: "v" } }',
        "optimization": step + "optimization { graph { level: 1 } }",
    }
    with pytest.raises(Rejected, match=f"field '{field}' of config.pbtxt is not supported"):
        told(texts[field])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('name: "other"' + BASE, "'name'"),
        ('platform: "tensorrt_plan"' + X + Y, "'platform'"),
        ('backend: "tensorflow"' + X + Y, "'backend'"),
        ('backend: "pytorch"' + X, "'input'"),
        ("", "'backend'"),
        (BASE + 'ensemble_scheduling { step { model_name: "m" } }', "'ensemble_scheduling'"),
        (BASE.replace("dims: [ 4 ]", "dims: [ 4 ] optional: true"), "'input.optional'"),
        ('platform: "ensemble"' + X + Y, "'ensemble_scheduling'"),
        (BASE + "dynamic_batching { preferred_batch_size: 9 }", "preferred_batch_size"),
        (BASE + "dynamic_batching { priority_levels: 65 default_priority_level: 1 }", "priority_levels"),
        (BASE + "dynamic_batching { priority_levels: 2 }", "default_priority_level"),
        (BASE + "dynamic_batching { priority_queue_policy { key: 1 value { } } }", "priority_queue_policy"),
        (BASE + "instance_group [ { kind: KIND_CPU }, { kind: KIND_GPU } ]", "instance_group.kind"),
        (BASE + "instance_group { kind: KIND_CPU gpus: 0 }", "instance_group.gpus"),
        (BASE + "instance_group { count: 65 }", "instance_group.count"),
        (BASE + "version_policy { specific { } }", "version_policy.specific"),
        (BASE + "response_cache { enable: true } model_transaction_policy { decoupled: true }", "response_cache"),
        (BASE + 'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "e.tar.gz" } }', "EXECUTION_ENV_PATH"),
        (BASE + 'output { name: "z" data_type: TYPE_FP32 dims: 4 reshape { shape: 5 } }', "output.reshape"),
        (BASE + 'output { name: "y" data_type: TYPE_FP32 dims: 4 }', "output.name"),
        (BASE + 'input { name: "z" data_type: TYPE_FP32 }', "input.dims"),
        (BASE + 'input { name: "z" data_type: TYPE_FP32 dims: 0 }', "input.dims"),
        (BASE + 'input { name: "z" dims: 1 }', "input.data_type"),
        (BASE + 'sequence_batching { control_input { name: "S" } }', "control_input"),
        ('platform: "onnxruntime_onnx" max_batch_size: 5000' + X + Y, "max_batch_size"),
        (BASE + "nonsense: 1", 'no field named "nonsense"'),
        (BASE + "input [", "config.pbtxt"),
        (BASE + "dynamic_batching { default_queue_policy { max_queue_size: 70000 } }", "max_queue_size"),
    ],
    ids=lambda value: value[-48:] if isinstance(value, str) else None,
)
def test_what_makes_no_sense_is_refused(text: str, words: str) -> None:
    with pytest.raises(Rejected) as caught:
        told(text)
    assert words in caught.value.reason
    assert caught.value.remedy


def test_numbers_are_numbers_for_python_models() -> None:
    text = configs.as_json(configs.read(BASE + "dynamic_batching { max_queue_delay_microseconds: 7 }"))
    shown = msgspec.json.decode(text)
    assert shown["input"][0]["dims"] == [4]
    assert shown["input"][0]["data_type"] == "TYPE_FP32"
    assert shown["dynamic_batching"]["max_queue_delay_microseconds"] == 7


DIMS = st.lists(st.one_of(st.just(-1), st.integers(1, 512)), min_size=1, max_size=4)
KINDS = st.sampled_from(["TYPE_FP32", "TYPE_INT64", "TYPE_STRING", "TYPE_BOOL", "TYPE_FP16"])
TENSORS = st.lists(st.tuples(KINDS, DIMS), min_size=1, max_size=4)


@given(TENSORS, TENSORS, st.integers(0, 64), st.integers(0, 10**6), st.integers(1, 8), st.booleans())
def test_every_translation_is_valid_settings_with_the_declared_shapes(
    inputs: Any, outputs: Any, size: int, delay: int, count: int, ordered: bool
) -> None:
    config = message("inference.ModelConfig")()
    config.platform, config.max_batch_size = "onnxruntime_onnx", size
    for name, tensors in (("input", inputs), ("output", outputs)):
        for index, (kind, dims) in enumerate(tensors):
            tensor = getattr(config, name).add(name=f"{name}{index}", dims=dims)
            tensor.data_type = tensor.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_name[kind].number
    config.dynamic_batching.max_queue_delay_microseconds = delay
    config.dynamic_batching.preserve_ordering = ordered
    config.instance_group.add(count=count)
    found = translate(configs.read(str(config)), folder="m")
    settings = settings_from(msgspec.to_builtins(found.settings))
    assert settings == found.settings
    batch = [-1] if size else []
    assert [spec.shape for spec in settings.inputs] == [[*batch, *dims] for _, dims in inputs]
    assert [spec.shape for spec in settings.outputs] == [[*batch, *dims] for _, dims in outputs]
    assert (settings.instances, settings.max_queue_delay_us or 0) == (count, delay)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(Rejected):
        translate(configs.read(text), folder="m", files=["model.onnx"])


@given(st.sets(st.integers(1, 50)), st.integers(0, 5), st.lists(st.integers(1, 50), max_size=4))
def test_a_policy_chooses_from_what_there_is(available: set[int], latest: int, specific: list[int]) -> None:
    chosen = VersionPolicy(latest, tuple(specific)).chosen(available)
    assert chosen == sorted(set(chosen) & available)
    if not specific and latest and available:
        assert chosen[-1] == max(available)
