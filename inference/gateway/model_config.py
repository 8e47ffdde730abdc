"""A version's configuration as Triton tells it: the proto JSON of its `ModelConfig`, made from signature and settings.

Pure. Names are the proto's field names, whole numbers stay numbers, enums are their names; dimensions are told without
the batch dimension, as Triton does. REST answers it as it is, gRPC reads it into the proto.
"""

from __future__ import annotations

from typing import Any

from inference.protocol.oip import Signature, TensorSpec
from inference.protocol.routes import PipelineRoute, VariantRoute
from inference.protocol.settings import (
    ControlInput,
    QueuePolicy,
    RuntimeSettings,
    SequenceSettings,
    StateTensor,
    WarmupSample,
)

_STRING = {"BYTES": "STRING"}
_KINDS = {"cpu": "KIND_CPU", "cuda": "KIND_GPU"}
_CONTROLS = {
    "start": "CONTROL_SEQUENCE_START",
    "ready": "CONTROL_SEQUENCE_READY",
    "end": "CONTROL_SEQUENCE_END",
    "correlation_id": "CONTROL_SEQUENCE_CORRID",
}


def model_config(name: str, variant: VariantRoute) -> dict[str, Any]:
    """The `ModelConfig` of one version under its endpoint's name, with JSON values only."""
    signature, settings = variant.signature, variant.settings
    is_pipeline = variant.pipeline is not None
    platform = "ensemble" if is_pipeline else signature.platform
    return {
        "name": name,
        "platform": platform,
        "backend": "" if is_pipeline else platform.partition("_")[0],
        "version_policy": {"specific": {"versions": [variant.version]}},
        "max_batch_size": signature.max_batch_size,
        "input": [_input(spec, signature) | _reshape(spec, settings) for spec in signature.inputs],
        "output": [_output(spec, signature) | _reshape(spec, settings) for spec in signature.outputs],
        "batch_input": [],
        "batch_output": [],
        "instance_group": [] if is_pipeline else [_instance_group(name, signature, settings)],
        "parameters": {key: {"string_value": value} for key, value in settings.parameters.items()},
        "model_warmup": [_warmup(sample) for sample in settings.warmup],
        "model_transaction_policy": {"decoupled": settings.decoupled},
        "response_cache": {"enable": settings.response_cache_bytes > 0},
        **_scheduling(variant),
    }


def data_type(datatype: str) -> str:
    """The proto's name of an Open Inference Protocol datatype."""
    return f"TYPE_{_STRING.get(datatype, datatype)}"


def _dims(spec: TensorSpec, signature: Signature) -> list[int]:
    return list(spec.shape[1:] if signature.max_batch_size else spec.shape)


def _reshape(spec: TensorSpec, settings: RuntimeSettings) -> dict[str, Any]:
    own = settings.reshapes.get(spec.name)
    return {} if own is None else {"reshape": {"shape": list(own)}}


def _input(spec: TensorSpec, signature: Signature) -> dict[str, Any]:
    return {
        "name": spec.name,
        "data_type": data_type(spec.datatype),
        "format": "FORMAT_NONE",
        "dims": _dims(spec, signature),
        "is_shape_tensor": False,
        "allow_ragged_batch": False,
        "optional": spec.optional,
    }


def _output(spec: TensorSpec, signature: Signature) -> dict[str, Any]:
    return {
        "name": spec.name,
        "data_type": data_type(spec.datatype),
        "dims": _dims(spec, signature),
        "label_filename": "",
        "is_shape_tensor": False,
    }


def _instance_group(name: str, signature: Signature, settings: RuntimeSettings) -> dict[str, Any]:
    only = signature.platforms[0] if len(signature.platforms) == 1 else ""
    return {"name": name, "kind": _KINDS.get(only, "KIND_AUTO"), "count": settings.instances}


def _scheduling(variant: VariantRoute) -> dict[str, Any]:
    if variant.pipeline is not None:
        return {"ensemble_scheduling": _ensemble(variant.pipeline)}
    if variant.settings.sequence is not None:
        return {"sequence_batching": _sequence(variant.settings.sequence)}
    if variant.signature.max_batch_size:
        return {"dynamic_batching": _dynamic(variant.settings)}
    return {}


