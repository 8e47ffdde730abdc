"""The routing table: everything a gateway knows, as one value with a generation number.

Published whole to Valkey under `TABLE_KEY`, announced on `TABLE_CHANNEL`, kept by each gateway in memory and on disk.
A gateway never goes back a generation.
"""

from __future__ import annotations

import msgspec

from inference.protocol.oip import Signature
from inference.protocol.settings import RuntimeSettings

TABLE_KEY = "serinus:routes"
TABLE_CHANNEL = "serinus:routes:changed"
SAMPLES_STREAM = "serinus:samples"
USED_KEYS = "serinus:keys:used"  # a set of the ids of keys that were used since it was looked at
DIFFS_STREAM = "serinus:diffs"
RECORDS_STREAM = "serinus:records"
WEIGHT_TOTAL_BP = 10_000


class ReplicaRoute(msgspec.Struct, frozen=True):
    """Where one ready replica listens: 'unix:/path' or 'tcp:host:port'."""

    id: str
    generation: int
    address: str


class StepRoute(msgspec.Struct, frozen=True):
    """One step of a pipeline: a version, where it runs, and how its tensors are named in the graph.

    input_map: the step's input -> the graph's tensor; output_map: the step's output -> the graph's tensor.
    max_inflight: requests that one gateway may have here at once, 0 for no bound but the replicas' queues.
    """

    name: str
    model: str
    version: int
    signature: Signature
    input_map: dict[str, str]
    output_map: dict[str, str]
    replicas: list[ReplicaRoute] = msgspec.field(default_factory=list)
    settings: RuntimeSettings = RuntimeSettings()
    max_inflight: int = 0


class PipelineRoute(msgspec.Struct, frozen=True):
    """A directed graph without cycles. Tensors of the graph are its inputs, by name, and what steps make."""

    steps: list[StepRoute]


class VariantRoute(msgspec.Struct, frozen=True):
    """One version behind an endpoint. Weight 0: reachable only by /versions/{n}.

    pipeline: set where the version is a graph of other versions; it then has no replicas of its own. adapters: names of
    the LoRA adapters that its replicas have loaded for this endpoint.
    """

    version: int
    arm: str
    weight_bp: int
    signature: Signature
    replicas: list[ReplicaRoute] = msgspec.field(default_factory=list)
    settings: RuntimeSettings = RuntimeSettings()
    pipeline: PipelineRoute | None = None
    adapters: list[str] = msgspec.field(default_factory=list)


class Match(msgspec.Struct, frozen=True):
    """Who is sent to a rollout's candidate whatever the shares say.

    source: "header" or "parameter" called `name`, "key" (the caller's key id) or "user" (of the platform's own tokens).
    values: any of these; prefix: what begins with it; neither: any value that is there. share_bp: how many of those who
    match, by the stable hash of the value.
    """

    source: str
    name: str = ""
    values: list[str] = msgspec.field(default_factory=list)
    prefix: str = ""
    share_bp: int = WEIGHT_TOTAL_BP


class Comparison(msgspec.Struct, frozen=True):
    """How two answers to one request are compared (inference.protocol.compare). kind: "auto" takes what fits the
    output; tolerance: the largest distance (0..1) that is no drift; k: of "top_k".
    """

    kind: str = "auto"
    tolerance: float = 0.01
    k: int = 5


class Steering(msgspec.Struct, frozen=True):
    """What a rollout does with an endpoint's traffic beside the shares, which are the variants' weights.

    mirror_bp: the share of the stable version's requests that are copied to the candidate; mirror_inflight: how many
    copies one gateway may have under way. rescue: a request that the candidate fails is asked once more of the stable
    version. match: see there. sticky: by what callers are assigned: "session" (X-Session-Id, else each request by
    itself) or "key" (X-Session-Id, else the API key).
    """

    rollout: str
    stable: int
    candidate: int
    mirror_bp: int = 0
    mirror_inflight: int = 32
    rescue: bool = True
    sticky: str = "session"
    match: list[Match] = msgspec.field(default_factory=list)
    comparison: Comparison = Comparison()


class Recording(msgspec.Struct, frozen=True):
    """The share of real requests that are kept, without their callers, to be replayed later. max_bytes: of one."""

    share_bp: int
    max_bytes: int = 65_536


class EndpointRoute(msgspec.Struct, frozen=True):
    """A public name. `salt` seeds the stable hash that assigns callers to variants. created_unix_s, team: since when it
    is there and whose it is, 0 and "" where that is not said. may_pin: a caller may choose a version by the header
    `X-Model-Version`, as by /versions/{n}.
    """

    name: str
    model: str
    salt: str
    public: bool
    timeout_ms: int
    queue_limit: int
    variants: list[VariantRoute] = msgspec.field(default_factory=list)
    created_unix_s: int = 0
    team: str = ""
    may_pin: bool = True
    steering: Steering | None = None
    recording: Recording | None = None


class KeyRoute(msgspec.Struct, frozen=True):
    """An API key's digest (hex sha256 of the secret) and the endpoints it may call; "*" is all.

    requests_per_s, rows_per_s: what a gateway lets through for it, with a second's worth in one burst; 0: no bound.
    """

    id: str
    digest: str
    endpoints: list[str]
    expires_at_unix_s: float | None = None
    requests_per_s: float = 0.0
    rows_per_s: float = 0.0


class RoutingTable(msgspec.Struct, frozen=True):
    generation: int
    endpoints: list[EndpointRoute] = msgspec.field(default_factory=list)
    keys: list[KeyRoute] = msgspec.field(default_factory=list)
    token_secret: str = ""


def encode(table: RoutingTable) -> bytes:
    return msgspec.json.encode(table)


def decode(data: bytes) -> RoutingTable:
    """Raises msgspec.ValidationError when `data` is no routing table."""
    return msgspec.json.decode(data, type=RoutingTable)
