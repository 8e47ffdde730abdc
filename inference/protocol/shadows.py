"""What a mirrored request's two answers differed in, on its way from gateways to telemetry: a bounded sample of them.

One msgpack `Diff` per entry of the bounded Valkey stream `routes.DIFFS_STREAM` (field `d`): for every endpoint at most
one a second, the worst.
"""

from __future__ import annotations

import msgspec

FIELD = b"d"
STREAM_MAXLEN = 2_000
MAX_REQUEST_CHARS = 500


class Diff(msgspec.Struct, frozen=True):
    """`source` + `sequence` identify it. distance: 0..1, of the output that is furthest apart, whose name, kind and
    detail (see protocol.compare) these are; output "" and kind "refused" where the candidate refused what the stable
    version answered, with the error's code in detail. request: the begin of the inputs as text, of at most
    MAX_REQUEST_CHARS, never a key or a header.
    """

    source: str
    sequence: int
    at_unix_s: int
    endpoint: str
    stable: int
    candidate: int
    distance: float
    is_drift: bool
    output: str
    kind: str
    detail: str
    request: str
    stable_ms: float
    candidate_ms: float


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Diff).decode
