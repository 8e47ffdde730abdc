"""Messages between gateway and replica, one tagged union each way.

A frame (see frames.py) is a header, which is one of these in msgpack, and a body, which is the tensors' bytes in the
order of `tensors`. Times on this wire are durations, never clock readings: the ends may stand on different hosts.
"""

from __future__ import annotations

import msgspec


class TensorHeader(msgspec.Struct, frozen=True, array_like=True):
    """A tensor whose `size_bytes` bytes lie in the frame's body. Its shape holds no -1."""

    name: str
    datatype: str
    shape: list[int]
    size_bytes: int


class Infer(msgspec.Struct, tag="infer", frozen=True):
    """Gateway -> replica: run these inputs; answer or fault under the same `id` within `timeout_ms`.

    `outputs` names the wanted outputs, empty for all.
    """

    id: int
    timeout_ms: int
    tensors: list[TensorHeader]
    outputs: list[str] = msgspec.field(default_factory=list)
    parameters: dict[str, str | int | float | bool] = msgspec.field(default_factory=dict)


class Cancel(msgspec.Struct, tag="cancel", frozen=True):
    """Gateway -> replica: the caller of `id` has left; drop it if it is not running yet. No answer."""

    id: int


class Ping(msgspec.Struct, tag="ping", frozen=True):
    """Either way; the other end answers Pong with the same token."""

    token: int


class Pong(msgspec.Struct, tag="pong", frozen=True):
    token: int


class Hello(msgspec.Struct, tag="hello", frozen=True):
    """Replica -> gateway, first frame on every connection."""

    replica: str
    generation: int
    model: str
    version: int
    queue_limit: int


class Answer(msgspec.Struct, tag="answer", frozen=True):
    """Replica -> gateway: the outputs of request `id`, and where its time went (ns)."""

    id: int
    tensors: list[TensorHeader]
    batch_size: int
    queue_ns: int
    compute_ns: int


class Fault(msgspec.Struct, tag="fault", frozen=True):
    """Replica -> gateway: request `id` failed; `code` names a class of inference.errors."""

    id: int
    code: str
    message: str
    retry_after_s: float | None = None


class Goodbye(msgspec.Struct, tag="goodbye", frozen=True):
    """Replica -> gateway: it drains; send nothing more here. What is under way is still answered."""


ToReplica = Infer | Cancel | Ping | Pong
FromReplica = Hello | Answer | Fault | Goodbye | Ping | Pong
