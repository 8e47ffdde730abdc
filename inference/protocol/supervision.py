"""Messages between a host's agent and its supervisor, over a unix socket (mode 0600), as frames with no body.

The agent sends the whole wanted set each time, so a lost or doubled message changes nothing.
"""

from __future__ import annotations

import msgspec

from inference.protocol.oip import Signature
from inference.protocol.status import ReplicaPhase


class FileRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of an artifact: its path inside the artifact, its size and its sha256 (hex)."""

    path: str
    size_bytes: int
    sha256: str


class AdapterSpec(msgspec.Struct, frozen=True):
    """A LoRA adapter for a replica of the version that it changes. name: how requests name it; label: MODEL:NUMBER of the
    adapter's own version, whose digest and files these are.
    """

    name: str
    label: str
    digest: str
    files: list[FileRef]


class AdapterSeen(msgspec.Struct, frozen=True):
    """Where an adapter stands in a replica. state: "waiting" (for files or for a slot), "loaded", "failed", or "leaving"
    while requests that began with it still run; message: why, where it is not loaded.
    """

    name: str
    digest: str
    state: str
    message: str = ""


class ReplicaSpec(msgspec.Struct, frozen=True):
    """Everything a replica is started from. It holds no secret.

    settings: the version's RuntimeSettings as a mapping (see inference.artifacts.manifest).
    device: "cpu", "cuda:N" or "tpu:N"; memory_bytes: of the host's memory, 0 for no limit.
    device_memory_bytes, device_memory_share: what its framework may take of an accelerator, and that as a part (0..1)
    of the whole device; 0 where it was not said. adapters: the only part that changes while the replica runs.
    """

    id: str
    generation: int
    model: str
    version: int
    digest: str
    format: str
    tier: str
    files: list[FileRef]
    signature: Signature
    settings: dict[str, object]
    device: str = "cpu"
    memory_bytes: int = 0
    threads: int = 1
    device_memory_bytes: int = 0
    device_memory_share: float = 0.0
    adapters: list[AdapterSpec] = msgspec.field(default_factory=list)


class ReplicaSeen(msgspec.Struct, frozen=True):
    """What the supervisor sees of one replica. `address` is stable over restarts.

    device_memory_bytes: what it holds of its accelerator; compiles_after_ready: programs compiled while callers waited.
    """

    id: str
    generation: int
    phase: ReplicaPhase
    address: str = ""
    pid: int = 0
    restarts: int = 0
    message: str = ""
    memory_bytes: int = 0
    queue_depth: int = 0
    ready_since_s: float = 0.0
    device_memory_bytes: int = 0
    compiles_after_ready: int = 0
    adapters: list[AdapterSeen] = msgspec.field(default_factory=list)


class ValidationSpec(msgspec.Struct, frozen=True):
    """One run of the one-shot validation. `lease` is the fencing token that comes back with the result.

    purpose: "validate", or "convert": write a lone torch pickle's tensors as safetensors, and load nothing.
    """

    run: str
    lease: int
    model: str
    version: int
    digest: str
    tier: str
    files: list[FileRef]
    settings: dict[str, object]
    device: str = "cpu"
    purpose: str = "validate"


class CheckSeen(msgspec.Struct, frozen=True):
    """One line of the report's checklist. state: "running", "passed", "failed", "skipped"."""

    name: str
    state: str
    message: str = ""
    remedy: str = ""
    ms: float = 0.0


class LanguageSeen(msgspec.Struct, frozen=True):
    """What validation learnt of a language model.

    stored: how the file keeps most weights ("Q4_1", "BF16"); dtype: what they are loaded as; quantization: of the weights
    at load. weight_bytes: of all weights once loaded; cache_bytes_per_1000: of the keys and values of 1,000 tokens.
    perplexity: on the built-in text; perplexity_plain: the same without quantization, 0 where there is none.
    path: "decoder", or "transformers" for the slower one; prompt_tokens_per_s: of one prompt alone. draft: architecture of
    the draft model, "" for none; draft_parameters: its own; draft_agreement: 0..1, how often its likeliest token is the
    model's, on the built-in text.
    """

    architecture: str
    parameters: int
    layers: int
    context: int
    vocabulary: int
    stored: str
    dtype: str
    weight_bytes: int
    cache_bytes_per_1000: int
    has_chat_template: bool
    path: str = "decoder"
    quantization: str = "none"
    perplexity: float = 0.0
    perplexity_plain: float = 0.0
    prompt_tokens_per_s: float = 0.0
    draft: str = ""
    draft_parameters: int = 0
    draft_agreement: float = 0.0


class Measurements(msgspec.Struct, frozen=True):
    """What validation measured. latency_ms: batch size -> median of one forward pass in ms (of a language model: of one
    step of so many sequences).
    """

    load_ms: float = 0.0
    peak_memory_bytes: int = 0
    latency_ms: dict[str, float] = msgspec.field(default_factory=dict)
    language: LanguageSeen | None = None


class TensorSeen(msgspec.Struct, frozen=True):
    """A tensor of a converted file; dtype as safetensors names it ("F32")."""

    name: str
    dtype: str
    shape: list[int]


class ValidationSeen(msgspec.Struct, frozen=True):
    """State of a validation run. state: "running", "ready", "rejected", "lost" (the child could not be run at all).

    task: what the model does ("text-generation"), where its files tell.
    converted: files that were made; tensors: the first of what is in them, tensor_count: how many there are.
    """

    run: str
    lease: int
    state: str
    checks: list[CheckSeen] = msgspec.field(default_factory=list)
    format: str = ""
    tier: str = ""
    task: str = ""
    signature: Signature | None = None
    settings: dict[str, object] = msgspec.field(default_factory=dict)
    measurements: Measurements = Measurements()
    converted: list[FileRef] = msgspec.field(default_factory=list)
    tensors: list[TensorSeen] = msgspec.field(default_factory=list)
    tensor_count: int = 0
    reason: str = ""
    remedy: str = ""


class DeviceSeen(msgspec.Struct, frozen=True):
    """kind: "cpu", "cuda" or "tpu". Memory in bytes; 0 where it cannot be told. utilisation 0..1, -1 unknown."""

    name: str
    kind: str
    memory_total_bytes: int
    memory_free_bytes: int
    utilisation: float = -1.0
    description: str = ""


class Converge(msgspec.Struct, tag="converge", frozen=True):
    """Agent -> supervisor: have exactly these replicas and at least these validations. Answer: Seen."""

    replicas: list[ReplicaSpec]
    validations: list[ValidationSpec] = msgspec.field(default_factory=list)


class Look(msgspec.Struct, tag="look", frozen=True):
    """Anybody -> supervisor: what is there? Changes nothing. Answer: Seen."""


class Restart(msgspec.Struct, tag="restart", frozen=True):
    """Agent -> supervisor: kill this replica now; it comes back at once. Answer: Seen."""

    replica: str


class Seen(msgspec.Struct, tag="seen", frozen=True):
    """Supervisor -> agent. `boot` changes with every start of the supervisor."""

    boot: str
    pid: int
    replicas: list[ReplicaSeen]
    validations: list[ValidationSeen] = msgspec.field(default_factory=list)
    devices: list[DeviceSeen] = msgspec.field(default_factory=list)
    standby_ready: bool = False


class Refused(msgspec.Struct, tag="refused", frozen=True):
    code: str
    message: str


ToSupervisor = Converge | Look | Restart
FromSupervisor = Seen | Refused
