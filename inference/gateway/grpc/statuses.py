"""From an error's code to the gRPC door's statuses, in Triton's words where it has them."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import grpc

from inference.errors import SerinusError

Metadata = tuple[tuple[str, str], ...]
MAX_DETAIL_CHARS = 1000  # a client takes 8 KiB of trailers, and a character may become nine in there

STATUSES: dict[str, grpc.StatusCode] = {
    "invalid_request": grpc.StatusCode.INVALID_ARGUMENT,
    "invalid_input": grpc.StatusCode.INVALID_ARGUMENT,
    "context_length_exceeded": grpc.StatusCode.INVALID_ARGUMENT,
    "malformed": grpc.StatusCode.INVALID_ARGUMENT,
    "poison_input": grpc.StatusCode.INVALID_ARGUMENT,
    "rejected": grpc.StatusCode.INVALID_ARGUMENT,
    "unauthenticated": grpc.StatusCode.UNAUTHENTICATED,
    "forbidden": grpc.StatusCode.PERMISSION_DENIED,
    "not_found": grpc.StatusCode.NOT_FOUND,
    "method_not_allowed": grpc.StatusCode.UNIMPLEMENTED,
    "unsupported": grpc.StatusCode.UNIMPLEMENTED,
    "unsupported_encoding": grpc.StatusCode.UNIMPLEMENTED,
    "conflict": grpc.StatusCode.ABORTED,
    "cancelled": grpc.StatusCode.CANCELLED,
    "too_large": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "rate_limited": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "storage_full": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "out_of_memory": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "overloaded": grpc.StatusCode.UNAVAILABLE,
    "not_ready": grpc.StatusCode.UNAVAILABLE,
    "replica_lost": grpc.StatusCode.UNAVAILABLE,
    "sequence_lost": grpc.StatusCode.UNAVAILABLE,
    "draining": grpc.StatusCode.UNAVAILABLE,
    "deadline_exceeded": grpc.StatusCode.DEADLINE_EXCEEDED,
    "internal": grpc.StatusCode.INTERNAL,
    "model_failed": grpc.StatusCode.INTERNAL,
    "invalid_output": grpc.StatusCode.INTERNAL,
}


def status_of(error: SerinusError) -> grpc.StatusCode:
    return STATUSES.get(error.code, grpc.StatusCode.INTERNAL)


def detail_of(error: SerinusError) -> str:
    return error.message[:MAX_DETAIL_CHARS]


def trailers_of(error: SerinusError) -> Metadata:
    """The error's code, and when to come back if the error says so."""
    after_s = error.retry_after_s
    if after_s is None and error.retryable:
        after_s = 1.0
    code = ("x-error-code", error.code)
    return (code,) if after_s is None else (code, ("retry-after", str(max(1, math.ceil(after_s)))))


async def abort(context: Any, error: SerinusError) -> NoReturn:
    """Ends the call with the error's status."""
    await context.abort(status_of(error), detail_of(error), trailers_of(error))
    raise AssertionError("abort does not return")
