"""From an error's code to the gRPC door's statuses, in Triton's words where it has them."""

from __future__ import annotations

import math
from enum import IntEnum
from functools import lru_cache
from urllib.parse import quote

from inference.errors import SerinusError
from inference.gateway.http2 import headers

Metadata = tuple[tuple[str, str], ...]
MAX_DETAIL_CHARS = 1000  # a client takes 8 KiB of trailers, and a character may become nine in there

_UNQUOTED = "".join(chr(one) for one in range(0x20, 0x7F) if one != 0x25)


class Status(IntEnum):
    """gRPC's own."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


STATUSES: dict[str, Status] = {
    "invalid_request": Status.INVALID_ARGUMENT,
    "invalid_input": Status.INVALID_ARGUMENT,
    "context_length_exceeded": Status.INVALID_ARGUMENT,
    "malformed": Status.INVALID_ARGUMENT,
    "poison_input": Status.INVALID_ARGUMENT,
    "rejected": Status.INVALID_ARGUMENT,
    "unauthenticated": Status.UNAUTHENTICATED,
    "forbidden": Status.PERMISSION_DENIED,
    "not_found": Status.NOT_FOUND,
    "method_not_allowed": Status.UNIMPLEMENTED,
    "unsupported": Status.UNIMPLEMENTED,
    "unsupported_encoding": Status.UNIMPLEMENTED,
    "conflict": Status.ABORTED,
    "cancelled": Status.CANCELLED,
    "too_large": Status.RESOURCE_EXHAUSTED,
    "rate_limited": Status.RESOURCE_EXHAUSTED,
    "storage_full": Status.RESOURCE_EXHAUSTED,
    "out_of_memory": Status.RESOURCE_EXHAUSTED,
    "overloaded": Status.UNAVAILABLE,
    "not_ready": Status.UNAVAILABLE,
    "replica_lost": Status.UNAVAILABLE,
    "sequence_lost": Status.UNAVAILABLE,
    "draining": Status.UNAVAILABLE,
    "deadline_exceeded": Status.DEADLINE_EXCEEDED,
    "internal": Status.INTERNAL,
    "model_failed": Status.INTERNAL,
    "invalid_output": Status.INTERNAL,
}


def status_of(error: SerinusError) -> Status:
    return STATUSES.get(error.code, Status.INTERNAL)


def detail_of(error: SerinusError) -> str:
    return error.message[:MAX_DETAIL_CHARS]


def trailers_of(error: SerinusError) -> Metadata:
    """The error's code, and when to come back if the error says so."""
    after_s = error.retry_after_s
    if after_s is None and error.retryable:
        after_s = 1.0
    code = ("x-error-code", error.code)
    return (code,) if after_s is None else (code, ("retry-after", str(max(1, math.ceil(after_s)))))


# -- header blocks ------------------------------------------------------------------------------------------------------

BEGIN = headers.status(200) + headers.field(b"content-type", b"application/grpc")
BEGINS = {name: BEGIN + headers.field(b"grpc-encoding", name) for name in (b"gzip", b"deflate")}  # packed answers
OK = headers.field(b"grpc-status", b"0")


def block(error: SerinusError) -> bytes:
    """The trailers that end a call with the error's status."""
    words = quote(detail_of(error), safe=_UNQUOTED).encode()
    ends = headers.field(b"grpc-status", b"%d" % status_of(error)) + headers.field(b"grpc-message", words)
    return ends + fields(trailers_of(error))


@lru_cache(maxsize=1024)
def fields(metadata: Metadata) -> bytes:
    """Metadata as header fields; what a value may not hold stands as a question mark."""
    found = [headers.field(name.encode(), value.encode("ascii", "replace")) for name, value in metadata]
    return b"".join(found)


def plain(status: int) -> bytes:
    """The answer to what is no gRPC call."""
    return headers.status(status) + headers.field(b"content-length", b"0")
