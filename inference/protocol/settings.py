"""How a version is to be run: set by its author, part of its digest, read by replica, gateway and console.

Names and meanings follow Triton's model configuration where it has them. A field that says nothing is left out of the
encoded form, so that a setting which is added later changes no digest.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from inference.protocol.oip import TensorSpec

MAX_ROWS = 4096
Rows = Annotated[int, msgspec.Meta(ge=1, le=MAX_ROWS)]
Microseconds = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
MAX_PRIORITY = 64


class QueuePolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one priority level's queue allows.

    max_queue_size: requests that may wait, 0 for no bound but the replica's `queue_limit`; default_timeout_us: how
    long a request may wait, 0 for ever; allow_timeout_override: a request's own `timeout` may shorten that;
    timeout_action: a request that waited too long is refused, or delayed behind all that did not.
    """

    max_queue_size: Annotated[int, msgspec.Meta(ge=0, le=65536)] = 0
    default_timeout_us: Microseconds = 0
    allow_timeout_override: bool = False
    timeout_action: Literal["reject", "delay"] = "reject"


class ControlInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An input that the server fills in for a stateful model: one value a row.

    off, on: the two values of "start", "end" and "ready"; "correlation_id" is the sequence's own number.
    """

    name: str
    kind: Literal["start", "end", "ready", "correlation_id"]
    datatype: str = "FP32"
    off: float = 0.0
    on: float = 1.0


class StateTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """State that the replica keeps between the requests of a sequence: output `output` becomes the next input `input`.

    shape: of one sequence's state, without the batch dimension, unless `batch_axis` names where the batch stands in
    the model's own tensors (Silero VAD keeps it second). initial: zeros, or the bytes of `initial_file`.
    """

    input: str
    output: str
    datatype: str
    shape: list[int]
    batch_axis: Annotated[int, msgspec.Meta(ge=0, le=15)] = 0
    initial_file: str = ""


class SequenceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A stateful model. direct: a sequence owns a batch slot for its life; oldest: dynamic batches over the oldest
    requests, one in flight a sequence. max_candidates: sequences that may be open at once on a replica.
    """

    strategy: Literal["direct", "oldest"] = "direct"
    max_idle_us: Microseconds = 1_000_000_000
    max_candidates: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 1024
    max_queue_delay_us: Microseconds = 0
    preferred_batch_sizes: list[Rows] = msgspec.field(default_factory=list)
    minimum_slot_utilization: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    controls: list[ControlInput] = msgspec.field(default_factory=list)
    states: list[StateTensor] = msgspec.field(default_factory=list)


class WarmupSample(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One warm-up request of the author's. data: "zero", "random", or a file of the artifact, by input name."""

    name: str
    batch_size: Rows = 1
    count: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 1
    inputs: list[TensorSpec] = msgspec.field(default_factory=list)
    data: dict[str, str] = msgspec.field(default_factory=dict)


class Speculation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Drafts that one pass verifies. Off by itself where it does not pay. tokens: drafts a step.

    ngram: looked up in the text so far, by its last `longest_match` to `shortest_match` tokens. draft: made by a smaller
    model with the same vocabulary: the one in the version's folder draft/, or (draft "self") this version's own weights,
    quantised another way. quantization: of the draft model's weights, at load; "same" for the version's own setting.
    """

    method: Literal["ngram", "draft"] = "ngram"
    tokens: Annotated[int, msgspec.Meta(ge=1, le=16)] = 4
    draft: Literal["folder", "self"] = "folder"
    quantization: Literal["same", "none", "int8", "int4", "gguf"] = "same"
    longest_match: Annotated[int, msgspec.Meta(ge=1, le=16)] = 4
    shortest_match: Annotated[int, msgspec.Meta(ge=1, le=16)] = 2


class GenerationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a language model is to be run; names follow vLLM's where it has them.

    max_model_len: 0 for the model's own context. max_num_seqs: sequences that run at once. max_num_batched_tokens: new
    tokens of one iteration, over all sequences. long_prefill_token_threshold: the most of one prompt in an iteration
    while others decode, 0 for no such bound. cache_bytes: memory for keys and values, 0 to take what is free.
    max_queued_tokens: prompt tokens that may wait, 0 for no bound but `queue_limit`. offload_bytes: host memory for
    cold prefixes. quantization: of the weights, at load; "gguf" keeps those of a GGUF file as they are.
    kv_cache_dtype: of keys and values, fp8 where the GPU has it. cuda_graphs: record steps of decodes on a GPU.
    tool_parser, reasoning_parser: "auto" goes by the model's family, "none" for none. chat_template: instead of the
    model's own (Jinja). trust_request_chat_template: a chat may bring a template of its own.
    """

    max_model_len: Annotated[int, msgspec.Meta(ge=0, le=1 << 22)] = 0
    max_num_seqs: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 64
    max_num_batched_tokens: Annotated[int, msgspec.Meta(ge=16, le=1 << 20)] = 512
    long_prefill_token_threshold: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] = 0
    block_size: Literal[8, 16, 32, 64, 128] = 16
    cache_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 44)] = 0
    max_queued_tokens: Annotated[int, msgspec.Meta(ge=0, le=1 << 32)] = 0
    enable_prefix_caching: bool = True
    offload_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 44)] = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    kv_cache_dtype: Literal["auto", "float32", "bfloat16", "fp8"] = "auto"
    cuda_graphs: bool = False
    quantization: Literal["none", "int8", "int4", "gguf"] = "none"
    speculation: Speculation | None = None
    tool_parser: Literal["auto", "none", "hermes", "llama3", "mistral"] = "auto"
    reasoning_parser: Literal["auto", "none", "think"] = "auto"
    chat_template: Annotated[str, msgspec.Meta(max_length=1 << 18)] = ""
    trust_request_chat_template: bool = False
    max_adapters: Annotated[int, msgspec.Meta(ge=0, le=256)] = 0
    max_adapter_rank: Annotated[int, msgspec.Meta(ge=1, le=512)] = 64