def _dynamic(settings: RuntimeSettings) -> dict[str, Any]:
    return {
        "preferred_batch_size": list(settings.preferred_batch_sizes),
        "max_queue_delay_microseconds": settings.max_queue_delay_us or 0,
        "preserve_ordering": settings.preserve_ordering,
        "priority_levels": settings.priority_levels,
        "default_priority_level": settings.default_priority_level,
        "default_queue_policy": _policy(settings.queue_policy),
        "priority_queue_policy": {level: _policy(policy) for level, policy in settings.priority_policies.items()},
    }


def _policy(policy: QueuePolicy) -> dict[str, Any]:
    return {
        "timeout_action": policy.timeout_action.upper(),
        "default_timeout_microseconds": policy.default_timeout_us,
        "allow_timeout_override": policy.allow_timeout_override,
        "max_queue_size": policy.max_queue_size,
    }


def _sequence(found: SequenceSettings) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "max_sequence_idle_microseconds": found.max_idle_us,
        "control_input": _controls(found.controls),
        "state": [_state(state) for state in found.states],
    }
    if found.strategy == "direct":
        answer["direct"] = {
            "max_queue_delay_microseconds": found.max_queue_delay_us,
            "minimum_slot_utilization": found.minimum_slot_utilization,
        }
    else:
        answer["oldest"] = {
            "max_candidate_sequences": found.max_candidates,
            "preferred_batch_size": list(found.preferred_batch_sizes),
            "max_queue_delay_microseconds": found.max_queue_delay_us,
        }
    return answer


def _controls(controls: list[ControlInput]) -> list[dict[str, Any]]:
    """One entry an input, with all of its controls."""
    inputs: dict[str, list[dict[str, Any]]] = {}
    for control in controls:
        inputs.setdefault(control.name, []).append(_control(control))
    return [{"name": name, "control": found} for name, found in inputs.items()]


def _control(control: ControlInput) -> dict[str, Any]:
    kind: dict[str, Any] = {"kind": _CONTROLS[control.kind]}
    if control.kind == "correlation_id":
        return kind | {"data_type": data_type(control.datatype)}
    if control.datatype == "BOOL":
        return kind | {"bool_false_true": [bool(control.off), bool(control.on)]}
    if control.datatype == "INT32":
        return kind | {"int32_false_true": [int(control.off), int(control.on)]}
    return kind | {"fp32_false_true": [control.off, control.on]}


def _state(state: StateTensor) -> dict[str, Any]:
    initial: dict[str, Any] = {"data_type": data_type(state.datatype), "dims": list(state.shape), "name": "initial"}
    initial |= {"data_file": state.initial_file} if state.initial_file else {"zero_data": True}
    return {
        "input_name": state.input,
        "output_name": state.output,
        "data_type": data_type(state.datatype),
        "dims": list(state.shape),
        "initial_state": [initial],
    }


def _ensemble(pipeline: PipelineRoute) -> dict[str, Any]:
    """Triton's maps go from the step's tensors to the graph's, as ours do."""
    steps = [
        {
            "model_name": step.model,
            "model_version": step.version,
            "input_map": dict(step.input_map),
            "output_map": dict(step.output_map),
        }
        for step in pipeline.steps
    ]
    return {"step": steps}


def _warmup(sample: WarmupSample) -> dict[str, Any]:
    inputs = {spec.name: _warmup_input(spec, sample.data.get(spec.name, "zero")) for spec in sample.inputs}
    return {"name": sample.name, "batch_size": sample.batch_size, "count": sample.count, "inputs": inputs}


def _warmup_input(spec: TensorSpec, data: str) -> dict[str, Any]:
    words = {"zero": {"zero_data": True}, "random": {"random_data": True}}
    return {
        "data_type": data_type(spec.datatype),
        "dims": list(spec.shape),
        **words.get(data, {"input_data_file": data}),
    }
