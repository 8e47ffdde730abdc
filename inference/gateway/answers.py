"""An infer answer as the REST and WebSocket doors send it: its JSON, and its binary outputs behind it.

Pure, but for outputs that go to shared memory, which are written there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from inference.errors import NotReady
from inference.gateway import classification, codec
from inference.gateway.calls import Call
from inference.gateway.classification import Ranking
from inference.gateway.parameters import Scalar
from inference.gateway.shared_memory import Target
from inference.protocol.messages import TensorHeader


class OutputAnswer(msgspec.Struct, omit_defaults=True):
    """One element of an answer's "outputs"."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int | str] | None = None
    data: list[Any] | None = None


class InferAnswer(msgspec.Struct, omit_defaults=True):
    """The JSON of an infer answer; `id` is there only if the request had one."""

    model_name: str
    model_version: str
    outputs: list[OutputAnswer]
    id: str = ""
    parameters: Mapping[str, Scalar] | None = None


_encode = msgspec.json.Encoder().encode


def write(
    call: Call,
    endpoint: str,
    version: str,
    tensors: list[TensorHeader],
    body: memoryview,
    *,
    parameters: Mapping[str, Scalar] | None = None,
) -> tuple[bytes, list[memoryview | bytes]]:
    """An answer's JSON and the bytes of its binary outputs, in order; outputs for shared memory are written there.

    Raises InvalidInput, or NotReady when the replica's frame contradicts itself.
    """
    outputs: list[OutputAnswer] = []
    parts: list[memoryview | bytes] = []
    special = call.special
    at = 0
    for tensor in tensors:
        end = at + tensor.size_bytes
        data = body[at:end]
        if len(data) != tensor.size_bytes:
            raise NotReady("the replica sent an unreadable answer")
        if special is not None and tensor.name in special:
            outputs.append(_written(call, special[tensor.name], tensor, data, parts))
        elif call.binary is None or tensor.name in call.binary:
            size: dict[str, int | str] = {"binary_data_size": tensor.size_bytes}
            outputs.append(OutputAnswer(tensor.name, tensor.datatype, tensor.shape, size))
            parts.append(data)
        else:
            values = codec.to_json(data, tensor.datatype, tensor.name)
            outputs.append(OutputAnswer(tensor.name, tensor.datatype, tensor.shape, None, values))
        at = end
    return _encode(InferAnswer(endpoint, version, outputs, call.id, parameters)), parts


def _written(
    call: Call, special: Ranking | Target, tensor: TensorHeader, data: memoryview, parts: list[memoryview | bytes]
) -> OutputAnswer:
    """An output that is ranked, or goes to shared memory; appends to `parts` what goes back as bytes."""
    if isinstance(special, Target):
        return OutputAnswer(tensor.name, tensor.datatype, tensor.shape, special.write(data, tensor.name))
    shape, texts = classification.rank(data, tensor, special)
    if call.binary is not None and tensor.name not in call.binary:
        return OutputAnswer(tensor.name, "BYTES", shape, None, texts)
    packed = codec.pack_texts(texts)
    parts.append(packed)
    return OutputAnswer(tensor.name, "BYTES", shape, {"binary_data_size": len(packed)})