DEFAULT_WINDOW_MS = 5.0


class RuntimeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a version is to be run. Part of its digest.

    max_batch_size: 0 lets validation choose. window_ms: how long the first request of a batch may wait for others that
    are likely to come (None: DEFAULT_WINDOW_MS, or what a latency objective finds); nobody waits for it alone.
    buckets: batch sizes to compile. task: for Hugging Face encoders. queue_limit: requests that may wait at one
    replica. hang_timeout_s: a forward pass longer than this is killed.

    Dynamic batching: `preferred_batch_sizes` are released as soon as one is reached; `max_queue_delay_us` (None: not
    set) holds a smaller batch for so long even where nobody is expected, as Triton does. `latency_objective_ms` is a
    p99 that the batcher holds by choosing window and size itself; explicit settings win. `preserve_ordering`: answers
    leave in the order in which requests came. `priority_levels`: 1 is the highest; 0 means no priorities.
    `delay_until`: requests that must wait before the first batch runs (for tests, TRITONSERVER_DELAY_SCHEDULER).

    instances: copies of the model in one replica that run side by side. compile: how torch programs are compiled.
    bucket_lengths: padded lengths for text, empty for automatic grouping. response_cache_bytes: 0 is no cache.
    decoupled: a request may have any number of answers. sequence: a stateful model. inputs, outputs: declared where
    the artifact does not say them (TorchScript), in the form that clients see; `max_batch_size` is then exact, and 0
    means that nothing is batched. reshapes: tensor -> the shape (without the batch dimension) that the model itself
    takes or gives where clients see another one. parameters: handed to the model as they are. constants: inputs that
    have one value for ever (Silero VAD's sampling rate); clients do not see them. nan_policy: an answer with NaN or
    infinity is given out (JSON has null for it) and counted as invalid, refused as the error `invalid_output`, or not
    looked for ("ignore": the model means it). generation: how a language
    model is run; others have none.
    """

    max_batch_size: Annotated[int, msgspec.Meta(ge=0, le=MAX_ROWS)] = 0
    window_ms: Annotated[float, msgspec.Meta(ge=0, le=50)] | None = None
    buckets: list[Rows] = msgspec.field(default_factory=list)
    task: str = ""
    queue_limit: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 1024
    hang_timeout_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 30.0
    labels: list[str] = msgspec.field(default_factory=list)
    preferred_batch_sizes: list[Rows] = msgspec.field(default_factory=list)
    max_queue_delay_us: Microseconds | None = None
    latency_objective_ms: Annotated[float, msgspec.Meta(ge=0, le=600_000)] = 0.0
    preserve_ordering: bool = False
    priority_levels: Annotated[int, msgspec.Meta(ge=0, le=MAX_PRIORITY)] = 0
    default_priority_level: Annotated[int, msgspec.Meta(ge=0, le=MAX_PRIORITY)] = 0
    queue_policy: QueuePolicy = QueuePolicy()
    priority_policies: dict[str, QueuePolicy] = msgspec.field(default_factory=dict)
    delay_until: Annotated[int, msgspec.Meta(ge=0, le=65536)] = 0
    instances: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    compile: Literal["none", "compile", "cuda_graphs"] = "none"
    bucket_lengths: list[Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]] = msgspec.field(default_factory=list)
    response_cache_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)] = 0
    decoupled: bool = False
    sequence: SequenceSettings | None = None
    warmup: list[WarmupSample] = msgspec.field(default_factory=list)
    inputs: list[TensorSpec] = msgspec.field(default_factory=list)
    outputs: list[TensorSpec] = msgspec.field(default_factory=list)
    parameters: dict[str, str] = msgspec.field(default_factory=dict)
    reshapes: dict[str, list[int]] = msgspec.field(default_factory=dict)
    constants: dict[str, bool | int | float] = msgspec.field(default_factory=dict)
    nan_policy: Literal["pass", "reject", "ignore"] = "pass"
    generation: GenerationSettings | None = None
