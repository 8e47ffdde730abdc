"""Errors in OpenAI's envelope: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
from typing import Any

from rest_framework.response import Response

from accounts.problems import STATUS, handle
from inference.errors import SerinusError

# What OpenAI's clients make of a status is told by its type; a bad line or file is a 400 there, not a 422.
STATUSES = STATUS | {"rejected": 400, "rate_limited": 429, "unsupported": 400}
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
NO_RETRY = {"x-should-retry": "false"}


def envelope(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def status_of(error: SerinusError) -> int:
    return STATUSES.get(error.code, 500)


def in_openais_shape(error: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's exception handler: the control API's answer, told in the envelope."""
    answer = handle(error, context)
    if answer is None:
        return None
    status = status_of(error) if isinstance(error, SerinusError) else answer.status_code
    told = answer.data["error"]
    fields = told.get("fields")
    words = told["message"] + (f" {json.dumps(fields, default=str)}" if fields else "")
    headers = {name: value for name, value in answer.items() if name.lower() != "content-type"}
    if status in {409, 500, 507}:  # OpenAI's clients would ask twice more
        headers |= NO_RETRY
    return Response(envelope(status, words, told["code"]), status, headers=headers)
