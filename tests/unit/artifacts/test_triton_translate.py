from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.artifacts.manifest import settings_from
from inference.artifacts.triton import config as configs
from inference.artifacts.triton.refusals import HINTS, REASONS
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
    "input.optional": 'input { name: "z" data_type: TYPE_FP32 dims: 1 optional: true }',
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
        told(BASE + ANY[field])
    assert caught.value.reason == f"field '{field}' of config.pbtxt is not supported: {REASONS[field]}"


# Fields that are read. With what is refused and what is a hint, this is all of ModelConfig: nothing is passed over.
READ = {
    "name",
    "platform",
    "backend",
    "version_policy",
    "version_policy.latest",
    "version_policy.latest.num_versions",
    "version_policy.all",
    "version_policy.specific",
    "version_policy.specific.versions",
    "max_batch_size",
    "default_model_filename",
    "input",
    "input.name",
    "input.data_type",
    "input.dims",
    "input.reshape",
    "input.reshape.shape",
    "output",
    "output.name",
    "output.data_type",
    "output.dims",
    "output.reshape",
    "output.reshape.shape",
    "output.label_filename",
    "optimization",
    "instance_group",
    "instance_group.name",
    "instance_group.kind",
    "instance_group.count",
    "instance_group.gpus",
    "dynamic_batching",
    "dynamic_batching.preferred_batch_size",
    "dynamic_batching.max_queue_delay_microseconds",
    "dynamic_batching.preserve_ordering",
    "dynamic_batching.priority_levels",
    "dynamic_batching.default_priority_level",
    "dynamic_batching.default_queue_policy",
    "dynamic_batching.priority_queue_policy",
    "dynamic_batching.default_queue_policy.timeout_action",
    "dynamic_batching.default_queue_policy.default_timeout_microseconds",
    "dynamic_batching.default_queue_policy.allow_timeout_override",
    "dynamic_batching.default_queue_policy.max_queue_size",
    "sequence_batching",
    "sequence_batching.direct",
    "sequence_batching.oldest",
    "sequence_batching.max_sequence_idle_microseconds",
    "sequence_batching.direct.max_queue_delay_microseconds",
    "sequence_batching.direct.minimum_slot_utilization",
    "sequence_batching.oldest.max_candidate_sequences",
    "sequence_batching.oldest.preferred_batch_size",
    "sequence_batching.oldest.max_queue_delay_microseconds",
    "sequence_batching.oldest.preserve_ordering",
    "sequence_batching.control_input",
    "sequence_batching.control_input.name",
    "sequence_batching.control_input.control",
    "sequence_batching.control_input.control.kind",
    "sequence_batching.control_input.control.int32_false_true",
    "sequence_batching.control_input.control.fp32_false_true",
    "sequence_batching.control_input.control.bool_false_true",
    "sequence_batching.control_input.control.data_type",
    "sequence_batching.state",
    "sequence_batching.state.input_name",
    "sequence_batching.state.output_name",
    "sequence_batching.state.data_type",
    "sequence_batching.state.dims",
    "sequence_batching.state.initial_state",
    "sequence_batching.state.initial_state.data_type",
    "sequence_batching.state.initial_state.dims",
    "sequence_batching.state.initial_state.zero_data",
    "sequence_batching.state.initial_state.data_file",
    "sequence_batching.state.initial_state.name",
    "ensemble_scheduling",
    "ensemble_scheduling.step",
    "ensemble_scheduling.max_inflight_requests",
    "ensemble_scheduling.step.model_name",
    "ensemble_scheduling.step.model_version",
    "ensemble_scheduling.step.input_map",
    "ensemble_scheduling.step.output_map",
    "parameters",
    "model_warmup",
    "model_warmup.name",
    "model_warmup.batch_size",
    "model_warmup.inputs",
    "model_warmup.count",
    "model_transaction_policy",
    "model_transaction_policy.decoupled",
    "response_cache",
    "response_cache.enable",
}


def _all_paths(kind: Any, before: str = "") -> set[str]:
    found = set()
    for field in kind.fields:
        path = f"{before}{field.name}"
        found.add(path)
        inner = field.message_type
        if inner is not None and not inner.GetOptions().map_entry and path not in REASONS and path not in HINTS:
            found |= _all_paths(inner, f"{path}.")
    return found


def test_no_field_of_the_public_definition_is_passed_over() -> None:
    paths = _all_paths(message("inference.ModelConfig").DESCRIPTOR)
    assert paths == READ | {path for path in (set(REASONS) | HINTS) if path in paths}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('name: "other"' + BASE, "'name'"),
        ('platform: "tensorrt_plan"' + X + Y, "'platform'"),
        ('backend: "tensorflow"' + X + Y, "'backend'"),
        ('backend: "pytorch"' + X, "'input'"),
        ("", "'backend'"),
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
