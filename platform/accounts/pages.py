"""What stands outside every app: health, and the answers when nothing else could answer."""

from __future__ import annotations

import logging
import sys
from typing import Any

from django.db import DatabaseError, DataError, InterfaceError, OperationalError, connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views import defaults
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from accounts.problems import FAILED, UNAVAILABLE, body

log = logging.getLogger(__name__)


@never_cache
@require_safe
def livez(request: HttpRequest) -> HttpResponse:  # noqa: ARG001 (Django passes it)
    """This process answers."""
    return HttpResponse("ok\n", content_type="text/plain")


@never_cache
@require_safe
def readyz(request: HttpRequest) -> HttpResponse:
    """This process and its database answer."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError:
        return _unavailable(request)
    return HttpResponse("ok\n", content_type="text/plain")


def _is_api(request: HttpRequest) -> bool:
    return request.path.startswith("/api/")


def _problem(request: HttpRequest, status: int, code: str, message: str) -> HttpResponse:
    return JsonResponse(body(code, message, getattr(request, "request_id", "")), status=status)


def _unavailable(request: HttpRequest) -> HttpResponse:
    if _is_api(request):
        response = _problem(request, 503, "unavailable", UNAVAILABLE)
    else:
        response = HttpResponse(UNAVAILABLE + "\n", status=503, content_type="text/plain")
    response["Retry-After"] = "5"
    return response


def server_error(request: HttpRequest) -> HttpResponse:
    """The last resort: a database that does not answer is a 503, all else one fixed sentence."""
    error = sys.exc_info()[1]
    if isinstance(error, OperationalError | InterfaceError):
        log.warning("the database does not answer, request %s", getattr(request, "request_id", ""))
        return _unavailable(request)
    if isinstance(error, DataError):  # a NUL, a number beyond its column: what was asked for cannot exist
        return bad_request(request, error)
    if _is_api(request):
        return _problem(request, 500, "internal", FAILED)
    return defaults.server_error(request)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    if _is_api(request):
        return _problem(request, 404, "not_found", "There is no such thing here.")
    return defaults.page_not_found(request, exception)


def forbidden(request: HttpRequest, exception: Exception) -> HttpResponse:
    if _is_api(request):
        return _problem(request, 403, "forbidden", "You have no right to that.")
    return defaults.permission_denied(request, exception)


def bad_request(request: HttpRequest, exception: Any) -> HttpResponse:
    if _is_api(request):
        return _problem(request, 400, "malformed", "The request could not be read.")
    return defaults.bad_request(request, exception)
