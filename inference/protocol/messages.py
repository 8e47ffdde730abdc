"""Messages between gateway and replica, one tagged union each way.

A frame (see frames.py) is a header, which is one of these in msgpack, and a body, which is the tensors' bytes in the
order of `tensors`. Times on this wire are durations, never clock readings: the ends may stand on different hosts.
"""

from __future__ import annotations

import msgspec

from inference.protocol.statistics import ModelStatistics

BACKGROUND = -100  # a priority that no client can name
MAX_HOPS = 8  # models that a model calls may call others, so deep
MAX_CALLS = 256  # of one connection, at once
MAX_CALL_BYTES = 256 << 20  # what they ask, together


class TensorHeader(msgspec.Struct, frozen=True, array_like=True):
    """A tensor whose `size_bytes` bytes lie in the frame's body. Its shape holds no -1."""

    name: str
    datatype: str
    shape: list[int]
    size_bytes: int


class SequenceControl(msgspec.Struct, frozen=True, array_like=True):
    """Which sequence a request belongs to, and whether it begins or ends it. `id`: a number or a name, never 0 or ""."""

    id: int | str
    start: bool = False
    end: bool = False


class Infer(msgspec.Struct, tag="infer", frozen=True, array_like=True):
    """Gateway -> replica: run these inputs; answer or fault under the same `id` within `timeout_ms`.

    `outputs` names the wanted outputs, empty for all. `priority` 0 is the version's default, 1 the highest;
    BACKGROUND is behind all others, whether the version has priorities or not.
    `queue_timeout_us`: how long it may wait in the queue, where the queue's policy lets requests say so; 0: not said.
    `traceparent`, `tracestate`: W3C trace context as it came, "" without any. `key`: the caller's key id, for fair
    queueing. `block`: the lent block that the tensors lie in from byte `at` on, instead of the frame's body; 0: they are
    the body. `room`: the lent block that the final answer's tensors may be written to; 0: there is none. `request_id`: the
    client's own, for models that look at it. `hops`: how deep the model's calls of other models may still go, 0: none may
    be made (nor does a gateway that does not say it pass any on).
    """

    id: int
    timeout_ms: int
    tensors: list[TensorHeader]
    outputs: list[str] = msgspec.field(default_factory=list)
    parameters: dict[str, str | int | float | bool] = msgspec.field(default_factory=dict)
    priority: int = 0
    queue_timeout_us: int = 0
    sequence: SequenceControl | None = None
    traceparent: str = ""
    key: str = ""
    block: int = 0
    at: int = 0
    room: int = 0
    tracestate: str = ""
    request_id: str = ""
    hops: int = 0


class Cancel(msgspec.Struct, tag="cancel", frozen=True, array_like=True):
    """Gateway -> replica (of a call the other way): the caller of `id` has left; drop it if it is not running yet. No answer."""

    id: int


class Pause(msgspec.Struct, tag="pause", frozen=True, array_like=True):
    """Gateway -> replica: the reader of the streaming request `id` is slow; hold further answers until Resume."""

    id: int


class Resume(msgspec.Struct, tag="resume", frozen=True, array_like=True):
    id: int


class Ask(msgspec.Struct, tag="ask", frozen=True, array_like=True):
    """Gateway -> replica: what did you do so far? Answered by Told under the same `id`."""

    id: int


class Lend(msgspec.Struct, tag="lend", frozen=True, array_like=True):
    """Gateway -> replica: here comes a block of memory (see blocks.py). The next byte, sent once the replica has
    answered Hand, has its descriptor beside it. is_for_answers: the replica may write there; else it reads inputs.
    """

    number: int
    size_bytes: int
    is_for_answers: bool


class Return(msgspec.Struct, tag="return", frozen=True, array_like=True):
    """Gateway -> replica: the block is given up, and named in no request any more. No answer."""

    number: int


class Hand(msgspec.Struct, tag="hand", frozen=True, array_like=True):
    """Replica -> gateway: hand it over; nothing but the descriptor is read here next."""

    number: int


class Mapped(msgspec.Struct, tag="mapped", frozen=True, array_like=True):
    """Replica -> gateway: requests may name the block from now on. Not said of one that could not be mapped."""

    number: int


class Ping(msgspec.Struct, tag="ping", frozen=True, array_like=True):
    """Either way; the other end answers Pong with the same token."""

    token: int


class Pong(msgspec.Struct, tag="pong", frozen=True, array_like=True):
    token: int


class Hello(msgspec.Struct, tag="hello", frozen=True, array_like=True):
    """Replica -> gateway, first frame on every connection. takes_blocks: blocks may be lent to it."""

    replica: str
    generation: int
    model: str
    version: int
    queue_limit: int
    takes_blocks: bool = False


class Answer(msgspec.Struct, tag="answer", frozen=True, array_like=True):
    """Replica -> gateway (of a call the other way): outputs of request `id`, and where its time went (ns).

    `final` is False while a decoupled model has more answers for this request; the final one may have no tensors.
    `is_in_room`: the tensors lie in the block that the request named as `room`, from its beginning on.
    `is_invalid`: a floating-point output holds NaN or infinity.
    """

    id: int
    tensors: list[TensorHeader]
    batch_size: int
    queue_ns: int
    compute_ns: int
    final: bool = True
    input_ns: int = 0
    output_ns: int = 0
    is_cached: bool = False
    parameters: dict[str, str | int | float | bool] = msgspec.field(default_factory=dict)
    is_invalid: bool = False
    is_in_room: bool = False


class Fault(msgspec.Struct, tag="fault", frozen=True, array_like=True):
    """Replica -> gateway: request `id` failed; `code` names a class of inference.errors. It ends the request."""

    id: int
    code: str
    message: str
    retry_after_s: float | None = None


class Told(msgspec.Struct, tag="told", frozen=True, array_like=True):
    """Replica -> gateway: the answer to Ask; under the id 0 what it did in all, before it ends."""

    id: int
    statistics: ModelStatistics


class CallModel(msgspec.Struct, tag="call", frozen=True, array_like=True):
    """Replica -> gateway: a model wants another model's answer. Answer or Fault come back under `id`, which is a number of
    the replica's own; Cancel, Pause and Resume under it go from the replica to the gateway.

    `parents`: the requests, under their ids on this connection, in whose execution it is made; one at least is still under
    way. `version` 0 leaves it to the endpoint called `model`. `many`: any number of answers is taken. `timeout_ms`: how long
    the replica waits, `timeout_us`: what the model says, 0 for nothing; the parents' own deadline holds as well. All else
    is as in Infer.
    """

    id: int
    parents: list[int]
    model: str
    version: int
    timeout_ms: int
    tensors: list[TensorHeader]
    outputs: list[str] = msgspec.field(default_factory=list)
    parameters: dict[str, str | int | float | bool] = msgspec.field(default_factory=dict)
    timeout_us: int = 0
    sequence: SequenceControl | None = None
    traceparent: str = ""
    request_id: str = ""
    many: bool = False


class Goodbye(msgspec.Struct, tag="goodbye", frozen=True, array_like=True):
    """Replica -> gateway: it drains; send nothing more here. What is under way is still answered."""


Steer = Cancel | Pause | Resume  # of a request by the gateway, of a call by the replica
ToReplica = Infer | Steer | Answer | Fault | Ask | Lend | Return | Ping | Pong
FromReplica = Hello | Answer | Fault | CallModel | Steer | Told | Goodbye | Hand | Mapped | Ping | Pong
