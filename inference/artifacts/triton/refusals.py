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
# What no ensemble has: Triton refuses some of it too, and the rest has nothing here that could honour it.
NOT_FOR_ENSEMBLES = {
    "input.optional": "an ensemble waits for all of its inputs",
    "input.reshape": "reshape belongs to the models of its steps",
    "output.reshape": "reshape belongs to the models of its steps",
    "instance_group": "instances belong to the models of its steps",
    "model_warmup": "warm-up belongs to the models of its steps",
    "model_transaction_policy.decoupled": "an ensemble gives one answer a request",
    "response_cache.enable": "answers are cached by step: enable it in the models of its steps",
    "default_model_filename": "an ensemble has no file",
    "parameters": "an ensemble has no code that could read them",
    "optimization": "an ensemble has no graph of its own",
}
ALL_INPUTS = {"input.optional": "a graph takes all of its inputs: optional ones are for Python models"}
BY_BACKEND = {"ensemble": NOT_FOR_ENSEMBLES, "onnxruntime": ALL_INPUTS, "pytorch": ALL_INPUTS}
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


def check(config: Any, backend: str) -> list[str]:
    """Notes on the hints that are set. Raises Rejected for the first field that is refused."""
    notes = []
    reasons = REASONS | BY_BACKEND.get(backend, {})
    for path in dict.fromkeys(_paths(config, "")):
        if path in reasons:
            raise refuse(path, reasons[path])
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
        kind = field.message_type
        if kind is None:
            continue
        if kind.GetOptions().map_entry:
            inside = value.values() if kind.fields_by_name["value"].message_type is not None else ()
        else:
            inside = value if field.is_repeated else (value,)
        for one in inside:
            yield from _paths(one, f"{path}.")
