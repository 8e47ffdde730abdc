"""Errors of the control API in one shape: {"error": {"code", "message", "remedy"?, "request_id"}}."""

from __future__ import annotations

import logging
from typing import Any

from django.core.exceptions import PermissionDenied, RequestDataTooBig
from django.db import DataError, InterfaceError, OperationalError
from django.http import Http404
from rest_framework import exceptions
from rest_framework.response import Response
from rest_framework.views import set_rollback

from inference import errors

STATUS: dict[str, int] = {
    "invalid_request": 400,
    "invalid_input": 400,
    "malformed": 400,
    "rejected": 422,
    "unauthenticated": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "too_large": 413,
    "unsupported": 501,
    "overloaded": 503,
    "not_ready": 503,
    "storage_full": 507,
}
UNAVAILABLE = "The database does not answer. Predictions go on; try this again in a few seconds."
FAILED = "The server failed. Its log has more under this request id."
log = logging.getLogger(__name__)


def body(code: str, message: str, request_id: str, *, remedy: str = "", fields: Any = None) -> dict[str, Any]:
    error: dict[str, Any] = {"code": code, "message": message, "request_id": request_id}
    if remedy:
        error["remedy"] = remedy
    if fields:
        error["fields"] = fields
    return {"error": error}


def handle(error: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's exception handler: typed errors keep their message, unknown ones become one fixed sentence."""
    request_id = getattr(context["request"], "request_id", "")
    set_rollback()
    if isinstance(error, RequestDataTooBig):
        error = errors.TooLarge()
    if isinstance(error, errors.SerinusError):
        remedy = getattr(error, "remedy", "")
        return Response(body(error.code, error.message, request_id, remedy=remedy), STATUS.get(error.code, 500))
    if isinstance(error, Http404):
        error = exceptions.NotFound()
    elif isinstance(error, PermissionDenied):
        error = exceptions.PermissionDenied()
    if isinstance(error, exceptions.APIException):
        return _of_framework(error, request_id)
    if isinstance(error, DataError):
        return Response(body("malformed", "Some value cannot be stored.", request_id), 400)
    if isinstance(error, OperationalError | InterfaceError):
        log.warning("the database does not answer, request %s", request_id)
        return Response(body("unavailable", UNAVAILABLE, request_id), 503, headers={"Retry-After": "5"})
    log.error("unhandled error at the control API, request %s", request_id, exc_info=error)
    return Response(body("internal", FAILED, request_id), 500)


def _of_framework(error: exceptions.APIException, request_id: str) -> Response:
    fields = error.detail if isinstance(error, exceptions.ValidationError) else None
    message = "Some fields are not valid." if fields else str(error.detail)
    code = {401: "unauthenticated", 403: "forbidden", 404: "not_found", 405: "method_not_allowed"}.get(
        error.status_code, "malformed"
    )
    challenge = getattr(error, "auth_header", None)
    headers = {"WWW-Authenticate": challenge} if challenge else None
    return Response(body(code, message, request_id, fields=fields), error.status_code, headers=headers)
