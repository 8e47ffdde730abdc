"""Which fields of ModelConfig are honoured, which are hints that change no answer, and which are refused by name.

A path is a field's name after those of the messages around it; repeated and map fields have no index.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from inference.errors import Rejected

REASONS = {
    "runtime": "the runtime is chosen by Serinus: leave it out",
    "batch_input": "inputs made from a whole batch (ragged batches) are not built",
    "batch_output": "outputs scattered over a ragged batch are not built",
    "cc_model_filenames": "files by compute capability are not built: name one default_model_filename",
    "metric_tags": "tags on metrics are not built",
    "model_operations": "libraries of custom operators are native code and never loaded",
    "model_repository_agents": "repository agents are native code and never loaded",
    "model_metrics": "custom buckets of histograms are not built",
    "input.is_shape_tensor": "shape tensors belong to TensorRT",
    "input.allow_ragged_batch": "ragged batches are not built: pad in the client or the model",
    "input.optional": "optional inputs are not built: every request holds all inputs",
    "input.is_non_linear_format_io": "non-linear formats belong to TensorRT",
    "output.is_shape_tensor": "shape tensors belong to TensorRT",
    "output.is_non_linear_format_io": "non-linear formats belong to TensorRT",
    "instance_group.rate_limiter": "the rate limiter is not built: use instance counts and queue sizes",
    "instance_group.secondary_devices": "secondary devices are not built",
    "instance_group.profile": "profiles belong to TensorRT",
    "instance_group.passive": "passive instances are not built",
    "instance_group.host_policy": "host policies are not built",
    "optimization.execution_accelerators": "TensorRT, OpenVINO and other accelerators are not built",
    "optimization.cuda.graph_spec": "graphs by shape belong to TensorRT",
    "sequence_batching.iterative_sequence": "iterative sequences are not built",
    "sequence_batching.state.use_growable_memory": "growable state is not built",
    "ensemble_scheduling.step.model_namespace": "namespaces are not built",
}
HINTS = {
    "optimization.graph",
    "optimization.priority",
    "optimization.cuda",
    "optimization.input_pinned_memory",
    "optimization.output_pinned_memory",
    "optimization.gather_kernel_buffer_threshold",
    "optimization.eager_batching",
    "sequence_batching.state.use_same_buffer_for_input_output",
    "input.format",
}
# Parameters by which Triton's own backends are tuned: they change no answer, and mean nothing elsewhere.
HINT_PARAMETERS = {
    "onnxruntime": (
        "session.", "intra_op_thread_count", "inter_op_thread_count", "execution_mode", "level", "memory.", "cudnn_conv",
        "do_copy_in_default_stream", "enable_mem_arena", "enable_mem_pattern", "share_session_between_instances",
    ),
    "pytorch": (
        "DISABLE_OPTIMIZED_EXECUTION", "INFERENCE_MODE", "DISABLE_CUDNN", "ENABLE_WEIGHT_SHARING",
        "ENABLE_CACHE_CLEANING", "ENABLE_JIT_EXECUTOR", "ENABLE_JIT_PROFILING", "ENABLE_TENSOR_FUSER",
        "INTRA_OP_THREAD_COUNT", "INTER_OP_THREAD_COUNT", "ENABLE_TORCH_", "TORCH_COMPILE",
    ),
    "python": ("FORCE_CPU_ONLY_INPUT_TENSORS", "TRITON_GATHER_OUTPUT"),
}  # fmt: skip
REFUSED_PARAMETERS = {
    "EXECUTION_ENV_PATH": "packed environments are not built: install what the model needs beside Serinus",
    "MODEL_LOG_CONFIG_FILE": "it is not built",
}


def refuse(path: str, reason: str) -> Rejected:
    """The error for a field that is set and not supported."""
    return Rejected(
        f"field '{path}' of config.pbtxt is not supported: {reason}",
        remedy="Take it out of config.pbtxt if the model does not need it; docs/triton.md lists what is read.",
    )


def check(config: Any) -> list[str]:
    """Notes on the hints that are set. Raises Rejected for the first field that is refused."""
    notes = []
    for path in dict.fromkeys(_paths(config, "")):
        if path in REASONS:
            raise refuse(path, REASONS[path])
        if path in HINTS:
            notes.append(f"'{path}' is a hint that changes no answer: not used here")
    return notes


def check_parameters(names: list[str], backend: str) -> list[str]:
    """Notes on parameters that only tune Triton's backends. Raises Rejected for those that change what runs."""
    notes = []
    for name in names:
        if name in REFUSED_PARAMETERS:
            raise refuse(f"parameters.{name}", REFUSED_PARAMETERS[name])
        if name.startswith(HINT_PARAMETERS.get(backend, ())):
            notes.append(f"parameter '{name}' tunes Triton's {backend} backend: not used here")
    return notes


def _paths(found: Any, before: str) -> Iterator[str]:
    for field, value in found.ListFields():
        path = f"{before}{field.name}"
        yield path
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for one in value if field.is_repeated else (value,):
            yield from _paths(one, f"{path}.")
