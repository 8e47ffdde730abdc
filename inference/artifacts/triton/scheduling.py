"""dynamic_batching and sequence_batching of a ModelConfig as fields of RuntimeSettings."""

from __future__ import annotations

from typing import Any

from inference.artifacts.triton.refusals import refuse
from inference.artifacts.triton.tensors import datatype
from inference.protocol.settings import MAX_PRIORITY, ControlInput, QueuePolicy, SequenceSettings, StateTensor

STATE_FOLDER = "initial_state"
IDLE_US = 1_000_000  # Triton's own default
DEFAULT_CANDIDATES = 1024
KINDS = {0: "start", 1: "ready", 2: "end", 3: "correlation_id"}
CORRELATION_TYPES = {"UINT64", "INT64", "UINT32", "INT32", "BYTES"}
PAIRS = {"int32_false_true": "INT32", "fp32_false_true": "FP32", "bool_false_true": "BOOL"}


def dynamic(batching: Any, max_batch_size: int) -> dict[str, Any]:
    """Fields of RuntimeSettings. A delay of 0 is Triton's word for "not set"."""
    levels, default = batching.priority_levels, batching.default_priority_level
    if levels > MAX_PRIORITY:
        raise refuse("dynamic_batching.priority_levels", f"at most {MAX_PRIORITY} levels are built")
    if levels and not 1 <= default <= levels:
        raise refuse("dynamic_batching.default_priority_level", f"{default} is not from 1 to {levels}")
    for level in batching.priority_queue_policy:
        if not 1 <= level <= levels:
            raise refuse("dynamic_batching.priority_queue_policy", f"{level} is not from 1 to {levels}")
    found: dict[str, Any] = {
        "preferred_batch_sizes": preferred(
            batching.preferred_batch_size, max_batch_size, "dynamic_batching.preferred_batch_size"
        ),
        "preserve_ordering": batching.preserve_ordering,
        "priority_levels": levels,
        "default_priority_level": default,
        "queue_policy": _policy(batching.default_queue_policy),
        "priority_policies": {
            str(level): _policy(policy) for level, policy in sorted(batching.priority_queue_policy.items())
        },
    }
    if batching.max_queue_delay_microseconds:
        found["max_queue_delay_us"] = batching.max_queue_delay_microseconds
    return found


def preferred(sizes: Any, max_batch_size: int, path: str) -> list[int]:
    """Ascending. Raises Rejected for a size that no batch can have."""
    found = sorted(set(sizes))
    if found and not 1 <= found[0] <= found[-1] <= max_batch_size:
        raise refuse(path, f"{found} must be from 1 to max_batch_size, which is {max_batch_size}")
    return found


def _policy(policy: Any) -> QueuePolicy:
    return QueuePolicy(
        max_queue_size=policy.max_queue_size,
        default_timeout_us=policy.default_timeout_microseconds,
        allow_timeout_override=policy.allow_timeout_override,
        timeout_action="delay" if policy.timeout_action else "reject",
    )


def sequence(batching: Any, max_batch_size: int) -> SequenceSettings:
    """Direct where no strategy is named, as Triton has it."""
    strategy = batching.WhichOneof("strategy_choice") or "direct"
    found: dict[str, Any] = {
        "strategy": strategy,
        "max_idle_us": batching.max_sequence_idle_microseconds or IDLE_US,
        "controls": [_control(control) for control in batching.control_input],
        "states": [_state(state) for state in batching.state],
    }
    if strategy == "direct":
        found["max_queue_delay_us"] = batching.direct.max_queue_delay_microseconds
        found["minimum_slot_utilization"] = batching.direct.minimum_slot_utilization
    else:
        path = "sequence_batching.oldest.preferred_batch_size"
        found["max_candidates"] = batching.oldest.max_candidate_sequences or DEFAULT_CANDIDATES
        found["preferred_batch_sizes"] = preferred(batching.oldest.preferred_batch_size, max_batch_size, path)
        found["max_queue_delay_us"] = batching.oldest.max_queue_delay_microseconds
    return SequenceSettings(**found)


def _control(given: Any) -> ControlInput:
    path = "sequence_batching.control_input.control"
    if len(given.control) != 1:
        raise refuse(path, f"input '{given.name}' must have exactly one control")
    control = given.control[0]
    kind = KINDS[control.kind]
    if kind == "correlation_id":
        kind_of_id = datatype(control.data_type, control, path)
        if kind_of_id not in CORRELATION_TYPES:
            raise refuse(f"{path}.data_type", f"a correlation id is one of {', '.join(sorted(CORRELATION_TYPES))}")
        return ControlInput(name=given.name, kind="correlation_id", datatype=kind_of_id)
    pairs = [(name, list(getattr(control, name))) for name in PAIRS if getattr(control, name)]
    if len(pairs) != 1 or len(pairs[0][1]) != 2:
        raise refuse(path, f"input '{given.name}' must say two values by one of {', '.join(PAIRS)}")
    name, (off, on) = pairs[0]
    return ControlInput(name=given.name, kind=kind, datatype=PAIRS[name], off=float(off), on=float(on))  # type: ignore[arg-type]  # KINDS holds the literals


def _state(given: Any) -> StateTensor:
    path = "sequence_batching.state"
    if len(given.initial_state) > 1:
        raise refuse(f"{path}.initial_state", f"'{given.input_name}' has more than one")
    dims, file = list(given.dims), ""
    for initial in given.initial_state:
        if initial.data_type != given.data_type:
            raise refuse(
                f"{path}.initial_state.data_type", f"'{given.input_name}' begins with another type than it has"
            )
        if initial.WhichOneof("state_data") is None:
            raise refuse(f"{path}.initial_state", f"'{given.input_name}' says neither zero_data nor data_file")
        dims = list(initial.dims) or dims
        if initial.WhichOneof("state_data") == "data_file":
            file = f"{STATE_FOLDER}/{initial.data_file}"
    if any(size < 1 for size in dims):
        raise refuse(f"{path}.dims", f"'{given.input_name}' has free dimensions: give sizes in initial_state.dims")
    kind = datatype(given.data_type, given, path)
    return StateTensor(input=given.input_name, output=given.output_name, datatype=kind, shape=dims, initial_file=file)
