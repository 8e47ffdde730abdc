"""From an error's code to the REST door's statuses and bodies, in the shape that Open Inference Protocol clients read."""

from __future__ import annotations

import math

import msgspec

from inference.errors import DeadlineExceeded, SerinusError
from inference.gateway.web import JSON_TYPE, Headers

STATUSES: dict[str, int] = {
    "invalid_request": 400,
    "invalid_input": 400,
    "context_length_exceeded": 400,
    "malformed": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "too_large": 413,
    "unsupported_encoding": 415,
    "poison_input": 422,
    "rate_limited": 429,
    "rejected": 400,
    "cancelled": 400,
    "unsupported": 501,
    "internal": 500,
    "model_failed": 500,
    "invalid_output": 502,
    "overloaded": 503,
    "storage_full": 507,
    "not_ready": 503,
    "replica_lost": 503,
    "sequence_lost": 503,
    "draining": 503,
    "deadline_exceeded": 503,  # as Triton has it; `x-error-code` tells it from the others
    "out_of_memory": 507,
}


def status_of(error: SerinusError) -> int:
    return STATUSES.get(error.code, 500)


def body_of(error: SerinusError) -> bytes:
    return msgspec.json.encode({"error": error.message})


def headers_of(error: SerinusError) -> Headers:
    """Content type, the error's code, and when to come back: if the error says so, may be tried again or came too late."""
    headers = [JSON_TYPE, (b"x-error-code", error.code.encode())]
    after_s = error.retry_after_s
    if after_s is None and (error.retryable or isinstance(error, DeadlineExceeded)):
        after_s = 1.0
    if after_s is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(after_s))).encode()))
    if error.code == "unauthenticated":
        headers.append((b"www-authenticate", b'Bearer realm="serinus"'))
    return headers
