"""Real requests that an endpoint keeps for later, with the answer that they got, on their way to telemetry.

The law: nothing in a record tells who asked. No key, no header, no session, no sequence; what headers became parameters
is left out. One msgpack `Record` per entry of the bounded Valkey stream `routes.RECORDS_STREAM` (field `r`).
"""

from __future__ import annotations

import msgspec

from inference.protocol.messages import TensorHeader

FIELD = b"r"
STREAM_MAXLEN = 500
MAX_RECORD_BYTES = 128 << 10
INFER, LANGUAGE = "infer", "language"


class Record(msgspec.Struct, frozen=True):
    """`source` + `sequence` identify it. kind: "infer", tensors of the Open Inference Protocol; "language", one tensor
    with a protocol.generation.Generate for a language model, whose answer is `text` (and `token_ids`).

    body, answer_body: the bytes of `tensors` and `answer`, one after the other. outputs: names that were asked for,
    empty for all. is_repeatable: whether the same version must give the same answer again.
    """

    source: str
    sequence: int
    at_unix_s: int
    endpoint: str
    version: int
    kind: str
    latency_ms: float
    is_repeatable: bool
    tensors: list[TensorHeader]
    body: bytes
    outputs: list[str]
    parameters: dict[str, str | int | float | bool]
    answer: list[TensorHeader]
    answer_body: bytes

    @property
    def size_bytes(self) -> int:
        return len(self.body) + len(self.answer_body)


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Record).decode
