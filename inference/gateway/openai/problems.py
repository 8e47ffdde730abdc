"""Errors in OpenAI's envelope, `{"error": {"message", "type", "param", "code"}}`, and what its clients make of them.

The official clients ask twice more after 408, 409, 429 and everything from 500 on; `x-should-retry: false` tells them
where that would be of no use.
"""

from __future__ import annotations

import msgspec

from inference.errors import InvalidInput, NotFound, ReplicaLost, SerinusError
from inference.gateway import problems
from inference.gateway.web import Headers
from inference.protocol.generation import Usage

_STATUSES = {**problems.STATUSES, "unsupported": 400, "deadline_exceeded": 504, "rejected": 400}
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {"unauthenticated": "invalid_api_key", "rate_limited": "rate_limit_exceeded", "not_found": None}
_RETRIED = {408, 409, 429}
_encode = msgspec.json.Encoder().encode
PATHS = ("/v1/", "/tokenize", "/detokenize", "/score", "/rerank", "/v2/rerank")


class BadField(InvalidInput):
    """A field of the request is not as it should be. param: its name; reason: OpenAI's code for what is wrong."""

    def __init__(self, message: str, param: str | None, reason: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.reason: str | None = reason


class NoSuchModel(NotFound):
    """The model does not exist, or this key may not use it."""

    param = "model"
    reason = "model_not_found"


def is_ours(path: str) -> bool:
    """Whether an address is of this API, so that its errors have this form."""
    return path.startswith(PATHS) or path == "/v1"


def status_of(error: SerinusError) -> int:
    return _STATUSES.get(error.code, 500)


def envelope(error: SerinusError) -> dict[str, object]:
    """The object under "error"."""
    status = status_of(error)
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    reason = getattr(error, "reason", None) if isinstance(error, BadField | NoSuchModel) else None
    code = reason or _CODES.get(error.code, error.code)
    told = {"message": error.message, "type": kind, "param": getattr(error, "param", None), "code": code}
    if isinstance(error, ReplicaLost) and error.last_token is not None:
        told["last_token"] = error.last_token
    return told


def in_stream(error: SerinusError, usage: Usage) -> SerinusError:
    """`error` as a stream ends with it: where its replica was lost it says how far the text had come."""
    if not isinstance(error, ReplicaLost) or not usage.completion_tokens:
        return error
    last = usage.completion_tokens - 1
    words = (
        f"The replica was lost after token {last} of the answer, counted from 0. What came until then is all there is."
    )
    return ReplicaLost(words, retry_after_s=error.retry_after_s, last_token=last)


def body_of(error: SerinusError) -> bytes:
    return _encode({"error": envelope(error)})


def headers_of(error: SerinusError) -> Headers:
    """As the other doors' headers, and what OpenAI's clients look at."""
    status, found = status_of(error), problems.headers_of(error)
    if error.retry_after_s is not None:
        found.append((b"retry-after-ms", str(max(1, round(error.retry_after_s * 1e3))).encode()))
    if (status >= 500 or status in _RETRIED) and not error.retryable:
        found.append((b"x-should-retry", b"false"))
    return found
